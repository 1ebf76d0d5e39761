"""Results written to a folder: CSV, Markdown and pictures."""

from __future__ import annotations

import csv
from pathlib import Path

from mmefficientmod.benchmark.figures import (
    growth_figure,
    latency_figure,
    save,
)
from mmefficientmod.benchmark.results import Result, Results
from mmefficientmod.benchmark.tables import (
    attention_crossover,
    describe,
    failures,
    heading,
    markdown_table,
    overview,
    result_cells,
    result_values,
)


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
            for values in result_values(result):
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
            f'**{heading(result)}**\n\n{markdown_table(result_cells(result))}\n'
        )
        parts += [f'{text}\n' for text in failures(result)]
    parts += [f'{text}\n' for text in attention_crossover(results.results)]
    return '\n'.join(parts)
