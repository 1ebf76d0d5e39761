"""Results as tables, for the terminal and for Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from mmefficientmod.benchmark.measure import PARTS, Row
from mmefficientmod.benchmark.published import QUANTITIES
from mmefficientmod.benchmark.results import Result, group_by_size


@dataclass(frozen=True)
class Column:
    """A column of all tables.

    Attributes:
        key: Its name in files, with the unit.
        title: Its name in tables.
        form: How a value is written in tables.
        value: Its value, of a row, in the benchmark also of that of the
            baseline; None for none.
    """

    key: str
    title: str
    form: str
    value: Callable[..., Any]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _memory(kind: str) -> tuple[Column, Column]:
    """The columns of a field of :class:`Row` that counts bytes."""

    def ratio(row: Row, baseline: Row | None) -> float | None:
        own, other = (x and getattr(x, kind) for x in (row, baseline))
        return own / other if own and other else None

    return (
        Column(
            f'{kind}_mb', f'{kind} MB', '.1f',
            lambda r, b: _scaled(getattr(r, kind), 1e-6)),
        Column(f'{kind}_ratio', f'{kind} ratio', '.2f', ratio),
    )  # fmt: skip


def _part(name: str) -> Column:
    return Column(
        f'{name.replace(" ", "_")}_ms',
        f'{name.split()[0]} ms',
        '.1f',
        lambda r, b: _scaled((r.breakdown or {}).get(name), 1e3),
    )


def _published(key: str) -> Column:
    return Column(
        key, QUANTITIES[key], '.1f', lambda r, b: r.published.get(key)
    )


COLUMNS = (
    Column('model', 'model', '', lambda r, b: r.model),
    Column(
        'median_ms', 'ms', '.1f',
        lambda r, b: 1e3 * r.measurement.median if r.times else None),
    Column(
        'iqr_ms', 'spread', '.1f',
        lambda r, b: 1e3 * r.measurement.iqr if r.times else None),
    Column('baseline', 'to', '', lambda r, b: r.baseline),
    Column('ratio', 'ratio', '.2f', lambda r, b: r.ratio_to(b)),
    *_memory('peak'),
    *_memory('saved'),
    *map(_part, PARTS),
    Column(
        'params_m', 'M params', '.2f', lambda r, b: _scaled(r.params, 1e-6)),
    Column('flops_g', 'G FLOPs', '.2f', lambda r, b: _scaled(r.flops, 1e-9)),
    *map(_published, QUANTITIES),
    Column('difference', 'differs', '.0e', lambda r, b: r.difference),
    Column(
        'graph_breaks', 'breaks', 'd', lambda r, b: r.graph_breaks),
    Column('error', 'failed', '', lambda r, b: r.error),
)  # fmt: skip
# Those that are the same in each case.
SIZES = {'model', 'params_m', 'flops_g', *QUANTITIES}


def result_values(result: Result) -> list[dict[str, Any]]:
    """A dict for each row, by the keys of the columns."""
    return [
        {
            column.key: column.value(row, result.baseline_of(row))
            for column in COLUMNS
        }
        for row in result.rows
    ]


def result_cells(result: Result) -> list[list[str]]:
    """Titles and written values; for reasons, see :func:`failures`."""
    hidden = {'error'}
    if len(result.baselines) == 1:
        hidden.add('baseline')
    return cells(
        [c for c in COLUMNS if c.key not in hidden], result_values(result)
    )


def cells(
    columns: Sequence[Column], values: Sequence[dict[str, Any]]
) -> list[list[str]]:
    """Titles and written values of the columns that have any.

    Args:
        columns: What to show.
        values: A dict for each row, by the keys of the columns.
    """
    columns = [c for c in columns if any(x[c.key] is not None for x in values)]
    return [
        [c.title for c in columns],
        *(
            [
                '' if x[c.key] is None else format(x[c.key], c.form)
                for c in columns
            ]
            for x in values
        ),
    ]


def describe(machine: dict[str, str]) -> str:
    """The machine in one line."""
    return ', '.join(f'{key} {value}' for key, value in machine.items())


def heading(result: Result) -> str:
    """What was measured, how often, and against what."""
    unfinished = '' if result.finished else ' (stopped early)'
    return (
        f'{result.title}: median of {rounds_of(result)} rounds{unfinished}, '
        f'ratio to {" or ".join(result.baselines)}'
    )


def table(result: Result) -> Table:
    """A result as a table for the terminal."""
    return rich_table(heading(result), result_cells(result))


def rich_table(title: str, cells: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal, of a line of titles and lines of values."""
    titles, *rows = cells
    made = Table(title=escape(title), title_justify='left', box=SIMPLE_HEAD)
    # Where it is narrow, names and titles break, and numbers do not.
    made.add_column(titles[0], overflow='fold')
    for title, *cells in zip(
        titles[1:], *(row[1:] for row in rows), strict=True
    ):
        words = [*title.split(), *cells]
        made.add_column(title, justify='right', min_width=max(map(len, words)))
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def failures(result: Result) -> list[str]:
    """A line for each model that failed."""
    return [f'{row.model}: {row.error}' for row in result.rows if row.error]


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    titles, *rows = (
        [cell.replace('|', r'\|') for cell in row] for row in cells
    )
    marks = ['---', *['---:'] * (len(titles) - 1)]
    return '\n'.join(
        f'| {" | ".join(row)} |' for row in (titles, marks, *rows)
    )


