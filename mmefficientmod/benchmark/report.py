"""Results as a person reads them: tables, files and pictures."""

from __future__ import annotations

import csv
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from mmefficientmod.benchmark.measure import PARTS, Row
from mmefficientmod.benchmark.published import QUANTITIES
from mmefficientmod.benchmark.results import Result, Results


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


def _values(result: Result) -> list[dict[str, Any]]:
    """A dict for each row, by the keys of the columns."""
    return [
        {
            column.key: column.value(row, result.baseline_of(row))
            for column in COLUMNS
        }
        for row in result.rows
    ]


def _cells(result: Result) -> list[list[str]]:
    """Titles and written values; for reasons, see :func:`failures`."""
    hidden = {'error'}
    if len(result.baselines) == 1:
        hidden.add('baseline')
    return cells([c for c in COLUMNS if c.key not in hidden], _values(result))


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
    return rich_table(heading(result), _cells(result))


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


def write(results: Results, folder: Path) -> list[Path]:
    """Write all results as CSV, Markdown and pictures.

    Args:
        results: What to write.
        folder: Where to; it is made.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / 'results.csv', folder / 'results.md']
    _write_csv(results, written[0])
    written[1].write_text(markdown(results))
    for name, figure in (
        ('latency.png', latency_figure(results.results)),
        ('growth.png', growth_figure(results.results)),
    ):
        path = folder / name
        path.unlink(missing_ok=True)  # one of earlier results
        if figure is not None:
            save(figure, path, results.machine)
            written.append(path)
    return written


def save(figure: Figure, path: Path, machine: dict[str, str]) -> None:
    """Write a picture, with the machine below."""
    figure.supxlabel(textwrap.fill(describe(machine), 90), fontsize=6)
    figure.savefig(path, dpi=160)


def _write_csv(results: Results, path: Path) -> None:
    with path.open('w', newline='') as file:
        writer = None
        for result in results.results:
            place = {
                **vars(result.case),
                'device': result.device,
                'within': result.within,
                'deploy': result.deploy,
            }
            for values in _values(result):
                row = place | values | results.machine
                if writer is None:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                writer.writerow(row)


def markdown(results: Results) -> str:
    """All results as Markdown: an overview, then each case."""
    parts = [f'{describe(results.machine)}\n']
    groups: dict[str | None, list[Result]] = {}
    for result in results.results:
        groups.setdefault(result.within, []).append(result)
    for within, group in groups.items():
        if len(group) > 1:
            place = f'within {within}' if within else 'alone'
            parts.append(
                f'**All cases, {place}: ms (ratio to '
                f'{" or ".join(group[0].baselines)})**\n\n'
                f'{markdown_table(overview(group))}\n'
            )
    for result in results.results:
        parts.append(
            f'**{heading(result)}**\n\n{markdown_table(_cells(result))}\n'
        )
        parts += [f'{text}\n' for text in failures(result)]
    parts += [f'{text}\n' for text in crossings(results.results)]
    return '\n'.join(parts)


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


# ------------------------------------------------------------ sizes compared


def _by_size(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results that differ in the size of the image alone, small to large."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=_side):
        case = result.case
        size = f'x{case.height}x{case.width}'
        title = result.title.replace(size, 'xHxW')
        groups.setdefault(title, []).append(result)
    return {title: x for title, x in groups.items() if len(x) > 1}


def _side(result: Result) -> float:
    """Of the square with as many pixels."""
    return math.sqrt(result.case.height * result.case.width)


def crossings(results: Sequence[Result]) -> list[str]:
    """From which size on attention costs more than the modulation blocks."""
    _, modulation, attention = PARTS
    texts = []
    for title, group in _by_size(results).items():
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


# ------------------------------------------------------------------ pictures


# What is drawn by what the backbones were in, and what it is called.
ACCURACIES = {
    None: (('top1', 'top1_distilled'), 'ImageNet top-1, published, %'),
    'fpn': (('miou',), 'ADE20K mIoU, Semantic FPN, published, %'),
    'mask_rcnn': (('box_ap',), 'COCO box AP, Mask R-CNN 1x, published'),
}
# Those that the reader looks for.
MARKS = {'efficientmod': ('*', 'C3'), 'repvit': ('D', 'C0')}
OTHER = ('o', 'dimgrey')
# Of the first and the second kind of accuracy of a place.
LOOKS = (('full', '--', 'not distilled'), ('none', ':', 'distilled (hollow)'))
# Of a name beside its point, the nearest first: to the right, up, and how far
# in points.
PLACES = [
    (right, up, distance)
    for distance in (4, 10, 18, 28)
    for right, up in itertools.product((1, -1, 0), (1, -1, 0))
    if right or up
]


def latency_figure(results: Sequence[Result]) -> Figure | None:
    """Published accuracy against time and parameters, with Pareto fronts.

    A panel for each case and one for the parameters: top-1 for backbones
    alone, mIoU within Semantic FPN, box AP within Mask R-CNN. What was
    distilled is hollow, and has a front of its own.

    Returns:
        None where no accuracy is known.
    """
    plots = [plot for place in ACCURACIES for plot in _plots(results, place)]
    if not plots:
        return None
    figure, axes = panels(2, math.ceil(len(plots) / 2), (6.0, 5.0))
    for ax in axes.flat[len(plots) :]:
        ax.remove()
    names = [
        (ax, _draw_accuracy(ax, plot))
        for ax, plot in zip(axes.flat, plots, strict=False)
    ]
    figure.draw_without_rendering()  # before it, axes have no place
    for ax, texts in names:
        _spread(ax, texts)
    return figure


@dataclass(frozen=True)
class _Plot:
    """A panel: accuracies of rows against something measured."""

    title: str
    unit: str
    label: str
    keys: Sequence[str]
    rows: Sequence[Row]
    value: Callable[[Row], float]


def _plots(results: Iterable[Result], within: str | None) -> list[_Plot]:
    """Those of one place: a panel for each case, then the parameters."""
    keys, label = ACCURACIES[within]
    shown = []
    for result in results:
        if result.within == within and not result.case.training:
            rows = [
                r for r in result.rows if r.times and {*keys} & {*r.published}
            ]
            if rows:
                shown.append((result, rows))
    if not shown:
        return []
    # What is folded has fewer parameters than it is known for.
    _, unfolded = min(shown, key=lambda pair: pair[0].deploy)
    return [
        *(
            _Plot(
                result.title, 'ms', label, keys, rows,
                lambda row: 1e3 * row.measurement.median)
            for result, rows in shown
        ),
        _Plot(
            'parameters' + (f', within {within}' if within else ''),
            'M parameters', label, keys, unfolded,
            lambda row: row.params / 1e6),
    ]  # fmt: skip


def _draw_accuracy(ax: Axes, plot: _Plot) -> list[Annotation]:
    """A point for each row and accuracy, and a front for each accuracy.

    Returns:
        The names of the rows, each at the higher of its points.
    """
    for key, (fill, style, text) in zip(plot.keys, LOOKS, strict=False):
        points = [
            (plot.value(row), row.published[key], *mark(row.model))
            for row in plot.rows
            if key in row.published
        ]
        for x, y, marker, color in points:
            ax.plot(
                x,
                y,
                marker,
                color=color,
                fillstyle=fill,
                markersize=9 if marker == '*' else 5,
            )
        if points:
            front = pareto([(x, y) for x, y, *_ in points])
            ax.plot(
                *zip(*front, strict=True),
                style,
                color='grey',
                zorder=0,
                label=text,
            )
    for row in plot.rows:  # both points of a model are joined
        ax.vlines(
            plot.value(row),
            min(row.published.get(key, math.inf) for key in plot.keys),
            max(row.published.get(key, 0) for key in plot.keys),
            color=mark(row.model)[1],
            lw=0.5,
        )
    if len(plot.keys) > 1:
        ax.legend(fontsize=7, loc='lower right', title='Pareto front')
    ax.set_xscale('log')
    _label_powers(ax.xaxis)
    ax.margins(0.12, 0.08)
    ax.set_title(plot.title, fontsize=8)
    ax.set_xlabel(plot.unit)
    ax.set_ylabel(plot.label)
    return [
        ax.annotate(
            row.model,
            (
                plot.value(row),
                max(row.published.get(key, 0) for key in plot.keys),
            ),
            (4, 4),
            textcoords='offset points',
            fontsize=6,
            color=mark(row.model)[1],
            arrowprops=dict(arrowstyle='-', lw=0.3, color='grey', shrinkB=3),
            in_layout=False,
        )
        # Those that the reader looks for choose their places first.
        for row in sorted(plot.rows, key=lambda r: mark(r.model) == OTHER)
    ]


def _spread(ax: Axes, names: Iterable[Annotation]) -> None:
    """Put names where they hide as little as possible of the panel."""
    taken = [
        Bbox.from_bounds(x - 4, y - 4, 8, 8)
        for line in ax.lines
        if len(line.get_xydata()) == 1  # a point, no front
        for x, y in ax.transData.transform(line.get_xydata())
    ]
    if ax.get_legend():
        taken.append(ax.get_legend().get_window_extent())
    for name in names:
        hidden = []
        for place in PLACES:
            _move(name, place)
            box = Text.get_window_extent(name)  # without the line to it
            inside = Bbox.intersection(box, ax.bbox)
            hidden.append(
                _area(box)
                - _area(inside)
                + sum(_area(Bbox.intersection(box, x)) for x in taken)
            )
        _move(name, PLACES[hidden.index(min(hidden))])
        taken.append(Text.get_window_extent(name))


def _move(name: Annotation, place: tuple[int, int, int]) -> None:
    right, up, distance = place
    name.xyann = (right * distance, up * distance)
    name.set_ha({-1: 'right', 0: 'center', 1: 'left'}[right])
    name.set_va({-1: 'top', 0: 'center', 1: 'bottom'}[up])


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else box.width * box.height


def mark(name: str) -> tuple[str, str]:
    """Marker and colour of a model."""
    return next(
        (mark for start, mark in MARKS.items() if name.startswith(start)),
        OTHER,
    )


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those points than which none is faster and at least as accurate.

    Args:
        points: Pairs of time and accuracy.

    Returns:
        Them, the fastest first.
    """
    front: list[tuple[float, float]] = []
    for time, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((time, accuracy))
    return front


