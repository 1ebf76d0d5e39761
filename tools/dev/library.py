"""Compare the libraries of matrix products on this processor, in one run.

    python tools/dev/library.py --threads 1

prints a table for docs/speed.md: the time of EfficientMod with the library
that was measured to be faster, divided by the time with PyTorch's own. The
libraries take turns, round by round, on the same model.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch.utils.benchmark import Timer

from mmefficientmod import EfficientMod, cli
from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.measure import ROUND_SECONDS
from mmefficientmod.benchmark.tables import markdown_table
from mmefficientmod.benchmark.workloads import Workload, prepare
from mmefficientmod.environment import cpu_name
from mmefficientmod.models.layers.matmul import summary, using_library

ARCHS = ('xxs', 'xs', 's', 's_conv')
WORKS = (
    ('infer', 1, 224),
    ('infer', 8, 224),
    ('infer', 2, 512),
    ('train', 2, 512),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.tool_parser(__doc__)
    parser.add_argument(
        '--threads',
        type=int,
        default=1,
        metavar='N',
        help='CPU threads for one operator (default: 1)',
    )
    parser.add_argument(
        '--rounds',
        type=int,
        default=9,
        metavar='N',
        help='how often each library is timed (default: 9)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f'{cpu_name()}, torch {torch.__version__}, {args.threads} threads\n')
    rows = []
    for mode, batch, side in WORKS:
        case = BenchmarkCase(mode, batch, side, side, 'fp32', args.threads)
        work = f'{mode}, {batch}x{side}'
        ratios = [f'{ratio(arch, case, args.rounds):.2f}' for arch in ARCHS]
        rows.append([work, *ratios])
        print(f'{work}, {ARCHS[-1]}: {choices(ARCHS[-1], case)}')
    print(f'\n{markdown_table([["work", *ARCHS], *rows])}')


def make_ready(arch: str, case: BenchmarkCase) -> Workload:
    """A variant that is ready to run a case."""
    image = torch.rand(case.batch, 3, case.height, case.width)
    return prepare(EfficientMod(arch, drop_path_rate=0.0), case, image)


def choices(arch: str, case: BenchmarkCase) -> str:
    """How often each library is the faster one, in one line."""
    with using_library('auto'):
        make_ready(arch, case).run()
        return summary()


def ratio(arch: str, case: BenchmarkCase, rounds: int) -> float:
    """Time with the faster library by that with PyTorch's own, the median."""
    run = make_ready(arch, case).run
    timer = Timer('run()', globals=dict(run=run), num_threads=case.threads)
    found = []
    for number in range(rounds):
        times = {}
        libraries = ['pytorch', 'auto']
        for library in libraries if number % 2 else reversed(libraries):
            with using_library(library):
                run()  # choose
                measured = timer.blocked_autorange(min_run_time=ROUND_SECONDS)
                times[library] = measured.median
        found.append(times['auto'] / times['pytorch'])
    return statistics.median(found)


if __name__ == '__main__':
    cli.run(main)
