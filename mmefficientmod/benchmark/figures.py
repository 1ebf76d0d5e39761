"""Results as figures: accuracy against time, and growth with the image."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox, BboxBase

from mmefficientmod.benchmark.results import (
    Result,
    Row,
    group_by_size,
    image_side,
)
from mmefficientmod.benchmark.tables import describe

# For backbones alone and within each whole model: the accuracies that are
# drawn, and the label of their axis.
AXES = {
    None: (('top1', 'top1_distilled'), 'ImageNet top-1, published, %'),
    'fpn': (('miou',), 'ADE20K mIoU, Semantic FPN, published, %'),
    'mask_rcnn': (('box_ap',), 'COCO box AP, Mask R-CNN 1x, published'),
}
# Marker and colour of the models that stand out, by the start of their names.
MARKERS = {'efficientmod': ('*', 'C3'), 'repvit': ('D', 'C0')}
OTHER_MARKER = ('o', 'dimgrey')
# Fill of the markers, line style and label of the Pareto front, for the first
# and the second accuracy of a panel.
STYLES = (('full', '--', 'not distilled'), ('none', ':', 'distilled (hollow)'))
# Candidate offsets of a name from its point, the nearest first: horizontal
# and vertical direction, and distance in points.
OFFSETS = [
    (right, up, distance)
    for distance in (4, 10, 18, 28)
    for right, up in itertools.product((1, -1, 0), (1, -1, 0))
    if right or up
]


def latency_figure(results: Sequence[Result]) -> Figure | None:
    """Draw published accuracy against time and parameters.

    There is a panel for each case without training and one for the
    parameters, each with its Pareto front: top-1 for backbones alone, mIoU
    within Semantic FPN, box AP within Mask R-CNN. Distilled models are hollow
    and have their own front.

    Returns:
        None if no accuracy is known.
    """
    shown = [panel for within in AXES for panel in _panels(results, within)]
    if not shown:
        return None
    figure, axes = subplots(2, math.ceil(len(shown) / 2), (6.0, 5.0))
    for ax in axes.flat[len(shown) :]:
        ax.remove()
    names = [
        (ax, _draw_accuracy(ax, panel))
        for ax, panel in zip(axes.flat, shown, strict=False)
    ]
    figure.draw_without_rendering()  # computes where the axes are
    for ax, texts in names:
        _place_names(ax, texts)
    return figure


@dataclass(frozen=True)
class _Panel:
    """Accuracies of models against a measured quantity.

    Attributes:
        title: Title of the panel.
        unit: Label of the horizontal axis.
        label: Label of the vertical axis.
        keys: Accuracies that are drawn, keys of :attr:`Row.published`.
        points: Each model with its measured quantity.
    """

    title: str
    unit: str
    label: str
    keys: Sequence[str]
    points: Sequence[tuple[Row, float]]


def _panels(results: Iterable[Result], within: str | None) -> list[_Panel]:
    """A panel for each case, then one for the parameters.

    Args:
        results: Any; those within another whole model are ignored.
        within: A key of :data:`AXES`.
    """
    keys, label = AXES[within]
    shown = []
    for result in results:
        if result.within == within and not result.case.training:
            rows = [x for x in result.rows if {*keys} & {*x.published}]
            times = [(x, x.median_ms) for x in rows if x.median_ms is not None]
            if times:
                shown.append((result, times))
    if not shown:
        return []
    # Models folded for inference have fewer parameters than published.
    _, unfolded = min(shown, key=lambda pair: pair[0].deploy)
    title = 'parameters' + (f', within {within}' if within else '')
    params = [(x, x.params / 1e6) for x, _ in unfolded if x.params is not None]
    return [
        *(
            _Panel(result.title, 'ms', label, keys, times)
            for result, times in shown
        ),
        _Panel(title, 'M parameters', label, keys, params),
    ]


def _draw_accuracy(ax: Axes, panel: _Panel) -> list[Annotation]:
    """Draw the points of each accuracy, and its Pareto front.

    Returns:
        The names of the models, each at the higher of its points.
    """
    for key, (fill, style, text) in zip(panel.keys, STYLES, strict=False):
        points = [
            (x, row.published[key], *marker_of(row.model))
            for row, x in panel.points
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
    tops = []
    for row, x in panel.points:
        known = [row.published[k] for k in panel.keys if k in row.published]
        color = marker_of(row.model)[1]
        # Joins the two points of a model.
        ax.vlines(x, min(known), max(known), color=color, lw=0.5)
        tops.append((row.model, x, max(known)))
    if len(panel.keys) > 1:
        ax.legend(fontsize=7, loc='lower right', title='Pareto front')
    ax.set_xscale('log')
    _label_powers(ax.xaxis)
    ax.margins(0.12, 0.08)
    ax.set_title(panel.title, fontsize=8)
    ax.set_xlabel(panel.unit)
    ax.set_ylabel(panel.label)
    return [
        ax.annotate(
            model,
            (x, y),
            (4, 4),
            textcoords='offset points',
            fontsize=6,
            color=marker_of(model)[1],
            arrowprops=dict(arrowstyle='-', lw=0.3, color='grey', shrinkB=3),
            in_layout=False,
        )
        # The models that stand out are placed first, where there is room.
        for model, x, y in sorted(
            tops, key=lambda top: marker_of(top[0]) == OTHER_MARKER
        )
    ]


def _place_names(ax: Axes, names: Iterable[Annotation]) -> None:
    """Give each name the offset at which it covers least of the panel."""
    taken = []
    for line in ax.lines:
        points = np.asarray(line.get_xydata())
        if len(points) == 1:  # a model, or a front of one
            x, y = ax.transData.transform(points)[0]
            taken.append(Bbox.from_bounds(x - 4, y - 4, 8, 8))
    legend = ax.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    for name in names:
        covered = []
        for offset in OFFSETS:
            _move(name, offset)
            box = Text.get_window_extent(name)  # without its line
            inside = Bbox.intersection(box, ax.bbox)
            covered.append(
                _area(box)
                - _area(inside)
                + sum(_area(Bbox.intersection(box, x)) for x in taken)
            )
        _move(name, OFFSETS[covered.index(min(covered))])
        taken.append(Text.get_window_extent(name))


def _move(name: Annotation, offset: tuple[int, int, int]) -> None:
    right, up, distance = offset
    name.xyann = (right * distance, up * distance)
    name.set(
        horizontalalignment={-1: 'right', 0: 'center', 1: 'left'}[right],
        verticalalignment={-1: 'top', 0: 'center', 1: 'bottom'}[up],
    )


def _area(box: BboxBase | None) -> float:
    return 0.0 if box is None else box.width * box.height


def marker_of(model: str) -> tuple[str, str]:
    """Marker and colour of a model, by its name."""
    return next(
        (x for start, x in MARKERS.items() if model.startswith(start)),
        OTHER_MARKER,
    )


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto-optimal points, the fastest first.

    Args:
        points: Pairs of time and accuracy.
    """
    front: list[tuple[float, float]] = []
    for time, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((time, accuracy))
    return front


