"""Memory of a model: bytes saved for the backward pass, and the CPU's peak."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

LOG_LEVEL = 'KINETO_LOG_LEVEL'  # of PyTorch's profiler


def peak_bytes(run: Callable[[], Any]) -> int:
    """The peak memory of PyTorch's allocator for the CPU during a call.

    Memory that was allocated before does not count, and neither does memory
    that libraries such as oneDNN allocate themselves.

    Args:
        run: The function to call; its result is dropped.

    Returns:
        The peak, in bytes.
    """
    cpu = torch.profiler.ProfilerActivity.CPU
    with (
        _quiet_profiler(),
        torch.profiler.profile(
            activities=[cpu], profile_memory=True
        ) as profiler,
    ):
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    changes = sorted(
        (x for x in events if x.get('name') == '[memory]'),
        key=lambda x: x['ts'],
    )
    if not changes:
        return 0
    totals = [x['args']['Total Allocated'] for x in changes]
    return max(totals) - (totals[0] - changes[0]['args']['Bytes'])


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler from printing that it starts and finds no GPU.

    It reads the environment variable when it first starts.
    """
    before = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, '9')
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOG_LEVEL]


def saved_bytes(forward: Callable[[], Any], known: list[Tensor]) -> int:
    """Bytes that autograd saves for the backward pass.

    Args:
        forward: The function to call; its result is dropped.
        known: Tensors that do not count because they exist anyway, such as
            weights and inputs.

    Returns:
        The size of all other storages, in bytes.
    """
    with SavedTensors() as saved:
        outs = forward()
    del outs
    return saved.nbytes(known)


class SavedTensors:
    """Records the tensors that autograd saves inside of its block.

    Each storage counts once, with its full size. Copies of weights that
    autocast makes count; recomputed activations (``with_cp``) do not.
    """

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}  # size in bytes, by address
        self._hooks = saved_tensors_hooks(self._pack, lambda x: x)

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        # Detach, else a reference cycle leaks memory: the saved output of a
        # layer would hold the node of the graph that saved it.
        return x.detach()

    def nbytes(self, known: Iterable[Tensor]) -> int:
        """Size of the recorded storages, in bytes.

        Args:
            known: Tensors whose storages do not count.
        """
        there = {x.untyped_storage().data_ptr() for x in known}
        return sum(n for at, n in self._storages.items() if at not in there)
