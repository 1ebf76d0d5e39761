"""Trained models side by side: a table, files and a figure of the curves."""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmefficientmod.benchmark.figures import marker_of, save, subplots
from mmefficientmod.benchmark.tables import (
    Column,
    describe,
    markdown_table,
    table_cells,
)
from mmefficientmod.benchmark.training.runs import MINI, WARM_UP, Recipe, Run

# The loss varies between iterations: the curve has the means of this many
# consecutive intervals.
LOSS_INTERVALS = 10


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _largest_in_millions(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return 1e-6 * max(known) if known else None


# Values are computed from all runs of a model and from its finished ones.
COLUMNS = (
    Column('model', 'model', '', lambda runs, done: runs[0].model),
    Column(
        'miou', 'mIoU', '.2f',
        lambda runs, done: _mean([run.final_miou for run in done])),
    Column(
        'miou_std', '±', '.2f',
        lambda runs, done: _deviation([run.final_miou for run in done])),
    Column(
        'seconds', 's/iter', '.3f',
        lambda runs, done: _median([run.seconds for run in done])),
    Column(
        'memory_mb', 'MB', '.1f',
        lambda runs, done: _largest_in_millions([x.memory for x in done])),
    Column(
        'params_m', 'M params', '.2f',
        lambda runs, done: _largest_in_millions([x.params for x in done])),
    Column(
        'seeds', 'seeds', '',
        lambda runs, done: ' '.join(str(run.seed) for run in done) or None),
    Column(
        'error', 'failed', '',
        lambda runs, done: '; '.join(failures(runs)) or None),
)  # fmt: skip
# Errors have lines of their own, see failures().
TABLE_COLUMNS = COLUMNS[:-1]
# Keys of the columns, the most important first: where a terminal is narrow,
# those at the end are left out.
PRIORITY = (
    'model', 'miou', 'seconds', 'memory_mb', 'miou_std', 'params_m', 'seeds',
)  # fmt: skip


def model_values(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each model, the values of all columns by their keys."""
    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        done = [run for run in own if run.finished]
        rows.append({x.key: x.value(own, done) for x in COLUMNS})
    return rows


def failures(runs: Sequence[Run]) -> list[str]:
    """A line for each run that failed, with the error."""
    return [
        f'{run.model}, seed {run.seed}: {run.error}'
        for run in runs
        if run.error
    ]


def outcome(run: Run) -> str:
    """The result of a run in a few words."""
    if run.error:
        return f'failed, {run.error}'
    return f'mIoU {run.final_miou:.2f}, {run.seconds:.3f} s an iteration'


def caption(recipe: Recipe, cuda: bool) -> str:
    """What was trained, and what the columns of the table mean.

    Args:
        recipe: How the models were trained.
        cuda: Whether on a GPU, where memory is measured in another way.
    """
    data = (
        'the generated miniature of ADE20K'
        if recipe.on == MINI
        else Path(recipe.on).as_posix()
    )
    crop = f', crops of {recipe.crop}x{recipe.crop}' if recipe.crop else ''
    memory = (
        "the allocator's peak"
        if cuda
        else 'what autograd saves in a step for the backward pass, without '
        'the weights'
    )
    return (
        f'Semantic FPN on {data}, trained from random weights for '
        f'{recipe.iters} iterations{crop}, {recipe.threads} thread'
        f'{"s" * (recipe.threads > 1)}. mIoU: per cent, over the classes '
        'present, mean and standard deviation (±) over the seeds; s/iter: '
        f'seconds of an iteration, median without the first {WARM_UP}; MB: '
        f'{memory}. Such short trainings on few images show how fast a model '
        'learns these images, and nothing about ADE20K.'
    )


def write(
    runs: Sequence[Run], text: str, machine: dict[str, str], folder: Path
) -> list[Path]:
    """Write the table as CSV, Markdown and JSON, and a figure of the curves.

    Args:
        runs: All runs.
        text: The caption of the table; see :func:`caption`.
        machine: Machine and versions of the runs.
        folder: Where the files are written; made if it does not exist.

    Returns:
        The files that were written: ``results.csv``, ``.md``, ``.json`` and,
        if any run is finished, ``curves.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = model_values(runs)
    paths = [folder / f'results.{x}' for x in ('csv', 'md', 'json')]
    with paths[0].open('w', newline='') as file:
        writer = csv.DictWriter(file, [*rows[0], *machine])
        writer.writeheader()
        writer.writerows(row | machine for row in rows)
    parts = [
        describe(machine),
        text,
        markdown_table(table_cells(TABLE_COLUMNS, rows)),
        *failures(runs),
    ]
    paths[1].write_text('\n\n'.join(parts) + '\n')
    content = dict(
        machine=machine,
        caption=text,
        rows=rows,
        runs=[dataclasses.asdict(run) for run in runs],
    )
    paths[2].write_text(json.dumps(content, indent=1) + '\n')
    figure = folder / 'curves.png'
    figure.unlink(missing_ok=True)  # of earlier results
    done = [run for run in runs if run.finished]
    if done:
        save(curves(done), figure, machine)
        paths.append(figure)
    return paths


def curves(runs: Sequence[Run]) -> Figure:
    """Draw mIoU and loss of each model against the iterations.

    The line is the mean over the seeds, the band reaches from the lowest
    value to the highest.

    Args:
        runs: Finished runs.
    """
    figure, axes = subplots(2, 1)
    left, right = axes[0]
    figure.set_size_inches(12, 5)
    by_model: dict[str, list[Run]] = {}
    for run in runs:
        by_model.setdefault(run.model, []).append(run)
    # The legend is in the order of drawing: the best first.
    best_first = sorted(
        by_model,
        key=lambda x: -statistics.fmean(r.final_miou for r in by_model[x]),
    )
    colours = colormaps['tab20']
    for i, model in enumerate(best_first):
        style = dict(
            color=colours(i % colours.N),
            marker=marker_of(model)[0],
            label=model,
        )
        own = by_model[model]
        _draw(left, [list(r.miou) for r in own],
              [list(r.miou.values()) for r in own], style)  # fmt: skip
        smooth = [_smooth(r.losses) for r in own]
        _draw(right, [x for x, _ in smooth], [y for _, y in smooth], style)
    left.set_ylabel('mIoU over the classes present, %')
    right.set_ylabel('loss')
    for ax in (left, right):
        ax.set_xlabel('iterations')
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right center', fontsize=7)
    return figure


def _draw(
    ax: Axes,
    steps: Sequence[Sequence[float]],
    runs: Sequence[Sequence[float]],
    style: dict[str, Any],
) -> None:
    """Draw the mean of several runs as a line, and their range as a band.

    Args:
        ax: Where to draw.
        steps: For each run, the iterations; the same in all.
        runs: For each run, the values at these iterations.
        style: Colour, marker and label.
    """
    array = np.array(runs)
    ax.plot(steps[0], array.mean(0), **style)
    ax.fill_between(
        steps[0],
        array.min(0),
        array.max(0),
        color=style['color'],
        alpha=0.2,
        linewidth=0,
    )


def _smooth(losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average the losses over consecutive intervals.

    Returns:
        The middle of each interval, in iterations, and the mean loss in it.
    """
    intervals = np.array_split(
        np.arange(len(losses)), min(len(losses), LOSS_INTERVALS)
    )
    array = np.array(losses)
    return (
        [float(x.mean()) + 1 for x in intervals],
        [float(array[x].mean()) for x in intervals],
    )
