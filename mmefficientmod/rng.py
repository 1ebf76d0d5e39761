"""Random numbers that leave the rest of the program as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Restore PyTorch's random state of the CPU when the block ends.

    Models that are built only to look at them, such as a probed backbone or
    a teacher, must not change the random numbers of a training. GPUs and the
    generators of Python and NumPy are not touched.

    Args:
        seed: Seed inside the block, so that the random numbers are the same
            in every process. Default: the state before the block goes on.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            # torch.manual_seed() would also seed the GPUs.
            torch.default_generator.manual_seed(seed)
        yield
