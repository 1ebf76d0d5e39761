"""Results as tables: which columns there are, and their text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmefficientmod.benchmark.breakdown import (
    ATTENTION,
    BLOCK_KINDS,
    MODULATION,
)
from mmefficientmod.benchmark.published import ACCURACIES
from mmefficientmod.benchmark.results import Result, Row, group_by_size


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: Its name in files, with the unit.
        title: Its name in tables.
        form: Format specification of a value in tables.
        value: Computes the value, or None if there is none. The benchmark
            calls it with a row and its baseline's row or None, the
            comparison of trainings with all runs of a model and the finished
            ones.
    """

    key: str
    title: str
    form: str
    value: Callable[[Any, Any], Any]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _memory_columns(attribute: str) -> tuple[Column, Column]:
    """Megabytes, and their ratio to the baseline, of ``peak`` or ``saved``."""

    def ratio(row: Row, baseline: Row | None) -> float | None:
        own = getattr(row, attribute)
        other = getattr(baseline, attribute) if baseline else None
        return own / other if own and other else None

    return (
        Column(
            f'{attribute}_mb', f'{attribute} MB', '.1f',
            lambda r, b: _scaled(getattr(r, attribute), 1e-6)),
        Column(f'{attribute}_ratio', f'{attribute} ratio', '.2f', ratio),
    )  # fmt: skip


def _block_column(kind: str) -> Column:
    return Column(
        f'{kind.replace(" ", "_")}_ms',
        f'{kind.split()[0]} ms',
        '.1f',
        lambda r, b: _scaled((r.breakdown or {}).get(kind), 1e3),
    )


def _accuracy_column(key: str) -> Column:
    return Column(
        key, ACCURACIES[key], '.1f', lambda r, b: r.published.get(key)
    )


COLUMNS = (
    Column('model', 'model', '', lambda r, b: r.model),
    Column('median_ms', 'ms', '.1f', lambda r, b: r.median_ms),
    Column('iqr_ms', 'spread', '.1f', lambda r, b: r.iqr_ms),
    Column('baseline', 'to', '', lambda r, b: r.baseline),
    Column('ratio', 'ratio', '.2f', lambda r, b: r.ratio_to(b)),
    *_memory_columns('peak'),
    *_memory_columns('saved'),
    *map(_block_column, BLOCK_KINDS),
    Column(
        'params_m', 'M params', '.2f', lambda r, b: _scaled(r.params, 1e-6)),
    Column('flops_g', 'G FLOPs', '.2f', lambda r, b: _scaled(r.flops, 1e-9)),
    *map(_accuracy_column, ACCURACIES),
    Column('difference', 'differs', '.0e', lambda r, b: r.difference),
    Column('graph_breaks', 'breaks', 'd', lambda r, b: r.graph_breaks),
    Column('error', 'failed', '', lambda r, b: r.error),
)  # fmt: skip
# Keys of the columns that are the same in each case.
CASE_INDEPENDENT = {'model', 'params_m', 'flops_g', *ACCURACIES}
# Keys of the columns, the most important first: where a terminal is narrow,
# those at the end are left out. What was measured comes first, then what can
# be looked up elsewhere.
PRIORITY = (
    'model', 'median_ms', 'ratio', 'peak_mb', 'saved_mb',
    *(_block_column(kind).key for kind in BLOCK_KINDS),
    'difference', 'graph_breaks', 'iqr_ms', 'baseline', 'peak_ratio',
    'saved_ratio', 'params_m', 'flops_g', *ACCURACIES,
)  # fmt: skip


def result_values(result: Result) -> list[dict[str, Any]]:
    """For each row, the values of all columns by their keys."""
    return [
        {
            column.key: column.value(row, result.baseline_of(row))
            for column in COLUMNS
        }
        for row in result.rows
    ]


def table_columns(result: Result) -> list[Column]:
    """The columns of a result's table.

    Without the errors, which :func:`failures` gives, and without the names
    of the baselines where there is only one.
    """
    hidden = {'error'}
    if len(result.baselines) == 1:
        hidden.add('baseline')
    return [column for column in COLUMNS if column.key not in hidden]


def table_cells(
    columns: Sequence[Column], values: Sequence[dict[str, Any]]
) -> list[list[str]]:
    """Write values as text.

    Args:
        columns: What to show; columns without any value are left out.
        values: For each row, its values by the keys of the columns.

    Returns:
        The titles, then the cells of each row; empty for None.
    """
    columns = with_values(columns, values)
    return [
        [column.title for column in columns],
        *([cell(column, row) for column in columns] for row in values),
    ]


