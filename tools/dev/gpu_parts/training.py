"""Part 2: trainings on the miniatures, with ``--amp``, resumed, repeated."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .job import Job, Row, Setup, checkout, full_float32

TABLE = 'Trainings on the miniatures'
# The mean loss of the last tenth may be so much of that of the first tenth.
LEARNT = 0.9
# Relative difference of the losses of a resumed and an unbroken training.
# RoIAlign's gradient is a sum whose order PyTorch does not fix on a GPU.
SAME = dict(fpn=1e-5, mask_rcnn=1e-2)


class Task(NamedTuple):
    """A config and the lengths of its trainings.

    Attributes:
        config: Its name, with ``{}`` for the variant.
        length: Option that sets the length.
        long: Length of the training that shall learn.
        short: Length of the training that is resumed after a half.
        checkpoint: File name of a checkpoint, with ``{}`` for its number.
        options: Further options.
    """

    config: str
    length: str
    long: int
    short: int
    checkpoint: str
    options: tuple[str, ...] = ()


def tasks(setup: Setup) -> dict[str, Task]:
    """The two tasks; in epochs of 44 iterations for Mask R-CNN."""
    return dict(
        fpn=Task(
            'mmefficientmod::seg/fpn_efficientmod_{}_ade20k.py',
            'train_cfg.max_iters',
            setup.pick(100, 2),
            setup.pick(40, 2),
            'iter_{}.pth',
            setup.pick(
                (),
                (
                    'train_dataloader.batch_size=2',
                    'train_dataloader.num_workers=0',
                ),
            ),
        ),
        mask_rcnn=Task(
            'mmefficientmod::det/mask_rcnn_efficientmod_{}_fpn_1x_coco.py',
            'train_cfg.max_epochs',
            2,
            2,
            'epoch_{}.pth',
            setup.pick(
                (),
                (
                    'train_dataloader.dataset.indices=1',
                    'model.train_cfg.rpn_proposal.max_per_img=50',
                ),
            ),
        ),
    )


def jobs(setup: Setup) -> list[Job]:
    """All jobs, those of most worth first."""
    return [
        Job(f'{name}, {kind}', functools.partial(function, setup, name))
        for kind, function in (
            ('learns', learns),
            ('resumed as unbroken', resumes),
        )
        # Importing and building a detector takes long on a CPU.
        for name in setup.pick(('fpn', 'mask_rcnn'), ('fpn',))
    ]


def learns(setup: Setup, name: str) -> list[Row]:
    """A training in mixed precision, and the same resumed from its middle."""
    with workplace():
        whole, rest = train_twice(
            setup,
            name,
            tasks(setup)[name].long,
            arguments=() if setup.dry else ('--amp',),
            validated=not setup.dry,
        )
    tenth = max(1, len(whole) // 10)
    first = statistics.mean(whole[:tenth])
    last = statistics.mean(whole[-tenth:])
    values = {
        'training': name,
        'iterations': len(whole),
        'first loss': first,
        'last loss': last,
        'resumed, last loss': statistics.mean(rest[-tenth:]),
    }
    failed = None
    if not np.isfinite([*whole, *rest]).all():
        failed = f'{name}: a loss is not finite'
    elif not setup.dry and not last <= LEARNT * first:
        failed = f'{name}: the loss fell from {first:.2f} to {last:.2f} only'
    return [Row(TABLE, values, failed)]


def resumes(setup: Setup, name: str) -> list[Row]:
    """A training in fp32 that is resumed, against the unbroken one."""
    with workplace(), deterministic():
        whole, rest = train_twice(setup, name, tasks(setup)[name].short)
    worst = float(np.max(np.abs(np.divide(rest, whole) - 1)))
    values = {
        'training': f'{name}, resumed, fp32, deterministic',
        'iterations': len(whole),
        'first loss': whole[0],
        'last loss': whole[-1],
        'resumed, last loss': rest[-1],
        'differs': worst,
        'bound': SAME[name],
    }
    failed = None
    if not worst <= SAME[name]:
        failed = f'{name}: resumed losses differ by {worst:.1e}'
    return [Row(TABLE, values, failed)]


def train_twice(
    setup: Setup,
    name: str,
    length: int,
    arguments: tuple[str, ...] = (),
    validated: bool = False,
) -> tuple[list[float], list[float]]:
    """Train, and train again from the checkpoint in the middle.

    Args:
        setup: What the jobs are run on.
        name: A key of :func:`tasks`.
        length: In iterations or epochs.
        arguments: Further arguments of ``tools/train.py``.
        validated: Whether the validation runs at the end. Default: False.

    Returns:
        The losses of all iterations: of the whole training, and of its first
        half followed by the resumed one.
    """
    task = tasks(setup)[name]
    half = length // 2
    mode = 'amp' if arguments else 'fp32'
    checkpoint = Path('whole', task.checkpoint.format(half))
    losses = []
    for folder, more in (
        ('whole', ()),
        ('resumed', ('--resume', str(checkpoint))),
    ):
        runner = checkout('tools/train.py').main(
            [
                task.config.format(setup.pick('s', 'xxs')),
                '--mini',
                '--work-dir',
                folder,
                *arguments,
                *more,
                '--cfg-options',
                *task.options,
                f'{task.length}={length}',
                f'default_hooks.checkpoint.interval={half}',
                # Trainings that begin in the same second share a history of
                # the same name.
                f'experiment_name={name}_{mode}_{folder}',
                f'train_cfg.val_begin={length + (not validated)}',
            ]
        )
        # A resumed training goes on with the history of the checkpoint.
        losses.append(runner.message_hub.get_scalar('train/loss').data[0])
        del runner
    whole, resumed = (list(map(float, x)) for x in losses)
    return whole, resumed


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """A temporary working directory, for data and checkpoints."""
    before = Path.cwd()
    helpers = checkout('tests/helpers.py')
    with (
        tempfile.TemporaryDirectory() as folder,
        helpers.configs_read_and_formatted_once(),
    ):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Take deterministic kernels where PyTorch has them, without TF32."""
    with full_float32():
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        # With a warning for an operation without such a kernel.
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
