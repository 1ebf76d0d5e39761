"""Check and measure everything on a GPU, in about ten minutes.

    PYTHONPATH=. python tools/dev/gpu_check.py --out DIR

runs six parts one after another, and writes DIR/results.json and DIR/gpu.md
after each job of a part. A part that has used up its time is stopped; its
results are kept, and the next part starts. The same command goes on where it
was stopped, and tries again what failed. docs/gpu.md has more.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_parts import experiments, numbers, timing, training
from gpu_parts.job import Job, Row, Setup, kept_settings
from gpu_parts.store import (
    FINISHED,
    RUNNING,
    STOPPED,
    WAITING,
    JobResult,
    Store,
)

from mmefficientmod import cli
from mmefficientmod.benchmark.measure import error_in_one_line
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.environment import machine


class Part(NamedTuple):
    """A part of the check.

    Attributes:
        jobs: Makes its jobs, those of most worth first.
        seconds: Its time limit by default.
    """

    jobs: Callable[[Setup], list[Job]]
    seconds: float


PARTS = dict(
    numbers=Part(numbers.jobs, 80),
    training=Part(training.jobs, 100),
    speed=Part(timing.speed_jobs, 120),
    inference=Part(timing.inference_jobs, 110),
    experiments=Part(experiments.jobs, 90),
    growth=Part(timing.growth_jobs, 60),
)
TOTAL = sum(part.seconds for part in PARTS.values())
SCRIPT = Path(__file__).resolve()
# Exit code of a worker whose GPU no longer works, which happens to a process
# after an error in a kernel.
GPU_LOST = 75
# In the place of a job's name, for an error before the first job.
PREPARATION = 'preparation'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.tool_parser(
        __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out', required=True, metavar='DIR', help='folder of the results'
    )
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=PARTS,
        default=list(PARTS),
        metavar='PART',
        help=f'which parts are run: {", ".join(PARTS)} (default: all)',
    )
    parser.add_argument(
        '--time-limit',
        type=float,
        default=TOTAL,
        metavar='SECONDS',
        help='limit of all six parts together, of which each has a fixed '
        'share (default: %(default).0f)',
    )
    parser.add_argument(
        '--official',
        metavar='FILE',
        help="the authors' models/EfficientMod.py, to compare with",
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='the same on a CPU, in small, to try the code',
    )
    parser.add_argument(
        '--fresh', action='store_true', help='replace the results in DIR'
    )
    # What this command starts to run the jobs.
    parser.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.work:
        work(args)
        return
    if args.time_limit <= 0:
        raise ConfigError('--time-limit must be more than 0')
    device = find_device(args.dry_run)
    folder = Path(args.out).resolve()
    if args.fresh:
        for name in ('results.json', 'gpu.md', 'log.txt'):
            (folder / name).unlink(missing_ok=True)
    store = Store(folder)
    store.set_machine(machine(device))
    for name in args.parts:
        store.plan(name)
    store.save()
    failed = []
    if any(store.parts[name].state != FINISHED for name in args.parts):
        with tempfile.TemporaryDirectory() as scratch:
            start = functools.partial(start_worker, args, folder, scratch)
            failed = run_workers(start, folder, args.parts)
    store = Store(folder)
    for name in args.parts:
        failed += [f'{name}: {x}' for x in store.parts[name].failures]
    print(f'written: {folder / "results.json"}, {folder / "gpu.md"}')
    if failed:
        print(f'{len(failed)} failed:')
        print('\n'.join(failed))
        sys.exit(1)


def find_device(dry_run: bool) -> torch.device:
    """The GPU; the CPU for a dry run.

    Raises:
        ConfigError: If there is no GPU, and it is no dry run.
    """
    if dry_run:
        return torch.device('cpu')
    if not torch.cuda.is_available():
        raise ConfigError(
            'there is no GPU that this PyTorch can use; --dry-run tries the '
            'code on the CPU'
        )
    return torch.device('cuda')


def start_worker(args: argparse.Namespace, folder: Path, scratch: str) -> int:
    """Run :func:`work` in a process of its own, to its end.

    Args:
        args: Those of the command.
        folder: Where the results are.
        scratch: Folder for the temporary files of the process, which cannot
            remove them when a signal ends it.

    Returns:
        The exit code; the negative number of a signal.
    """
    command = [sys.executable, str(SCRIPT), '--work', '--out', str(folder)]
    command += ['--parts', *args.parts, '--time-limit', str(args.time_limit)]
    command += ['--dry-run'] * args.dry_run
    if args.official:
        command += ['--official', str(Path(args.official).resolve())]
    environment = os.environ | dict(
        # cuBLAS reads it when it starts, and is deterministic only with it.
        CUBLAS_WORKSPACE_CONFIG=':4096:8',
        TMPDIR=scratch,
    )
    return subprocess.run(command, env=environment, check=False).returncode


def run_workers(
    start: Callable[[], int], folder: Path, names: Sequence[str]
) -> list[str]:
    """Run parts in another process, and in a new one when that one ends.

    An error in a kernel makes a process useless for the GPU, and a signal
    ends it at the limit of a part.

    Args:
        start: Runs :func:`work` in another process, and returns its exit
            code.
        folder: Where the results are.
        names: Names of the parts.

    Returns:
        What kept the parts from running, if anything.
    """
    while True:
        code = start()
        if code == 0:
            return []
        store = Store(folder)
        chosen = [store.parts[name] for name in names]
        part = next((p for p in chosen if p.state == RUNNING), None)
        if part is None:
            return [f'no part ran: the process {ending(code)}, see log.txt']
        if code == -signal.SIGALRM:
            part.state = STOPPED
        elif code != GPU_LOST:
            name = part.current or PREPARATION
            reason = f'the process {ending(code)}, see log.txt'
            part.jobs[name] = JobResult(name, 0.0, error=reason)
            if not part.current:  # it would end in the same way again
                part.state = FINISHED
        part.current = None
        store.save()


def ending(code: int) -> str:
    """How a process ended, by its exit code."""
    if code < 0:
        return f'was ended by {signal.Signals(-code).name}'
    return f'ended with code {code}'


# ------------------------------------------------------------------ worker


def work(args: argparse.Namespace) -> None:
    """Run the jobs that have not run yet; in a process of its own.

    All output but a line for each part goes to ``log.txt``.
    """
    folder = Path(args.out)
    terminal = os.fdopen(os.dup(1), 'w')
    with open(folder / 'log.txt', 'a') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    setup = Setup(find_device(args.dry_run), args.official)
    store = Store(folder)
    share = args.time_limit / TOTAL
    for name in args.parts:
        jobs, seconds = PARTS[name]
        if store.parts[name].state in (WAITING, RUNNING):
            run_part(store, name, jobs, setup, seconds * share)
        summary = store.parts[name].summary
        print(f'{name}: {summary}', file=terminal, flush=True)


def run_part(
    store: Store,
    name: str,
    make_jobs: Callable[[Setup], list[Job]],
    setup: Setup,
    limit: float,
) -> None:
    """Run the jobs of a part that have not run yet.

    A signal ends the process when the limit is reached.

    Args:
        store: Gets the results, and is saved after each job.
        name: Name of the part.
        make_jobs: Makes the jobs.
        setup: What the jobs are run on.
        limit: Seconds that the part may take.
    """
    result = store.parts[name]
    before, start = result.seconds, time.monotonic()
    result.state = RUNNING
    store.save()
    # At least a moment, as 0 would turn the timer off.
    signal.setitimer(signal.ITIMER_REAL, max(limit - before, 0.01))
    jobs: list[Job] = []

    def prepare() -> list[Row]:
        jobs.extend(make_jobs(setup))
        return []

    prepared = run_job(Job(PREPARATION, prepare))
    if prepared.error:
        result.jobs[PREPARATION] = prepared
    todo = [job for job in jobs if job.name not in result.jobs]
    for number, job in enumerate(todo):
        result.current, result.left = job.name, len(todo) - number
        store.save()
        result.jobs[job.name] = run_job(job)
        result.seconds = before + time.monotonic() - start
        result.current = None
        store.save()
        if not gpu_works(setup):
            sys.exit(GPU_LOST)
    signal.setitimer(signal.ITIMER_REAL, 0)
    result.state, result.left = FINISHED, 0
    store.save()


def run_job(job: Job) -> JobResult:
    """Run a job; an error becomes a part of its result."""
    start = time.monotonic()
    rows, error = [], None
    try:
        with kept_settings():
            rows = job.run()
    except Exception as problem:
        traceback.print_exc()
        error = error_in_one_line(problem)
    return JobResult(job.name, time.monotonic() - start, rows, error)


def gpu_works(setup: Setup) -> bool:
    """Whether the GPU can still be used by this process."""
    if setup.dry:
        return True
    try:
        torch.ones(1, device=setup.device).sum().item()
    except RuntimeError:
        return False
    return True


if __name__ == '__main__':
    cli.run(main)
