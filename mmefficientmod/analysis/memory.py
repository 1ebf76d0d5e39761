"""Memory that a model takes: what autograd saves, and the peak on a CPU."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that PyTorch's allocator for the CPU gives out at a time.

    What was there before does not count, nor does what libraries below, such
    as oneDNN, take for themselves meanwhile.

    Args:
        run: What to run; its result is dropped.
    """
    # Its profiler tells the terminal when it starts and that there is no GPU.
    os.environ.setdefault('KINETO_LOG_LEVEL', '9')
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(
        activities=[cpu], profile_memory=True
    ) as profiler:
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


def saved_bytes(forward: Callable[[], Any], known: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass.

    Args:
        forward: What to run; its result is dropped.
        known: Tensors that are there anyway, such as weights and input.
    """
    with SavedTensors() as saved:
        outs = forward()
    del outs
    return saved.nbytes(known)


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Takes note of what autograd keeps for the backward pass, meanwhile.

    Each piece of memory counts once and whole. Copies that autocast makes of
    the weights count; what is recomputed (``with_cp``) does not.
    """

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        super().__init__(self._pack, lambda x: x)

    def __enter__(self) -> SavedTensors:
        super().__enter__()
        return self

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        # With its graph, what a layer gave would keep itself for ever.
        return x.detach()

    def nbytes(self, known: Iterable[Tensor]) -> int:
        """Bytes that were kept, without those of tensors known anyway."""
        there = {x.untyped_storage().data_ptr() for x in known}
        return sum(n for at, n in self._storages.items() if at not in there)
