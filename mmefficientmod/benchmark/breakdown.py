"""Time of each kind of block of EfficientMod."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.official import find_efficientmod
from mmefficientmod.benchmark.workloads import prepare
from mmefficientmod.models.backbones.efficientmod import (
    AttentionBlock,
    ModulationBlock,
    PatchEmbed,
)
from mmefficientmod.models.backbones.efficientmod_phone import (
    PhoneBlock,
    PhonePatchEmbed,
)

DOWNSAMPLING = 'stem and downsampling'
MODULATION = 'modulation blocks'
ATTENTION = 'attention blocks'
BLOCK_KINDS = {
    DOWNSAMPLING: (PatchEmbed, PhonePatchEmbed),
    MODULATION: (ModulationBlock, PhoneBlock),
    ATTENTION: (AttentionBlock,),
}


def time_blocks(
    model: nn.Module, case: BenchmarkCase, image: Tensor, rounds: int
) -> dict[str, float] | None:
    """Measure how long each kind of block of an EfficientMod takes.

    Hooks read the clock before and after each block. On a GPU they wait for
    the block to end, so the sum is more than the time of the model.

    Args:
        model: An EfficientMod of ours, or a model with one as its backbone.
        case: What is run; without compiling or exporting.
        image: ``(N, 3, H, W)``, on the model's device.
        rounds: Number of runs, after one to warm up.

    Returns:
        For each of :data:`BLOCK_KINDS`, the median over the runs of the
        seconds that all its blocks take; None for a model without any.
    """
    backbone = find_efficientmod(getattr(model, 'backbone', model))
    blocks = [
        (module, kind)
        for module in (backbone.modules() if backbone else ())
        for kind, classes in BLOCK_KINDS.items()
        if isinstance(module, classes)
    ]
    if not blocks:
        return None
    seconds = dict.fromkeys(BLOCK_KINDS, 0.0)
    started: list[float] = []

    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        return time.perf_counter()

    def before(module: nn.Module, args: Any) -> None:
        started.append(now())

    def after(kind: str, module: nn.Module, args: Any, out: Any) -> None:
        seconds[kind] += now() - started.pop()

    handles = []
    for module, kind in blocks:
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(partial(after, kind)))
    runs: list[dict[str, float]] = []
    try:
        work = prepare(model, case, image)
        work.run()  # warm-up
        for _ in range(rounds):
            seconds.update(dict.fromkeys(seconds, 0.0))
            work.run()
            runs.append(dict(seconds))
    finally:
        for handle in handles:
            handle.remove()
    return {
        kind: statistics.median(run[kind] for run in runs)
        for kind in BLOCK_KINDS
    }
