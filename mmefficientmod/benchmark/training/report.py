"""Trained models side by side: a table, files and a picture of the curves."""

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

from mmefficientmod.benchmark.figures import mark, panels, save
from mmefficientmod.benchmark.tables import (
    Column,
    cells,
    describe,
    markdown_table,
)
from mmefficientmod.benchmark.training.runs import MINI, WARM_UP, Recipe, Run

# Losses of single iterations jump: means of as many parts are drawn.
PARTS = 10


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _millions(values: Sequence[float | None]) -> float | None:
    """Of the largest."""
    known = [value for value in values if value is not None]
    return 1e-6 * max(known) if known else None


# Of all runs of a model, and of those that are finished, if any.
COLUMNS = (
    Column('model', 'model', '', lambda own, done: own[0].model),
    Column(
        'miou', 'mIoU', '.2f',
        lambda own, done: _mean([run.final_miou for run in done])),
    Column(
        'miou_std', '±', '.2f',
        lambda own, done: _spread([run.final_miou for run in done])),
    Column(
        'seconds', 's/iter', '.3f',
        lambda own, done: _median([run.seconds for run in done])),
    Column(
        'memory_mb', 'MB', '.1f',
        lambda own, done: _millions([run.memory for run in done])),
    Column(
        'params_m', 'M params', '.2f',
        lambda own, done: _millions([run.params for run in done])),
    Column(
        'seeds', 'seeds', '',
        lambda own, done: ' '.join(str(run.seed) for run in done) or None),
    Column(
        'error', 'failed', '',
        lambda own, done: '; '.join(failures(own)) or None),
)  # fmt: skip


def values(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A dict for each model, by the keys of the columns, in their order."""
    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        done = [run for run in own if run.finished]
        rows.append({x.key: x.value(own, done) for x in COLUMNS})
    return rows


def failures(runs: Sequence[Run]) -> list[str]:
    """A line for each run that failed."""
    return [
        f'{run.model}, seed {run.seed}: {run.error}'
        for run in runs
        if run.error
    ]


def outcome(run: Run) -> str:
    """A run in a few words."""
    if run.error:
        return f'failed, {run.error}'
    return f'mIoU {run.final_miou:.2f}, {run.seconds:.3f} s an iteration'


def run_cells(runs: Sequence[Run]) -> list[list[str]]:
    """Titles and written values; for reasons, see :func:`failures`."""
    shown = [column for column in COLUMNS if column.key != 'error']
    return cells(shown, values(runs))


def caption(recipe: Recipe, cuda: bool) -> str:
    """What was trained, and what the table does not say."""
    data = (
        'the generated miniature of ADE20K'
        if recipe.on == MINI
        else Path(recipe.on).as_posix()
    )
    crop = f', crops of {recipe.crop}x{recipe.crop}' if recipe.crop else ''
    memory = (
        "the allocator's peak"
        if cuda
        else 'what autograd saves for the backward pass, without weights'
    )
    return (
        f'Semantic FPN on {data}, trained from random weights for '
        f'{recipe.iters} iterations{crop}, {recipe.threads} thread'
        f'{"s" * (recipe.threads > 1)}. mIoU in per cent over the classes '
        'present, mean and standard deviation over the seeds; s/iter: median '
        f'after the first {WARM_UP}; MB: '
        f'{memory}. So few images and iterations say how fast a model learns '
        'them, and nothing about ADE20K.'
    )


def write(
    runs: Sequence[Run], text: str, machine: dict[str, str], folder: Path
) -> list[Path]:
    """Write a table as CSV, Markdown and JSON, and a picture of the curves.

    Args:
        runs: What to show.
        text: What was trained; see :func:`caption`.
        machine: On what.
        folder: Where to; it is made.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = values(runs)
    paths = [folder / f'results.{x}' for x in ('csv', 'md', 'json')]
    with paths[0].open('w', newline='') as file:
        writer = csv.DictWriter(file, [*rows[0], *machine])
        writer.writeheader()
        writer.writerows(row | machine for row in rows)
    parts = [
        describe(machine),
        text,
        markdown_table(run_cells(runs)),
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
    picture = folder / 'curves.png'
    picture.unlink(missing_ok=True)  # one of earlier results
    done = [run for run in runs if run.finished]
    if done:
        save(curves(done), picture, machine)
        paths.append(picture)
    return paths


def curves(runs: Sequence[Run]) -> Figure:
    """mIoU and loss against iterations, for each model.

    The line is the mean over the seeds, the band reaches from the lowest to
    the highest.

    Args:
        runs: Finished ones.
    """
    figure, ((left, right),) = panels(2, 1)
    figure.set_size_inches(12, 5)
    # The legend is read from the best down.
    models = {run.model: [] for run in runs}
    for run in runs:
        models[run.model].append(run)
    best = sorted(
        models,
        key=lambda x: -statistics.fmean(r.final_miou for r in models[x]),
    )
    colours = colormaps['tab20'].colors
    for i, model in enumerate(best):
        style = dict(
            color=colours[i % len(colours)],
            marker=mark(model)[0],
            label=model,
        )
        own = models[model]
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
    """A line and a band; all runs have the same steps."""
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
    """Means of the losses, and in the middle of which iterations."""
    parts = np.array_split(np.arange(len(losses)), min(len(losses), PARTS))
    array = np.array(losses)
    return (
        [float(part.mean()) + 1 for part in parts],
        [float(array[part].mean()) for part in parts],
    )
