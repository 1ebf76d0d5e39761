"""Mistakes in a config and its data, collected and told together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Findings:
    """What is wrong, a sentence each, with the place and the remedy.

    Attributes:
        errors: What makes a run fail, or its results wrong.
        warnings: What a user should know, with which a run is right.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Add those of another object; a sentence is kept once."""
        _extend(self.errors, other.errors)
        _extend(self.warnings, other.warnings)

    @contextmanager
    def catch(self, *kinds: type[Exception]) -> Iterator[None]:
        """Add an error that the block raises, in place of raising it.

        Args:
            kinds: The types of errors to add.
        """
        try:
            yield
        except kinds as error:
            _extend(self.errors, [str(error)])

    def message(self) -> str:
        """The errors as one text: a sentence, or a numbered list."""
        if len(self.errors) == 1:
            return self.errors[0]
        lines = (f'  {i}. {x}' for i, x in enumerate(self.errors, 1))
        return '\n'.join(
            [
                f'{len(self.errors)} mistakes in the config and its data:',
                *lines,
            ]
        )


def _extend(known: list[str], more: Iterable[str]) -> None:
    known.extend(x for x in dict.fromkeys(more) if x not in known)
