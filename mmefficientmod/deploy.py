"""Folding a model for inference when it is tested."""

from __future__ import annotations

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from mmefficientmod.models.layers.deploy import switch_to_deploy
from mmefficientmod.registry import HOOKS


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
