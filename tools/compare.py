"""Train Semantic FPN with each backbone in the same way, and compare.

From random weights, on a generated miniature or on a data set in ADE20K's
layout. Each run has a process of its own; what fails is a row with the reason,
and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.device import get_device
from rich.console import Console
from rich.progress import Progress

from mmefficientmod import cli
from mmefficientmod.benchmark.model_specs import find_model_specs
from mmefficientmod.benchmark.tables import describe, rich_table
from mmefficientmod.benchmark.training import report as training_report
from mmefficientmod.benchmark.training import runs as training
from mmefficientmod.benchmark.training.runs import Recipe, Run
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.environment import machine
from mmefficientmod.swap.names import BACKBONES, resolve_backbone

# Ours, and one size of each other family, about as large as our s.
DEFAULT = (
    'efficientmod_xxs', 'efficientmod_xs', 'efficientmod_s',
    'efficientmod_s_conv', 'mbconv_s', 'edgevit_s', 'efficientformer_l1',
    'efficientformerv2_s2', 'fasternet_t2', 'focalnet_tiny_lrf',
    'mobilenetv2_140', 'mobilevit_s', 'mobilevitv2_100', 'poolformer_s12',
    'pvt_v2_b1', 'repvit_m1_1', 'resnet18', 'van_small',
)  # fmt: skip
# In columns, where the output is no terminal.
WIDTH = 120


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.tool_parser(__doc__)
    parser.add_argument(
        'backbones',
        nargs='*',
        default=DEFAULT,
        metavar='BACKBONE',
        help=f'{", ".join(BACKBONES)}, or the dict of another registered one '
        f'(default: {", ".join(DEFAULT)})',
    )
    parser.add_argument(
        '--on',
        required=True,
        metavar='mini|PATH',
        help='the generated miniature, or the folder of a data set in '
        "ADE20K's layout",
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='SEED'
    )
    parser.add_argument(
        '--iters',
        type=int,
        default=60,
        metavar='N',
        help='of each training (default: %(default)s)',
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
        help='of the CPU (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        default='work_dirs/compare',
        metavar='DIR',
        help='for the runs, JSON, CSV, Markdown and a picture; a finished '
        'run that is there is not made again (default: %(default)s)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Run]:
    args = parse_args(argv)
    if min(args.iters, args.threads, args.crop or 1) < 1:
        raise ConfigError('--iters, --threads and --crop start at 1')
    if min(args.seeds) < 0 or len({*args.seeds}) < len(args.seeds):
        raise ConfigError('--seeds start at 0, and none is given twice')
    for backbone in args.backbones:
        resolve_backbone(backbone)  # a file's class is no --backbone
    recipe = Recipe(args.on, args.iters, args.crop, args.threads)
    device = torch.device(get_device())
    facts = machine(device)
    candidates = find_model_specs(args.backbones, training.CONFIG)
    planned = training.plan(candidates, args.seeds, recipe, facts)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(describe(facts), highlight=False)
    runs: list[Run] = []
    try:
        make(planned, Path(args.out), console, runs)
    finally:
        if runs:
            text = training_report.caption(recipe, device.type == 'cuda')
            console.print(rich_table('', training_report.run_cells(runs)))
            for line in (
                text,
                *training_report.failures(runs),
                *(
                    f'written: {path}'
                    for path in training_report.write(
                        runs, text, facts, Path(args.out)
                    )
                ),
            ):
                console.print(line, highlight=False, markup=False)
    return runs


def make(
    planned: Sequence[Run], out: Path, console: Console, runs: list[Run]
) -> None:
    """Make run after run, or take what is finished, and show progress.

    Args:
        planned: What to make.
        out: Where to.
        console: Where to show it.
        runs: Gets them, one by one.
    """
    script = Path(__file__).with_name('train.py')
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('', total=len(planned))
        for number, run in enumerate(planned):
            title = f'{run.model}, seed {run.seed}'
            progress.update(task, completed=number, description=title)
            kept = training.find(run, out)
            if kept is not None:
                runs.append(kept)
                continue

            def advance(share: float, number: int = number) -> None:
                progress.update(task, completed=number + share)

            training.train(run, out, script, advance)
            runs.append(run)
            console.print(
                f'{title}: {training_report.outcome(run)}',
                highlight=False,
                markup=False,
            )


if __name__ == '__main__':
    cli.run(main)
