"""Random numbers that depend on the place in a training, not on its past.

MMEngine seeds a run once. A run that is resumed starts that sequence anew: it
augments its first images as it did those of iteration 0. Here each sample and
each step is seeded by itself, from the seed of the run and its place in it. A
resumed run then gives the losses of one that was never stopped, and the
samples are the same whatever the number of workers or of processes that share
a batch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, Sampler

# What is seeded, so that no two have the same numbers.
STEP, SAMPLE = range(2)


def seed_by(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators.

    Args:
        key: What the numbers shall depend on; none of it is negative.
    """
    seeds = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))


@HOOKS.register_module()
class SeedStepHook(Hook):
    """Seeds what is random in a training step, as drop path and mixup."""

    priority = 'VERY_HIGH'

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Seed by the number of the iteration."""
        seed_by(runner.seed, STEP, runner.rank, runner.iter)


def seed_samples(loader: DataLoader, seed: int) -> None:
    """Have a data loader seed what is random in each sample.

    Args:
        loader: Changed in place, with its sampler and data set. Do it before
            anything is drawn from it.
        seed: The seed of the run.
    """
    sampler = getattr(loader.batch_sampler, 'sampler', None)
    if sampler is None or hasattr(loader.dataset, '__getitems__'):
        return
    _count_draws(sampler)
    # PyTorch asks a data set for a whole batch where it has this.
    loader.dataset.__getitems__ = partial(_load, loader.dataset, seed)


class _Draw(int):
    """The index of a sample, with what its random numbers depend on."""

    key: tuple[int, ...]


def _count_draws(sampler: Sampler) -> None:
    """Let a sampler say of each index how many came before it."""
    kind = type(sampler)

    class Counted(kind):
        skipped = 0

        def __iter__(self) -> Iterator[Any]:
            # MMEngine's samplers deal a common order out, one to a rank.
            rank, ranks = get_dist_info()
            places = itertools.count(ranks * self.skipped + rank, ranks)
            for place, index in zip(places, super().__iter__(), strict=False):
                if isinstance(index, int):
                    index = _Draw(index)
                    index.key = (SAMPLE, getattr(self, 'epoch', 0), place)
                yield index

    if hasattr(kind, 'skip'):

        def skip(self: Sampler, num_samples: int) -> None:
            kind.skip(self, num_samples)
            self.skipped = num_samples

        Counted.skip = skip
    Counted.__name__ = kind.__name__
    # As it stays what it was, whoever asks for its class is answered.
    sampler.__class__ = Counted


def _load(dataset: Dataset, seed: int, indices: Sequence[Any]) -> list[Any]:
    samples = []
    for index in indices:
        if isinstance(index, _Draw):
            seed_by(seed, *index.key)
            index = int(index)
        samples.append(dataset[index])
    return samples
