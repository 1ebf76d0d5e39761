"""Measure time and memory of models side by side, in one run.

A model is a name, a pattern of names such as 'repvit_*', timm:NAME,
official:PATH:NAME (the authors' file and a variant), FILE.py:CLASS, the dict
of a registered backbone, or a config. NAME@LAYOUT is exported in that memory
layout, such as efficientmod_s@today, the plain form.
The models take turns, round by round. A model that fails gets a row with the
error, and the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
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
from mmefficientmod.benchmark.cases import (
    DTYPES,
    MODES,
    BenchmarkCase,
    Settings,
)
from mmefficientmod.benchmark.measure import measure_case
from mmefficientmod.benchmark.model_specs import (
    HOSTS,
    ModelSpec,
    expand,
    find_model_specs,
)
from mmefficientmod.benchmark.report import write
from mmefficientmod.benchmark.results import Result, Results
from mmefficientmod.benchmark.tables import (
    PRIORITY,
    attention_crossover,
    describe,
    failures,
    heading,
    result_values,
    table_columns,
)
from mmefficientmod.benchmark.terminal import (
    print_line,
    print_prose,
    print_table,
)
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import input_size
from mmefficientmod.deploy.layouts import LAYOUTS
from mmefficientmod.environment import machine
from mmefficientmod.models.layers import matmul
from mmefficientmod.swap.names import BACKBONES

# Largest relative difference in fp32 of outputs that should be equal.
TOLERANCE = 1e-5


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.tool_parser(__doc__)
    parser.add_argument(
        'models',
        nargs='+',
        metavar='MODEL',
        help=f'{", ".join(BACKBONES)}, or another model, see above',
    )
    parser.add_argument(
        '--within',
        metavar='CONFIG',
        help='swap each backbone into this config, and measure the whole '
        f'model: {", ".join(HOSTS)}, a path, or a stock config such as '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    )
    parser.add_argument(
        '--mode',
        nargs='+',
        choices=MODES,
        default=['infer'],
        help='infer: forward pass; train: forward and backward pass; compile '
        'and compile-train: the same, compiled by torch.compile; cuda-graph: '
        'forward pass recorded as a CUDA graph; onnxruntime, openvino, ncnn: '
        'forward pass of the exported model, which is folded (default: infer)',
    )
    parser.add_argument(
        '--inputs',
        nargs='+',
        metavar='BATCHxSIDE',
        help='number and size of the images; BATCHxHEIGHTxWIDTH if they are '
        'not square (default: 1x224; 2x512 within fpn, 1x800x1333 within '
        'mask_rcnn, the size of its config for another whole model)',
    )
    parser.add_argument(
        '--device', default='cpu', help='cpu (default) or cuda'
    )
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=DTYPES,
        default=['fp32'],
        help='data type; bf16 and fp16 run under autocast (default: fp32)',
    )
    parser.add_argument(
        '--threads',
        nargs='+',
        type=int,
        default=[torch.get_num_threads()],
        metavar='N',
        help='CPU threads for one operator (default: %(default)s)',
    )
    parser.add_argument(
        '--rounds',
        type=int,
        default=9,
        metavar='N',
        help='how often each model is timed (default: 9)',
    )
    parser.add_argument(
        '--baseline',
        nargs='+',
        metavar='MODEL',
        help='the models that the others are compared with; of several, the '
        'one with the same weights counts, or else the first (default: the '
        'first model)',
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='fold models for inference, if they have switch_to_deploy()',
    )
    cli.add_matmul_argument(parser)
    cli.add_fast_linear_argument(parser)
    parser.add_argument(
        '--layout',
        choices=LAYOUTS,
        help='memory layout of exported EfficientMods that name none '
        '(default: the best one for each)',
    )
    parser.add_argument(
        '--breakdown',
        action='store_true',
        help='in infer, also time each kind of block of EfficientMod',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='write all columns as JSON, CSV and Markdown, and figures; '
        'finished cases in this folder are not measured again',
    )
    parser.add_argument(
        '--fresh',
        action='store_true',
        help='ignore and replace the results that --out has',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    args = parse_args(argv)
    matmul.use_library(args.matmul)
    with _warnings_only(MMLogger.get_current_instance()):
        return run(args)


@contextlib.contextmanager
def _warnings_only(logger: MMLogger) -> Iterator[None]:
    """Hide what each swap of a backbone logs, and all else but warnings."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def run(args: argparse.Namespace) -> list[Result]:
    """Measure what the arguments say, and show it.

    Raises:
        ConfigError: If an argument is wrong.
        SystemExit: If outputs that should be equal are not.
    """
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
        raise ConfigError('--rounds and --threads must be 1 or more')
    specs = find_model_specs(args.models, args.within)
    if args.layout:
        specs = [s if s.layout else s.laid_out(args.layout) for s in specs]
    settings = Settings(
        device=find_device(args.device),
        rounds=args.rounds,
        baselines=find_baselines(args, specs),
        deploy=args.deploy,
        breakdown=args.breakdown,
        fast_linear=args.fast_linear,
    )
    folder = Path(args.out) if args.out else None
    setup = machine(settings.device) | dict(matmul=matmul.library())
    results = Results(folder, args.fresh, setup)
    console = Console()
    print_prose(console, describe(results.machine))
    shown: list[Result] = []
    stopped = False
    try:
        for result in measure(
            specs, cases, settings, args.within, results, console
        ):
            shown.append(result)
            show(result, console, folder)
    except KeyboardInterrupt:
        stopped = True
    for sentence in attention_crossover(shown):
        print_prose(console, sentence)
    if folder and results.results:
        for path in write(results, folder):
            print_line(console, f'written: {path}')
    if stopped:
        raise KeyboardInterrupt
    check(shown)
    return shown


