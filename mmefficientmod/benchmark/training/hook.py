"""A hook that logs the cost of a training step."""

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
    """Logs ``params`` and, without CUDA, ``saved_bytes`` of the first step.

    ``params`` is the number of parameters of the model. ``saved_bytes`` is
    what autograd saves for the backward pass, without weights and input. With
    CUDA, MMEngine logs the allocator's peak as ``memory``, in MiB.
    """

    def before_train(self, runner: Runner) -> None:
        """Log ``params``, and watch the first forward pass."""
        params = sum(x.numel() for x in runner.model.parameters())
        runner.visualizer.add_scalars(dict(params=params))
        if is_cuda_available():
            return
        saved = SavedTensors()

        def begin(model: nn.Module, args: tuple) -> None:
            saved.__enter__()

        # At the end of the forward pass: in the backward pass, `with_cp` runs
        # blocks again, which saves tensors for a moment.
        def end(model: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            saved.__exit__(None, None, None)
            for handle in handles:
                handle.remove()
            known = [*model.parameters(), kwargs['inputs']]
            scalars = dict(saved_bytes=saved.nbytes(known))
            runner.visualizer.add_scalars(scalars)

        handles = (
            runner.model.register_forward_pre_hook(begin),
            runner.model.register_forward_hook(end, with_kwargs=True),
        )
