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
from mmefficientmod.benchmark.workloads import prepare
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
        ratios = [f'{ratio(arch, case, args.rounds):.2f}' for arch in ARCHS]
        rows.append([f'{mode}, {batch}x{side}', *ratios])
    print(markdown_table([['work', *ARCHS], *rows]))
    with using_library('auto'):
        prepare(EfficientMod('s'), case, image_of(case)).run()
        print(f'\n{mode}, {batch}x{side}, s: {summary()}')


def image_of(case: BenchmarkCase) -> torch.Tensor:
    return torch.rand(case.batch, 3, case.height, case.width)


def ratio(arch: str, case: BenchmarkCase, rounds: int) -> float:
    """Time with the faster library by that with PyTorch's own, the median."""
    model = EfficientMod(arch, drop_path_rate=0.0)
    work = prepare(model, case, image_of(case))
    timer = Timer(
        'run()', globals=dict(run=work.run), num_threads=case.threads
    )
    found = []
    for number in range(rounds):
        times = {}
        libraries = ['pytorch', 'auto']
        for library in libraries if number % 2 else reversed(libraries):
            with using_library(library):
                work.run()  # choose
                measured = timer.blocked_autorange(min_run_time=ROUND_SECONDS)
                times[library] = measured.median
        found.append(times['auto'] / times['pytorch'])
    return statistics.median(found)


if __name__ == '__main__':
    cli.run(main)
