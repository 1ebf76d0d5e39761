"""What a real training says of its cost, besides the time in its log."""

from __future__ import annotations

from typing import Any

from mmengine.device import is_cuda_available
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmefficientmod.analysis.memory import SavedTensors
from mmefficientmod.registry import HOOKS


@HOOKS.register_module()
class StepCostHook(Hook):
    """Logs ``params`` and, without CUDA, ``saved_bytes``, of the first step.

    The latter is what autograd keeps for the backward pass, without weights
    and input. With CUDA, MMEngine logs the allocator's peak as ``memory``.
    """

    def before_train(self, runner: Runner) -> None:
        """Count, and see to it that the first forward pass is watched."""
        params = sum(x.numel() for x in runner.model.parameters())
        runner.visualizer.add_scalars(dict(params=params))
        if is_cuda_available():
            return
        saved = SavedTensors()

        def begin(model: nn.Module, args: tuple) -> None:
            saved.__enter__()

        # Not in the backward pass, in which `with_cp` runs parts again.
        def end(model: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            saved.__exit__(None, None, None)
            for handle in handles:
                handle.remove()
            known = [*model.parameters(), kwargs['inputs']]
            found = dict(saved_bytes=saved.nbytes(known))
            runner.visualizer.add_scalars(found)

        handles = (
            runner.model.register_forward_pre_hook(begin),
            runner.model.register_forward_hook(end, with_kwargs=True),
        )
