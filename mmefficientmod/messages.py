"""Parts of the sentences in which a tool tells a person about a mistake."""

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
    """A question that offers the known names closest to a misspelt one.

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
    """The first line of a reason that says something, cut where it is long.

    Args:
        reason: Any text.
        length: Most characters of the result. Default: 200.
    """
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    line = ' '.join(lines[0].split()) if lines else 'no message'
    return line if len(line) <= length else line[: length - 3] + '...'
