"""Random numbers that leave the rest of the program as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Put PyTorch's random state on the CPU back when the block ends.

    Models that are built only to look at them, such as a probed backbone or
    a teacher, must not change the random numbers of a training. GPUs and the
    generators of Python and NumPy are not touched.

    Args:
        seed: Seed inside of the block, so that it gives the same numbers in
            every process. Default: None, which goes on from the current
            state.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            # torch.manual_seed() would also seed the GPUs.
            torch.default_generator.manual_seed(seed)
        yield