def growth_figure(results: Sequence[Result]) -> Figure | None:
    """Draw time and memory against the side of the image, log-log.

    There is a column of panels for each case that was measured at several
    sizes.

    Returns:
        None if no case was measured at two sizes or nothing was measured.
    """
    groups = group_by_size(results)
    if not groups:
        return None
    rows = [r for group in groups.values() for x in group for r in x.rows]
    quantities = {
        unit: value
        for unit, value in (
            ('ms', lambda row: row.median_ms),
            ('peak MB', lambda row: row.peak and row.peak / 1e6),
            ('saved MB', lambda row: row.saved and row.saved / 1e6),
        )
        if any(map(value, rows))
    }
    if not quantities:
        return None
    figure, axes = subplots(len(groups), len(quantities))
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
    """Draw a line for each model.

    Returns:
        Whether any model has a value.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in group:
        for row in result.rows:
            if value(row):
                points = lines.setdefault(row.model, [])
                points.append((image_side(result), value(row)))
    if not lines:
        return False
    for name, points in lines.items():
        marker, _ = marker_of(name)
        ax.plot(*zip(*points, strict=True), f'{marker}-', label=name)
    ax.set_xscale('log')
    ax.set_yscale('log')
    _label_powers(ax.yaxis)
    ax.tick_params(which='both', labelsize=7)
    sides = sorted({image_side(result) for result in group})
    ax.set_xticks(sides, [f'{x:.0f}' for x in sides])
    ax.set_xticks([], minor=True)
    ax.legend(fontsize=7)
    ax.set_xlabel('side of the image, pixels')
    return True


def _label_powers(axis: Axis) -> None:
    """Label 1, 2 and 5 times each power of 10 on a logarithmic axis."""
    axis.set_major_formatter('{x:g}')
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter('{x:g}')


def subplots(
    columns: int, lines: int, size: tuple[float, float] = (4.5, 3.5)
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a grid of axes.

    Args:
        columns: Number of columns.
        lines: Number of lines.
        size: Width and height of each axes, in inches. Default: 4.5 x 3.5.

    Returns:
        The figure, and its axes ``(lines, columns)``.
    """
    width, height = size
    figure = Figure(
        figsize=(width * columns, height * lines), layout='constrained'
    )
    return figure, figure.subplots(lines, columns, squeeze=False)


def save(figure: Figure, path: Path, machine: dict[str, str]) -> None:
    """Write a figure as PNG, with the machine as a line below."""
    figure.supxlabel(textwrap.fill(describe(machine), 90), fontsize=6)
    figure.savefig(path, dpi=160)