def growth_figure(results: Sequence[Result]) -> Figure | None:
    """Time and memory against the side of the image, both logarithmic.

    Returns:
        None where no two sizes were measured.
    """
    groups = _by_size(results)
    if not groups:
        return None
    rows = [r for group in groups.values() for x in group for r in x.rows]
    quantities = {
        unit: value
        for unit, value in (
            ('ms', lambda r: r.times and 1e3 * r.measurement.median),
            ('peak MB', lambda r: r.peak and r.peak / 1e6),
            ('saved MB', lambda r: r.saved and r.saved / 1e6),
        )
        if any(map(value, rows))
    }
    if not quantities:
        return None
    figure, axes = panels(len(groups), len(quantities))
    for column, (title, group) in enumerate(groups.items()):
        for line, (unit, value) in enumerate(quantities.items()):
            ax = axes[line][column]
            if _draw_growth(ax, group, value):
                ax.set_title(title, fontsize=8)
                ax.set_ylabel(unit)
            else:
                ax.remove()
    return figure


def _draw_growth(
    ax: Axes, group: Sequence[Result], value: Callable[[Row], Any]
) -> bool:
    """A line for each model.

    Returns:
        Whether there is anything to see.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in group:
        for row in result.rows:
            if value(row):
                points = lines.setdefault(row.model, [])
                points.append((_side(result), value(row)))
    if not lines:
        return False
    for name, points in lines.items():
        marker, _ = mark(name)
        ax.plot(*zip(*points, strict=True), f'{marker}-', label=name)
    ax.set_xscale('log')
    ax.set_yscale('log')
    _label_powers(ax.yaxis)
    ax.tick_params(which='both', labelsize=7)
    sides = [_side(result) for result in group]
    ax.set_xticks(sides, [f'{x:.0f}' for x in sides])
    ax.set_xticks([], minor=True)
    ax.legend(fontsize=7)
    ax.set_xlabel('side of the image, pixels')
    return True


def _label_powers(axis: Axis) -> None:
    """Label 1, 2 and 5, and their multiples by 10, on a logarithmic axis."""
    axis.set_major_formatter('{x:g}')
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter('{x:g}')


def panels(
    columns: int, lines: int, size: tuple[float, float] = (4.5, 3.5)
) -> tuple[Figure, Any]:
    width, height = size
    figure = Figure(
        figsize=(width * columns, height * lines), layout='constrained'
    )
    return figure, figure.subplots(lines, columns, squeeze=False)
