"""Random numbers of a training that depend only on the position in it.

MMEngine seeds a run once, at its start. A resumed run starts with the same
seed, and so repeats the augmentation of iteration 0. Here each sample and
each training step is seeded on its own, from the seed of the run and its
position in the run. A resumed run then has the losses of a run that was never
stopped, and a sample is the same for any number of workers and of processes.

A data loader is built with two wrappers. The sampler's wrapper gives each
index its position; the data set's wrapper reads the position, in the worker
process, and seeds the random generators before it loads the sample. Both are
named in the data loader's config, as MMEngine's own wrappers of data sets
are, so that no object is changed after it was built. Attributes that a wrapper
does not define are those of the wrapped object.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, Sampler

from mmefficientmod.registry import HOOKS

# First number of a key, so that no step shares its key with a sample.
STEP, SAMPLE = range(2)


def seed_by(*key: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch.

    Args:
        key: Numbers that the seed depends on, each 0 or more.
    """
    seeds = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))


@HOOKS.register_module()
class SeedStepHook(Hook):
    """Seeds each training step: drop path, dropout, mixup.

    ``custom_hooks = [dict(type='mmefficientmod.SeedStepHook')]``; the
    runners of the tools register it themselves.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Seed by the process and the number of the iteration."""
        seed_by(runner.seed, STEP, runner.rank, runner.iter)


