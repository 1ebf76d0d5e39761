"""Parts of error messages: hints, shortened reasons and lists of names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

REASON_LENGTH = 200  # characters


def did_you_mean(
    name: str,
    known: Iterable[str],
    most: int = 1,
    cutoff: float = 0.6,
    form: str = '{}',
) -> str:
    """A hint with the known names that are closest to a misspelt one.

    Args:
        name: The misspelt name.
        known: All names that exist.
        most: How many names to offer. Default: 1.
        cutoff: Least similarity of an offered name, 0 to 1; see
            ``difflib.get_close_matches``. Default: 0.6.
        form: How an offered name is written, with ``{}`` for the name.

    Returns:
        ``'; did you mean A or B?'``, empty if no name is close.
    """
    close = difflib.get_close_matches(name, list(known), most, cutoff)
    if not close:
        return ''
    return f'; did you mean {" or ".join(map(form.format, close))}?'


def shorten(reason: str, length: int = REASON_LENGTH) -> str:
    """The first line of a text that is not blank, cut to a length.

    Args:
        reason: Any text, such as that of an exception.
        length: Most characters of the result. Default: 200.

    Returns:
        The line, with ``...`` where it was cut; ``'no message'`` for a blank
        text.
    """
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    line = ' '.join(lines[0].split()) if lines else 'no message'
    # The text may be that of a hostile file, and a terminal obeys it.
    line = ''.join(c if c.isprintable() else '?' for c in line)
    return line if len(line) <= length else line[: length - 3] + '...'


def list_some(names: Iterable[object], most: int = 4) -> str:
    """The first of some names, separated by commas, and how many follow.

    Args:
        names: Any values.
        most: How many of them to write out. Default: 4.

    Returns:
        ``'a, b, c, d and 3 more'``; ``'nothing'`` without names.
    """
    texts = [str(name) for name in names]
    if not texts:
        return 'nothing'
    rest = len(texts) - most
    return ', '.join(texts[:most]) + (f' and {rest} more' if rest > 0 else '')
