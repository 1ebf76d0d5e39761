"""Long trials of a training: killed again and again, and run for long.

    python tools/dev/soak.py kills       # 20 kills with 1 kept file, 20 with 2
    python tools/dev/soak.py leaks       # memory and open files of 3000 steps
    python tools/dev/soak.py predictions # the same of 500 and 5000 predictions

Each prints a line for `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmefficientmod import cli
from mmefficientmod.apis.inference import build_inferencer
from mmefficientmod.config.files import load_config
from mmefficientmod.datasets import apply_mini
from mmefficientmod.engine.work_dir import newest_checkpoint

CONFIG = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'
TRAIN = Path(__file__).parents[1] / 'train.py'
# The smallest step that saves: one small image, no validation.
OPTIONS = [
    'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=1',
    'train_cfg.val_interval=100000',
    'train_cfg.max_iters=100000',
    'default_hooks.logger.interval=100000',
]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.tool_parser(
        __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('trial', choices=TRIALS)
    parser.add_argument('--work-dir', default='work_dirs/soak')
    parser.add_argument(
        '--number',
        type=int,
        help='kills for each number of kept files (default: 20), steps '
        '(default: 3000), or predictions (default: 500 and 5000)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    shutil.rmtree(args.work_dir, ignore_errors=True)
    TRIALS[args.trial](args.work_dir, args.number)


def command(work_dir: str, *options: str) -> list[str]:
    """A training that goes on from the newest checkpoint."""
    return [
        *[sys.executable, str(TRAIN), CONFIG, '--mini', '--resume'],
        *['--work-dir', work_dir, '--cfg-options', *OPTIONS, *options],
    ]


def kills(work_dir: str, number: int | None) -> None:
    """Kill a training that saves in each step, and look what is left.

    Every second kill is within the writing of a checkpoint, and the others at
    random times. A checkpoint is lost if none is whole, or if the newest whole
    one is older than that of the kill before.
    """
    for kept in 1, 2:
        folder = f'{work_dir}/kept_{kept}'
        newest = lost = within = 0
        for kill in range(number or 20):
            process = subprocess.Popen(
                command(
                    folder,
                    'default_hooks.checkpoint.interval=1',
                    f'default_hooks.checkpoint.max_keep_ckpts={kept}',
                ),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            within += _kill(process, Path(folder), newest, kill % 2 == 0)
            path = newest_checkpoint(folder)
            found = int(Path(path).stem.split('_')[1]) if path else 0
            lost += found <= newest
            newest = max(newest, found)
        print(
            f'{kept} kept: {number or 20} kills, {within} of them within a '
            f'write, {lost} lost, newest checkpoint of iteration {newest}'
        )


def _kill(
    process: subprocess.Popen, folder: Path, newest: int, in_write: bool
) -> bool:
    """Kill a process after it saved a newer checkpoint.

    Returns:
        Whether a checkpoint was being written.
    """
    while process.poll() is None:
        numbers = [int(x.stem.split('_')[1]) for x in folder.glob('iter_*')]
        if numbers and max(numbers) > newest + 1:
            break
        time.sleep(0.01)
    if not in_write:
        time.sleep(random.uniform(0, 1))
    while in_write and not list(folder.glob('.*.part')):
        time.sleep(0.0002)
    writing = bool(list(folder.glob('.*.part')))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return writing


def leaks(work_dir: str, number: int | None) -> None:
    """Memory and open files of a long training, from outside."""
    steps = number or 3000
    process = subprocess.Popen(
        command(
            work_dir,
            f'train_cfg.max_iters={steps}',
            'default_hooks.logger.interval=50',
            f'default_hooks.checkpoint.interval={steps}',
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    seen = []
    assert process.stdout
    for line in process.stdout:
        if re.search(r'Iter\(train\)', line):
            seen.append(_state(process.pid))
    if process.wait():
        raise SystemExit('the training failed')
    _print_growth(f'{steps} steps', seen)


def predictions(work_dir: str, number: int | None) -> None:
    """Memory and open files of many predictions of one inferencer."""
    cfg = load_config(CONFIG)
    apply_mini(cfg)
    subprocess.run(
        command(work_dir, 'train_cfg.max_iters=2'),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    inferencer = build_inferencer(cfg, newest_checkpoint(work_dir) or '')
    inferencer.show_progress = False
    image = np.zeros((64, 64, 3), np.uint8)
    for count in [number] if number else [500, 5000]:
        seen = []
        for i in range(count):
            inferencer(image)
            if i % (count // 20 or 1) == 0:
                seen.append(_state(os.getpid()))
        _print_growth(f'{count} predictions', seen)


def _state(pid: int) -> tuple[float, int]:
    """Resident memory in MB and number of open files of a process."""
    status = Path(f'/proc/{pid}/status').read_text()
    found = re.search(r'VmRSS:\s+(\d+)', status)
    memory = int(found[1]) / 1000 if found else 0.0
    return memory, len(os.listdir(f'/proc/{pid}/fd'))


def _print_growth(what: str, seen: list[tuple[float, int]]) -> None:
    """Growth over the second half, in which buffers have their size."""
    half = seen[len(seen) // 2 :]
    memory = [m for m, _ in half]
    slope = np.polyfit(np.arange(len(memory)), memory, 1)[0] * len(memory)
    files = half[-1][1] - half[0][1]
    print(
        f'{what}: {memory[-1]:.0f} MB at the end, {slope:+.1f} MB and '
        f'{files:+d} open files over the second half'
    )


TRIALS: dict[str, Callable[[str, int | None], None]] = dict(
    kills=kills, leaks=leaks, predictions=predictions
)

if __name__ == '__main__':
    cli.run(main)