def overview(results: Sequence[Result]) -> list[list[str]]:
    """A line for each model: its size, and time and memory in each case.

    Args:
        results: Of models that are alone, or within the same.

    Returns:
        Titles and written values.
    """
    fixed = [c for c in COLUMNS if c.key in SIZES]
    memory = [c for c in COLUMNS if c.key in ('peak_mb', 'saved_mb')]
    titles = [f'{r.case}{", deployed" * r.deploy}' for r in results]
    measured = [
        (
            Column(f'time {title}', title, '', _time_and_ratio),
            *(
                Column(
                    f'{c.key} {title}', f'{title}, {c.title}', '.0f', c.value
                )
                for c in memory
            ),
        )
        for title in titles
    ]
    rows = [{row.model: row for row in result.rows} for result in results]
    # What is folded for inference has fewer parameters than it is known for.
    unfolded_first = sorted(
        range(len(results)), key=lambda number: results[number].deploy
    )
    values = []
    for model in dict.fromkeys(name for found in rows for name in found):
        known = [rows[n][model] for n in unfolded_first if model in rows[n]]
        line = {c.key: c.value(known[0], None) for c in fixed}
        for columns, result, found in zip(
            measured, results, rows, strict=True
        ):
            row = found.get(model, Row(model))
            baseline = result.baseline_of(row)
            line |= {c.key: c.value(row, baseline) for c in columns}
        values.append(line)
    return cells([*fixed, *itertools.chain(*measured)], values)


def _time_and_ratio(row: Row, baseline: Row | None) -> str | None:
    """In ms, and to the baseline."""
    if not row.times:
        return None
    time, ratio = 1e3 * row.measurement.median, row.ratio_to(baseline)
    return f'{time:.1f}' + ('' if ratio is None else f' ({ratio:.2f})')


def rounds_of(result: Result) -> int:
    """Rounds that were run."""
    return max((len(row.times) for row in result.rows), default=0)


def attention_crossover(results: Sequence[Result]) -> list[str]:
    """From which size on attention costs more than the modulation blocks."""
    _, modulation, attention = PARTS
    texts = []
    for title, group in group_by_size(results).items():
        costly: dict[str, str | None] = {}
        for result in group:
            for row in result.rows:
                parts = row.breakdown
                if parts and parts[attention]:
                    size = f'{result.case.height}x{result.case.width}'
                    more = parts[attention] > parts[modulation]
                    found = costly.setdefault(row.model, None)
                    costly[row.model] = found or (size if more else None)
        for model, size in costly.items():
            texts.append(
                f'{title}: in {model}, attention takes '
                + (
                    f'more time than the modulation blocks from {size} on.'
                    if size
                    else 'less time than the modulation blocks at each size.'
                )
            )
    return texts