def seed_samples(dataloader: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The config of a data loader that seeds each of its samples.

    Args:
        dataloader: The config, as ``Runner.build_dataloader`` takes it.
        seed: The seed of the run.

    Returns:
        A copy whose data set and sampler are wrapped.
    """
    dataset = dict(
        type=SeededDataset, dataset=dataloader['dataset'], seed=seed
    )
    sampler = dict(
        type=build_positioned_sampler, sampler=dataloader['sampler']
    )
    cfg = {**dataloader, 'dataset': dataset, 'sampler': sampler}
    if isinstance(cfg.get('batch_sampler'), Mapping):
        cfg['batch_sampler'] = dict(
            type=build_skipping_batch_sampler,
            batch_sampler=cfg['batch_sampler'],
        )
    return cfg


class PositionedIndex(int):
    """The index of a sample that also knows its position in the training.

    An ``int``, since batch samplers such as MMDetection's
    ``AspectRatioBatchSampler`` look the sample up by it.

    Args:
        index: The index.
        epoch: The epoch that the sampler is in, from 0.
        position: How many indices all processes together took before it in
            that epoch.
    """

    epoch: int
    position: int

    def __new__(
        cls, index: int, epoch: int = 0, position: int = 0
    ) -> PositionedIndex:
        self = super().__new__(cls, index)
        self.epoch = epoch
        self.position = position
        return self


class PositionedSampler(Sampler):
    """Yields the indices of a sampler, each with its position.

    Indices that are no ``int`` are passed on as they are.

    Args:
        sampler: The sampler.
    """

    num_skipped = 0  # indices that this process took before it was stopped
    num_skipped_once = 0  # the same, of the epoch that is resumed

    def __init__(self, sampler: Any) -> None:
        self.wrapped = sampler

    def __len__(self) -> int:
        return len(self.wrapped)

    def __iter__(self) -> Iterator[Any]:
        # Samplers share one order of indices among the processes: the first
        # index to the first process, the second to the second, and so on.
        rank, world_size = get_dist_info()
        once, self.num_skipped_once = self.num_skipped_once, 0
        start = (self.num_skipped + once) * world_size + rank
        for position, index in zip(
            itertools.count(start, world_size),
            itertools.islice(self.wrapped, once, None),
            strict=False,
        ):
            if isinstance(index, int):
                epoch = getattr(self.wrapped, 'epoch', 0)
                index = PositionedIndex(index, epoch, position)
            yield index

    def __getattr__(self, name: str) -> Any:
        # Such as `set_epoch` and `dataset`.
        return _attribute_of_wrapped(self, name)


class PositionedSkippingSampler(PositionedSampler):
    """The same for a sampler that can skip indices, to resume a run.

    It is a class of its own because MMEngine's loop calls ``skip`` of every
    sampler that has this method, as OneDL's ``InfiniteSampler`` does.
    """

    def skip(self, num_samples: int) -> None:
        """Start after the indices that were taken before a run was stopped.

        Args:
            num_samples: Number of these indices in this process.
        """
        self.wrapped.skip(num_samples)
        self.num_skipped = num_samples


def build_positioned_sampler(
    dataset: Any, seed: int | None, sampler: Any
) -> Any:
    """Build a sampler that gives each index its position in the training.

    MMDetection's sampler of video frames is built as it is: its hooks and
    batch samplers test for its class, and its indices are pairs.

    Args:
        dataset: The data set, in its wrapper or without one. The sampler
            gets it without.
        seed: The seed of the sampler, None for a random one.
        sampler: Config of the sampler, or a sampler.
    """
    if isinstance(sampler, Mapping):
        if isinstance(dataset, SeededDataset):
            dataset = dataset.wrapped
        sampler = DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=seed)
        )
    if type(sampler).__name__ == 'TrackImgSampler':
        return sampler
    if hasattr(sampler, 'skip'):
        return PositionedSkippingSampler(sampler)
    return PositionedSampler(sampler)


class SkippingBatchSampler(Sampler):
    """A batch sampler that can begin within an epoch.

    Args:
        batch_sampler: The batch sampler.
    """

    num_skipped_once = 0  # batches of the epoch that is resumed

    def __init__(self, batch_sampler: Any) -> None:
        self.wrapped = batch_sampler

    def __len__(self) -> int:
        return len(self.wrapped)

    def __iter__(self) -> Iterator[Any]:
        once, self.num_skipped_once = self.num_skipped_once, 0
        return itertools.islice(self.wrapped, once, None)

    def __getattr__(self, name: str) -> Any:
        return _attribute_of_wrapped(self, name)


def build_skipping_batch_sampler(
    sampler: Sampler, batch_size: int, batch_sampler: Mapping[str, Any]
) -> SkippingBatchSampler:
    """Build a batch sampler of a config, wrapped.

    Args:
        sampler: The sampler of its indices.
        batch_size: Size of its batches.
        batch_sampler: Config of the batch sampler.
    """
    built = DATA_SAMPLERS.build(
        batch_sampler,
        default_args=dict(sampler=sampler, batch_size=batch_size),
    )
    return SkippingBatchSampler(built)


def skip_batches(loader: DataLoader, number: int) -> None:
    """Let the next epoch of a data loader begin after some batches.

    Args:
        loader: A data loader of :func:`seed_samples`.
        number: Number of the batches.
    """
    if isinstance(loader.batch_sampler, SkippingBatchSampler):
        loader.batch_sampler.num_skipped_once = number
    elif isinstance(loader.sampler, PositionedSampler):
        # None is only for a batch sampler.
        loader.sampler.num_skipped_once = number * (loader.batch_size or 1)


class BuiltDataset:
    """A built data set in the config of a data loader.

    MMEngine copies the config before it builds the loader; the data set is not
    copied.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __deepcopy__(self, memo: dict) -> BuiltDataset:
        return self


class SeededDataset(Dataset):
    """A data set whose samples depend on their position in the training.

    All other attributes than its own two are read from the wrapped data set,
    and set there: hooks replace the pipeline by
    ``loader.dataset.pipeline = ...``.

    Args:
        dataset: Config of the data set, or a data set, which may be in a
            :class:`BuiltDataset`.
        seed: The seed of the run.
    """

    wrapped: Any
    run_seed: int

    def __init__(self, dataset: Any, seed: int) -> None:
        if isinstance(dataset, Mapping):
            dataset = DATASETS.build(dataset)
        elif isinstance(dataset, BuiltDataset):
            dataset = dataset.dataset
        vars(self).update(wrapped=dataset, run_seed=seed)

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, PositionedIndex):
            seed_by(self.run_seed, SAMPLE, index.epoch, index.position)
            index = int(index)
        return self.wrapped[index]

    def __getattr__(self, name: str) -> Any:
        return _attribute_of_wrapped(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.wrapped, name, value)


def _attribute_of_wrapped(wrapper: Any, name: str) -> Any:
    # pickle and copy look for special methods before `wrapped` is set. With
    # the data set's `__getitems__`, PyTorch would not call our `__getitem__`.
    if name == 'wrapped' or name.startswith('__'):
        raise AttributeError(name)
    return getattr(wrapper.wrapped, name)
