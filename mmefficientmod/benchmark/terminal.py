"""Tables and lines of text for a terminal of any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmefficientmod.benchmark.tables import Column, cell, with_values

# Columns that are shown in any case: the first of the priority.
ALWAYS_SHOWN = 3
# Between two columns: a space of padding, and one where Rich draws borders.
GAP = 2


def print_prose(console: Console, text: str) -> None:
    """Print a text, wrapped at spaces."""
    console.print(text, highlight=False, markup=False)


def print_line(console: Console, text: str) -> None:
    """Print a text in one line, such as a path or an error to be copied."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_table(
    console: Console,
    columns: Sequence[Column],
    values: Sequence[dict[str, Any]],
    priority: Sequence[str],
    elsewhere: str,
) -> None:
    """Print as much of a table as fits in the console.

    No word or number is broken, and no line is longer than the console is
    wide, unless the first three columns of the priority need more. Where
    standard output is no terminal, Rich takes the width of the terminal that
    standard error or input is connected to, else ``COLUMNS``, else 80.

    Args:
        console: Where to print.
        columns: The columns, in the order of the table; the first has the
            names, which may wrap at spaces.
        values: For each row, its values by the keys of the columns.
        priority: Keys of the columns, the most important first.
        elsewhere: Says where all columns are, such as ``'all columns are in
            FILE'``; printed below a table without some of them.
    """
    columns = with_values(columns, values)
    shown = fitting(columns, values, priority, console.width)
    widths = _widths(shown, values, console.width)
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        width=_total(widths),
    )
    for column, width in zip(shown, widths, strict=True):
        table.add_column(
            column.title,
            width=width,
            justify='left' if column is shown[0] else 'right',
        )
    for row in values:
        table.add_row(*(escape(cell(column, row)) for column in shown))
    console.print(table, crop=False, no_wrap=True, overflow='ignore')
    left_out = [c.title for c in columns if c not in shown]
    if left_out:
        print_prose(
            console,
            f'Columns left out to fit in {console.width} characters: '
            f'{", ".join(left_out)}; {elsewhere}',
        )


def fitting(
    columns: Sequence[Column],
    values: Sequence[dict[str, Any]],
    priority: Sequence[str],
    width: int,
) -> list[Column]:
    """The columns that fit in a width, in their own order.

    Args:
        columns: Columns that have values.
        values: For each row, its values by the keys of the columns.
        priority: Keys of the columns, the most important first. The first
            three are taken in any case; then columns are taken until one does
            not fit.
        width: In characters.
    """
    by_key = {column.key: column for column in columns}
    taken: list[Column] = []
    for number, key in enumerate(priority):
        if key not in by_key:
            continue
        trial = [c for c in columns if c in taken or c.key == key]
        too_wide = _total(_widths(trial, values, width)) > width
        if too_wide and number >= ALWAYS_SHOWN:
            break
        taken = trial
    return taken


def _widths(
    columns: Sequence[Column], values: Sequence[dict[str, Any]], width: int
) -> list[int]:
    """Width of each column, so that no word in it is broken.

    Titles wrap at spaces. Names, in the first column, wrap at spaces if they
    are longer than half of the whole width; other cells do not.
    """
    widths = []
    for number, column in enumerate(columns):
        cells = [cell(column, row) for row in values]
        words = column.title.split()
        if number == 0:
            words += [word for text in cells for word in text.split()]
            longest = max(map(len, cells), default=0)
            words.append(' ' * min(longest, width // 2))
        else:
            words += cells
        widths.append(max(map(len, words)))
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)
