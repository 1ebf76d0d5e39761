"""Results written to a folder: CSV, Markdown and figures."""

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
    result_values,
    table_cells,
    table_columns,
)


def write(results: Results, folder: Path) -> list[Path]:
    """Write all results as CSV, Markdown and figures.

    Args:
        results: The results.
        folder: Where the files are written; made if it does not exist.

    Returns:
        The files that were written: ``results.csv``, ``results.md`` and, if
        there is anything to draw, ``latency.png`` and ``growth.png``.
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
        path.unlink(missing_ok=True)  # of earlier results
        if figure is not None:
            save(figure, path, results.machine)
            written.append(path)
    return written


def _write_csv(results: Results, path: Path) -> None:
    with path.open('w', newline='') as file:
        writer = None
        for result in results.results:
            setup = {
                **vars(result.case),
                'device': result.device,
                'within': result.within,
                'deploy': result.deploy,
                'fast_linear': result.fast_linear,
            }
            for values in result_values(result):
                row = setup | values | results.machine
                if writer is None:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                writer.writerow(row)


def markdown(results: Results) -> str:
    """All results as Markdown: tables of all cases, then one for each."""
    parts = [f'{describe(results.machine)}\n']
    groups: dict[str | None, list[Result]] = {}
    for result in results.results:
        groups.setdefault(result.within, []).append(result)
    for within, group in groups.items():
        if len(group) > 1:
            models = f'within {within}' if within else 'alone'
            baselines = dict.fromkeys(x for r in group for x in r.baselines)
            parts.append(
                f'**All cases, {models}: ms (ratio to '
                f'{" or ".join(baselines)})**\n\n'
                f'{markdown_table(overview(group))}\n'
            )
    for result in results.results:
        cells = table_cells(table_columns(result), result_values(result))
        parts.append(f'**{heading(result)}**\n\n{markdown_table(cells)}\n')
        parts += [f'{text}\n' for text in failures(result)]
    parts += [f'{text}\n' for text in attention_crossover(results.results)]
    return '\n'.join(parts)