def with_values(
    columns: Sequence[Column], values: Sequence[dict[str, Any]]
) -> list[Column]:
    """The columns in which at least one row has a value."""
    return [
        column
        for column in columns
        if any(row[column.key] is not None for row in values)
    ]


def cell(column: Column, row: dict[str, Any]) -> str:
    """The text of a row's value in a column; empty for None."""
    value = row[column.key]
    return '' if value is None else format(value, column.form)


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a line of titles and lines of cells."""
    titles, *rows = (
        [cell.replace('|', r'\|') for cell in row] for row in cells
    )
    alignment = ['---', *['---:'] * (len(titles) - 1)]
    return '\n'.join(
        f'| {" | ".join(row)} |' for row in (titles, alignment, *rows)
    )


def describe(machine: dict[str, str]) -> str:
    """Machine and versions in one line."""
    return ', '.join(f'{key} {value}' for key, value in machine.items())


def heading(result: Result) -> str:
    """The case, the number of rounds and the baselines."""
    unfinished = '' if result.finished else ' (stopped early)'
    return (
        f'{result.title}: median of {result.rounds_run} rounds{unfinished}, '
        f'ratio to {" or ".join(result.baselines)}'
    )


def failures(result: Result) -> list[str]:
    """A line for each model that failed, with the error."""
    return [f'{row.model}: {row.error}' for row in result.rows if row.error]


def overview(results: Sequence[Result]) -> list[list[str]]:
    """One table of several cases.

    Args:
        results: Of backbones alone, or within the same whole model.

    Returns:
        The titles, then a line for each model: its size and accuracies, and
        for each result its time and memory. Results of the same case, which
        have other models or a breakdown, are numbered.
    """
    fixed = [c for c in COLUMNS if c.key in CASE_INDEPENDENT]
    memory = [c for c in COLUMNS if c.key in ('peak_mb', 'saved_mb')]
    titles = [f'{r.case}{r.alterations}' for r in results]
    titles = [
        f'{title} ({titles[: i + 1].count(title)})'
        if titles.count(title) > 1
        else title
        for i, title in enumerate(titles)
    ]
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
    # Models folded for inference have fewer parameters than published.
    unfolded_first = sorted(
        range(len(results)), key=lambda number: results[number].deploy
    )
    values = []
    for model in dict.fromkeys(name for by_name in rows for name in by_name):
        own = [rows[n][model] for n in unfolded_first if model in rows[n]]
        line = {c.key: c.value(own[0], None) for c in fixed}
        for columns, result, by_name in zip(
            measured, results, rows, strict=True
        ):
            row = by_name.get(model, Row(model))
            baseline = result.baseline_of(row)
            line |= {c.key: c.value(row, baseline) for c in columns}
        values.append(line)
    return table_cells([*fixed, *itertools.chain(*measured)], values)


def _time_and_ratio(row: Row, baseline: Row | None) -> str | None:
    """Milliseconds, and the ratio to the baseline if there is one."""
    if row.median_ms is None:
        return None
    text, ratio = f'{row.median_ms:.1f}', row.ratio_to(baseline)
    return text if ratio is None else f'{text} ({ratio:.2f})'


def attention_crossover(results: Sequence[Result]) -> list[str]:
    """From which image size attention takes more time than modulation.

    Args:
        results: Any; those of the same case at several sizes are compared,
            if they have the time of each kind of block.

    Returns:
        A sentence for each model with attention blocks.
    """
    sentences = []
    for title, group in group_by_size(results).items():
        first_size: dict[str, str | None] = {}
        for result in group:
            size = f'{result.case.height}x{result.case.width}'
            for row in result.rows:
                seconds = row.breakdown
                if not seconds or not seconds[ATTENTION]:
                    continue
                first_size.setdefault(row.model, None)
                slower = seconds[ATTENTION] > seconds[MODULATION]
                if slower and first_size[row.model] is None:
                    first_size[row.model] = size
        for model, first in first_size.items():
            sentences.append(
                f'{title}: in {model}, attention takes '
                + (
                    f'more time than the modulation blocks from {first} on.'
                    if first
                    else 'less time than the modulation blocks at each size.'
                )
            )
    return sentences
