"""What a part consists of: jobs, the rows that they give, and their setup."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch

from mmefficientmod.benchmark.sources import import_file
from mmefficientmod.rng import forked_rng

ROOT = Path(__file__).parents[3]
Value = TypeVar('Value')


@dataclass
class Row:
    """A line of a table.

    Attributes:
        table: Title of the table.
        values: The cells by the titles of their columns.
        failed: What is wrong, in one line; None if nothing is.
    """

    table: str
    values: dict[str, Any]
    failed: str | None = None


@dataclass(frozen=True)
class Job:
    """The smallest unit of work whose rows are kept.

    Attributes:
        name: Differs from those of the other jobs of the part.
        run: Does the work.
    """

    name: str
    run: Callable[[], list[Row]]


@dataclass(frozen=True)
class Setup:
    """What all jobs are run on.

    Attributes:
        device: A GPU, or the CPU for a dry run.
        official: Path of the authors' file ``models/EfficientMod.py``; None
            to leave the authors' module out. Default: None.
        threads: CPU threads that one operator may use. Default: 1.
    """

    device: torch.device
    official: str | None = None
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def dry(self) -> bool:
        """Whether only the code is tried, on a CPU and in small."""
        return self.device.type == 'cpu'

    def pick(self, full: Value, small: Value) -> Value:
        """The first value on a GPU, the second one in a dry run."""
        return small if self.dry else full


@functools.cache
def checkout(path: str) -> ModuleType:
    """A Python file of the checkout that belongs to no package.

    Args:
        path: Relative to the root, such as ``tools/train.py``.

    Raises:
        ConfigError: If the file does not exist or cannot be imported.
    """
    return import_file(str(ROOT / path))


@contextlib.contextmanager
def kept_settings() -> Iterator[None]:
    """Restore PyTorch's global settings and all random states at the end.

    These are TF32, cuDNN's flags, deterministic algorithms, number of
    threads, gradient mode, and the generators of Python, NumPy, the CPU and
    the GPUs.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.allow_tf32,
        products.allow_tf32,
        torch.get_num_threads(),
    )
    deterministic = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    states = random.getstate(), np.random.get_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        with forked_rng(), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        (
            cudnn.enabled,
            cudnn.benchmark,
            cudnn.deterministic,
            cudnn.allow_tf32,
            products.allow_tf32,
        ) = before[:5]
        torch.set_num_threads(before[5])
        torch.use_deterministic_algorithms(
            deterministic[0], warn_only=deterministic[1]
        )
        random.setstate(states[0])
        np.random.set_state(states[1])
        if gpus:
            # After an error in a kernel no call to the GPU succeeds, and
            # that error is the one to be told.
            with contextlib.suppress(RuntimeError):
                torch.cuda.set_rng_state_all(gpus)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiply and convolve in float32 without TF32, within a block."""
    with kept_settings():
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
