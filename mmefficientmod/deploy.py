"""Folding a model for inference when it is tested."""

from __future__ import annotations

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import nn

from mmefficientmod.registry import HOOKS


def switch_to_deploy(model: nn.Module) -> list[str]:
    """Have every module fold itself that can.

    Args:
        model: The model, changed in place; it cannot be trained afterwards.

    Returns:
        Names of the modules that folded themselves.
    """
    names = []
    for name, module in list(model.named_modules()):
        # What folds itself may hold parts that could, too.
        inside = any(not x or name.startswith(f'{x}.') for x in names)
        if hasattr(module, 'switch_to_deploy') and not inside:
            module.switch_to_deploy()
            # Of ours, some have nothing to fold, and say so.
            if getattr(module, 'deployed', True):
                names.append(name)
    return names


@HOOKS.register_module()
class SwitchToDeployHook(Hook):
    """Folds the model before a test, after its checkpoint is loaded.

    ``custom_hooks = [dict(type='mmefficientmod.SwitchToDeployHook')]``
    """

    def before_test(self, runner: Runner) -> None:
        """Fold it, and say what was folded."""
        names = switch_to_deploy(runner.model)
        for hook in runner.hooks:
            # It puts its averaged weights in the place of the others.
            if isinstance(hook, EMAHook):
                switch_to_deploy(hook.ema_model)
        runner.logger.info(
            f'folded for inference: {", ".join(names)}'
            if names
            else 'nothing of this model can be folded for inference'
        )
