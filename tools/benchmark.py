"""Measure speed and memory of models side by side, in one run.

A model is a name, a pattern of names such as 'repvit_*', timm:NAME,
official:PATH:NAME (the authors' file and a variant), FILE.py:CLASS, the dict
of a registered backbone, or a config.
Models take turns round by round; what fails is a row with the reason.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import Progress

from mmefficientmod import cli
from mmefficientmod.benchmark.cases import DTYPES, MODES, BenchmarkCase
from mmefficientmod.benchmark.measure import Settings, measure_case
from mmefficientmod.benchmark.model_specs import (
    WITHIN,
    ModelSpec,
    expand,
    find_model_specs,
)
from mmefficientmod.benchmark.report import write
from mmefficientmod.benchmark.results import Result, Results
from mmefficientmod.benchmark.tables import (
    attention_crossover,
    describe,
    failures,
    rounds_of,
    table,
)
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import input_size
from mmefficientmod.environment import machine
from mmefficientmod.swap.names import BACKBONES

# Outputs that should be equal may differ by this much, in fp32.
TOLERANCE = 1e-5
# In columns, where the output is no terminal.
WIDTH = 140


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.tool_parser(__doc__)
    parser.add_argument(
        'models',
        nargs='+',
        metavar='MODEL',
        help=f'{", ".join(BACKBONES)}, or as said above',
    )
    parser.add_argument(
        '--within',
        metavar='CONFIG',
        help='measure the whole model of this config with each backbone in: '
        f'{", ".join(WITHIN)}, a path, or a stock config such as '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    )
    parser.add_argument(
        '--mode',
        nargs='+',
        choices=MODES,
        default=['infer'],
        help='infer is a forward pass, train forward and backward, compile '
        'and compile-train the same by torch.compile (default: infer)',
    )
    parser.add_argument(
        '--inputs',
        nargs='+',
        metavar='BATCHxSIDE',
        help='or BATCHxHEIGHTxWIDTH (default: 1x224; 2x512 within fpn, '
        '1x800x1333 within mask_rcnn)',
    )
    parser.add_argument('--device', default='cpu', help='cpu (default), cuda')
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=DTYPES,
        default=['fp32'],
        help='other than fp32 (default) means autocast',
    )
    parser.add_argument(
        '--threads',
        nargs='+',
        type=int,
        default=[torch.get_num_threads()],
        metavar='N',
        help='of the CPU (default: %(default)s)',
    )
    parser.add_argument(
        '--rounds',
        type=int,
        default=9,
        metavar='N',
        help='how often each model has its turn (default: 9)',
    )
    parser.add_argument(
        '--baseline',
        nargs='+',
        metavar='MODEL',
        help='what ratios and differences refer to: of several, to that '
        'with the same weights, or else the first (default: the first model)',
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='have the models that can (switch_to_deploy) fold what can be '
        'folded for inference',
    )
    parser.add_argument(
        '--breakdown',
        action='store_true',
        help='time the kinds of parts of EfficientMod, too, in infer',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='write JSON, CSV, Markdown and pictures there; a finished case '
        'that is there already is not measured again',
    )
    parser.add_argument(
        '--fresh',
        action='store_true',
        help='measure all anew and forget what --out has',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    args = parse_args(argv)
    # Both say of each backbone what they did with it.
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    cases = [
        BenchmarkCase(mode, *size, dtype, threads)
        for size, mode, dtype, threads in itertools.product(
            parse_inputs(args.inputs, args.within),
            args.mode,
            args.dtype,
            args.threads,
        )
    ]
    if min(args.rounds, *args.threads) < 1:
        raise ConfigError('--rounds and --threads start at 1')
    candidates = find_model_specs(args.models, args.within)
    settings = Settings(
        device=find_device(args.device),
        rounds=args.rounds,
        baselines=find_baselines(args, candidates),
        deploy=args.deploy,
        breakdown=args.breakdown,
    )
    folder = Path(args.out) if args.out else None
    results = Results(folder, args.fresh, machine(settings.device))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(describe(results.machine), highlight=False)
    shown: list[Result] = []
    stopped = False
    try:
        for result in measure(
            candidates, cases, settings, args.within, results, console
        ):
            shown.append(result)
            console.print(table(result))
            for text in failures(result):
                console.print(text, highlight=False, markup=False)
    except KeyboardInterrupt:
        stopped = True
    for text in attention_crossover(shown):
        console.print(text, highlight=False, markup=False)
    if folder and results.results:
        for path in write(results, folder):
            console.print(f'written: {path}', highlight=False, markup=False)
    if stopped:
        raise KeyboardInterrupt
    check(shown)
    return shown


def measure(
    candidates: Sequence[ModelSpec],
    cases: Sequence[BenchmarkCase],
    settings: Settings,
    within: str | None,
    results: Results,
    console: Console,
) -> Iterator[Result]:
    """Measure case by case, or take what is finished, and show progress."""
    steps = len(candidates) * (1 + settings.rounds)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('', total=len(cases) * steps)
        for number, case in enumerate(cases):
            planned = Result.planned(candidates, case, settings, within)
            kept = results.find(planned)
            if kept is not None:
                progress.update(task, completed=(number + 1) * steps)
                yield kept
                continue

            def advance(name: str, case: BenchmarkCase = case) -> None:
                progress.update(task, advance=1, description=f'{case}: {name}')

            planned.rows, planned.finished = measure_case(
                candidates, case, settings, advance
            )
            progress.update(task, completed=(number + 1) * steps)
            if planned.finished or rounds_of(planned):
                results.add(planned)
                yield planned
            if not planned.finished:
                raise KeyboardInterrupt


def parse_inputs(
    inputs: Sequence[str] | None, within: str | None
) -> list[tuple[int, int, int]]:
    """Batches, heights and widths."""
    if inputs is None:
        if within in WITHIN:
            return [WITHIN[within][1]]
        return [
            (1, *(input_size(load_config(within)) if within else (224, 224)))
        ]
    sizes = []
    for text in inputs:
        numbers = [int(x) if x.isdecimal() else 0 for x in text.split('x')]
        if len(numbers) not in (2, 3) or min(numbers) < 1:
            raise ConfigError(
                f'--inputs {text} is neither BATCHxSIDE, such as 2x512, nor '
                'BATCHxHEIGHTxWIDTH, such as 1x800x1333'
            )
        sizes.append((numbers[0], numbers[1], numbers[-1]))
    return sizes


def find_device(name: str) -> torch.device:
    """The device, which must be there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ('cpu', 'cuda'):
        raise ConfigError(f'--device {name} is neither cpu nor cuda')
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ConfigError(
            f'--device {name}: there is no GPU that this PyTorch can use'
        )
    return device


def find_baselines(
    args: argparse.Namespace, candidates: Sequence[ModelSpec]
) -> list[str]:
    """Names of the models that others are compared with."""
    if args.baseline is None:
        return [candidates[0].name]
    names = {candidate.name: candidate.name for candidate in candidates}
    given = [name for model in args.models for name in expand(model)]
    for name, candidate in zip(given, candidates, strict=True):
        names[name] = candidate.name
    for name in args.baseline:
        if name not in names:
            raise ConfigError(
                f'--baseline {name} is none of the models, which are '
                f'{", ".join(candidate.name for candidate in candidates)}'
            )
    return [names[name] for name in args.baseline]


def check(results: Sequence[Result]) -> None:
    """Fail where outputs that should be equal are not, in fp32."""
    wrong = [
        f'{row.model} differs from {row.compared_with} by '
        f'{row.difference:.1e} of the largest value ({result.title})'
        for result in results
        for row in result.rows
        if result.case.dtype == 'fp32'
        and row.difference is not None
        and not row.difference <= TOLERANCE  # so that NaN is wrong, too
    ]
    if wrong:
        sys.exit('\n'.join(wrong))


if __name__ == '__main__':
    cli.run(main)
