"""Train Semantic FPN with each backbone by the same recipe, and compare.

Trains from random weights, on a generated miniature or on a data set in
ADE20K's layout. Each run is a process of its own. A model that fails gets a
row with the error. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.device import get_device
from rich.console import Console
from rich.progress import Progress

from mmefficientmod import cli
from mmefficientmod.benchmark.model_specs import find_model_specs
from mmefficientmod.benchmark.tables import describe
from mmefficientmod.benchmark.terminal import (
    print_line,
    print_prose,
    print_table,
)
from mmefficientmod.benchmark.training import report as training_report
from mmefficientmod.benchmark.training import runs as training
from mmefficientmod.benchmark.training.runs import Recipe, Run
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.environment import machine
from mmefficientmod.swap.names import BACKBONES, resolve_backbone

# Ours, and of each other family the size that is closest to our s.
DEFAULT = (
    'efficientmod_xxs', 'efficientmod_xs', 'efficientmod_s',
    'efficientmod_s_conv', 'mbconv_s', 'edgevit_s', 'efficientformer_l1',
    'efficientformerv2_s2', 'fasternet_t2', 'focalnet_tiny_lrf',
    'mobilenetv2_140', 'mobilevit_s', 'mobilevitv2_100', 'poolformer_s12',
    'pvt_v2_b1', 'repvit_m1_1', 'resnet18', 'van_small',
)  # fmt: skip


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.tool_parser(__doc__)
    parser.add_argument(
        'backbones',
        nargs='*',
        default=DEFAULT,
        metavar='BACKBONE',
        help=f'{", ".join(BACKBONES)}, timm:NAME for a model of timm, or the '
        f'dict of a registered backbone (default: {", ".join(DEFAULT)})',
    )
    parser.add_argument(
        '--on',
        required=True,
        metavar='mini|PATH',
        help='the generated miniature, or the folder of a data set in '
        "ADE20K's layout",
    )
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[0, 1, 2],
        metavar='SEED',
        help='each backbone is trained once with each seed (default: 0 1 2)',
    )
    parser.add_argument(
        '--iters',
        type=int,
        default=60,
        metavar='N',
        help='iterations of each training (default: %(default)s)',
    )
    parser.add_argument(
        '--crop',
        type=int,
        metavar='SIDE',
        help='side of the crops, to which the shorter side of images is '
        'scaled (default: 512; the miniature: crops of 80, images of 96)',
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=torch.get_num_threads(),
        metavar='N',
        help='CPU threads for one operator (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        default='work_dirs/compare',
        metavar='DIR',
        help='folder of the runs, of the table as JSON, CSV and Markdown, and '
        'of a figure; finished runs in it are not repeated (default: '
        '%(default)s)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Run]:
    args = parse_args(argv)
    if min(args.iters, args.threads, args.crop or 1) < 1:
        raise ConfigError('--iters, --threads and --crop must be 1 or more')
    if min(args.seeds) < 0 or len({*args.seeds}) < len(args.seeds):
        raise ConfigError('--seeds must be different numbers, 0 or more')
    for backbone in args.backbones:
        resolve_backbone(backbone)  # refuses what tools/train.py would
    recipe = Recipe(args.on, args.iters, args.crop, args.threads)
    device = torch.device(get_device())
    facts = machine(device)
    specs = find_model_specs(args.backbones, training.CONFIG)
    planned = training.plan(specs, args.seeds, recipe, facts)
    console = Console()
    print_prose(console, describe(facts))
    out = Path(args.out)
    runs: list[Run] = []
    try:
        train_all(planned, out, console, runs)
    finally:
        if runs:
            text = training_report.caption(recipe, device.type == 'cuda')
            console.print()
            print_table(
                console,
                training_report.TABLE_COLUMNS,
                training_report.model_values(runs),
                training_report.PRIORITY,
                f'all columns are in {out / "results.md"}',
            )
            print_prose(console, text)
            for line in training_report.failures(runs):
                print_line(console, line)
            for path in training_report.write(runs, text, facts, out):
                print_line(console, f'written: {path}')
    return runs


def train_all(
    planned: Sequence[Run], out: Path, console: Console, runs: list[Run]
) -> None:
    """Make each run that is not finished already, and show progress.

    Args:
        planned: The runs to make.
        out: Folder of all runs.
        console: Shows the progress.
        runs: Gets the runs, one by one, so that those before Ctrl-C are
            known.
    """
    script = Path(__file__).with_name('train.py')
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('', total=len(planned))
        for number, run in enumerate(planned):
            title = f'{run.model}, seed {run.seed}'
            progress.update(task, completed=number, description=title)
            finished = training.find(run, out)
            if finished is not None:
                runs.append(finished)
                continue

            def advance(share: float, number: int = number) -> None:
                progress.update(task, completed=number + share)

            training.train(run, out, script, advance)
            runs.append(run)
            print_line(console, f'{title}: {training_report.outcome(run)}')


if __name__ == '__main__':
    cli.run(main)
