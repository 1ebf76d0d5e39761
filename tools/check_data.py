"""Look at all data of a config: images, masks, boxes, labels and classes.

The exit code is 1 if anything is wrong by which a run would fail, or have
wrong results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmefficientmod import cli
from mmefficientmod.apis.data_check import DataReport, check_data
from mmefficientmod.apis.data_page import size_range, write_page
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options

WRONG = 1  # exit code
MOST_CLASSES = 30  # rows of the table in the terminal


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    cli.add_data_argument(parser)
    parser.add_argument(
        '--out',
        default='report.html',
        metavar='FILE',
        help='page with the class histograms and pictures of what is wrong '
        '(default: report.html)',
    )
    parser.add_argument(
        '--workers',
        type=int,
        metavar='NUMBER',
        help='processes (default: one for each core)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[DataReport]:
    args = parse_args(argv)
    if args.workers is not None and args.workers < 1:
        raise ConfigError('--workers must be at least 1')
    cfg = cli.load_chosen_config(args)
    apply_options(cfg, args.cfg_options)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task('images', total=None)
        reports = check_data(
            cfg,
            args.workers,
            lambda done, total: bar.update(task, advance=done, total=total),
        )
    if not reports:
        raise ConfigError(f'{args.config} has no data sets')
    show(reports)
    write_page(Path(args.out), reports, f'Data of {args.config}')
    print(f'pictures and class histograms: {args.out}')
    if any(report.findings.errors for report in reports):
        sys.exit(WRONG)
    return reports


def show(reports: Sequence[DataReport]) -> None:
    """Print tables of images and classes, and what is wrong."""
    console = Console(width=100)
    table = Table('data loader', 'images', 'sizes', 'errors', 'warnings')
    for report in reports:
        found = report.findings
        table.add_row(
            report.loader,
            f'{len(report.sizes):,}',
            size_range(report).removeprefix('of '),
            str(len(found.errors)),
            str(len(found.warnings)),
        )
    console.print(table)
    _show_classes(console, reports)
    for report in reports:
        for name, sentences in (
            ('error', report.findings.errors),
            ('warning', report.findings.warnings),
        ):
            for sentence in sentences:
                print(f'{name}: {sentence}')


def _show_classes(console: Console, reports: Sequence[DataReport]) -> None:
    names = list(dict.fromkeys(n for r in reports for n in r.counts))
    if not names:
        return
    table = Table('class', *(f'{r.loader}, {r.kind}' for r in reports))
    for name in names[:MOST_CLASSES]:
        table.add_row(
            name, *(f'{report.counts.get(name, 0):,}' for report in reports)
        )
    if len(names) > MOST_CLASSES:
        table.add_row(f'and {len(names) - MOST_CLASSES} more, in the page')
    console.print(table)


if __name__ == '__main__':
    cli.run(main)