def show(result: Result, console: Console, folder: Path | None) -> None:
    """Print the table of a result, and what failed."""
    print_prose(console, f'\n{heading(result)}\n')
    elsewhere = (
        f'all columns are in {folder / "results.md"}'
        if folder
        else '--out DIR writes all columns'
    )
    print_table(
        console,
        table_columns(result),
        result_values(result),
        PRIORITY,
        elsewhere,
    )
    for line in failures(result):
        print_line(console, line)


def measure(
    specs: Sequence[ModelSpec],
    cases: Sequence[BenchmarkCase],
    settings: Settings,
    within: str | None,
    results: Results,
    console: Console,
) -> Iterator[Result]:
    """Measure each case that is not finished already, and show progress.

    Raises:
        KeyboardInterrupt: If Ctrl-C ended the rounds of a case, after the
            result of its complete rounds.
    """
    steps = len(specs) * (1 + settings.rounds)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('', total=len(cases) * steps)
        for number, case in enumerate(cases):
            planned = Result.planned(specs, case, settings, within)
            finished = results.find(planned)
            if finished is not None:
                progress.update(task, completed=(number + 1) * steps)
                yield finished
                continue

            def advance(name: str, case: BenchmarkCase = case) -> None:
                progress.update(task, advance=1, description=f'{case}: {name}')

            planned.rows, planned.finished = measure_case(
                specs, case, settings, advance
            )
            progress.update(task, completed=(number + 1) * steps)
            if planned.finished or planned.rounds_run:
                results.add(planned)
                yield planned
            if not planned.finished:
                raise KeyboardInterrupt


def parse_inputs(
    inputs: Sequence[str] | None, within: str | None
) -> list[tuple[int, int, int]]:
    """Batch, height and width of each input.

    Args:
        inputs: Such as ``2x512`` or ``1x800x1333``; None for the default of
            the whole model.
        within: The whole model; None for backbones alone.

    Raises:
        ConfigError: If an input is written in another way.
    """
    if inputs is None:
        if within is None:
            return [(1, 224, 224)]
        if within in HOSTS:
            return [HOSTS[within].input_size]
        return [(1, *input_size(load_config(within)))]
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
    """The device of a name.

    Raises:
        ConfigError: If it is neither the CPU nor a GPU that can be used.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = 'unknown'
    if kind not in ('cpu', 'cuda'):
        raise ConfigError(f'--device {name} is neither cpu nor cuda')
    if kind == 'cuda' and not torch.cuda.is_available():
        raise ConfigError(
            f'--device {name}: there is no GPU that this PyTorch can use'
        )
    return torch.device(name)


def find_baselines(
    args: argparse.Namespace, specs: Sequence[ModelSpec]
) -> list[str]:
    """Names of the models that the others are compared with.

    Raises:
        ConfigError: If ``--baseline`` names none of the models.
    """
    if args.baseline is None:
        return [specs[0].name]
    # --baseline takes a model as it was given, or its name in the tables.
    names = {spec.name: spec.name for spec in specs}
    given = [name for model in args.models for name in expand(model)]
    for name, spec in zip(given, specs, strict=True):
        names[name] = spec.name
    for name in args.baseline:
        if name not in names:
            raise ConfigError(
                f'--baseline {name} is none of the models, which are '
                f'{", ".join(spec.name for spec in specs)}'
            )
    return [names[name] for name in args.baseline]


def check(results: Sequence[Result]) -> None:
    """Exit with a message if fp32 outputs that should be equal are not."""
    wrong = [
        f'{row.model} differs from {row.compared_with} by '
        f'{row.difference:.1e} of the largest value ({result.title})'
        for result in results
        for row in result.rows
        if result.case.dtype == 'fp32'
        and row.difference is not None
        and not row.difference <= TOLERANCE  # also true of NaN
    ]
    if wrong:
        sys.exit('\n'.join(wrong))


if __name__ == '__main__':
    cli.run(main)
