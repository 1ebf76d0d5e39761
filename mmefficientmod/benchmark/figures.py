"""Results as pictures: accuracy against time, and growth with the image."""

from __future__ import annotations

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

from mmefficientmod.benchmark.measure import Row
from mmefficientmod.benchmark.results import (
    Result,
    group_by_size,
    side_of_square,
)
from mmefficientmod.benchmark.tables import describe

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
    groups = group_by_size(results)
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
                points.append((side_of_square(result), value(row)))
    if not lines:
        return False
    for name, points in lines.items():
        marker, _ = mark(name)
        ax.plot(*zip(*points, strict=True), f'{marker}-', label=name)
    ax.set_xscale('log')
    ax.set_yscale('log')
    _label_powers(ax.yaxis)
    ax.tick_params(which='both', labelsize=7)
    sides = [side_of_square(result) for result in group]
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


def save(figure: Figure, path: Path, machine: dict[str, str]) -> None:
    """Write a picture, with the machine below."""
    figure.supxlabel(textwrap.fill(describe(machine), 90), fontsize=6)
    figure.savefig(path, dpi=160)
