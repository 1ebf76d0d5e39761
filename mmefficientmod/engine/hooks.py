"""Hooks that the tools give a run."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.nodes import add_hook
from mmefficientmod.models.layers.deploy import switch_to_deploy
from mmefficientmod.registry import HOOKS


@ROOT_HOOKS.register_module()
class CheckpointCheckHook(Hook):
    """Refuses a checkpoint of another model before it is loaded.

    MMEngine loads what fits and goes on with a warning.

    Args:
        path: Name of the file, for messages.
        classes: Names of the classes that it must have been trained on.
            Default: any.
    """

    def __init__(
        self, path: str, classes: Sequence[str] | None = None
    ) -> None:
        self.path = path
        self.classes = classes

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load it strictly, ahead of MMEngine."""
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        trained = list(meta.get('classes') or ())
        if self.classes and trained and trained != list(self.classes):
            raise CheckpointError(
                f'{self.path} was trained on the classes '
                f'{", ".join(trained)}, and the data has '
                f'{", ".join(self.classes)}'
            )
        model = runner.model
        # FSDP has to gather its shards itself.
        while not isinstance(model, FullyShardedDataParallel) and (
            is_model_wrapper(model) or isinstance(model, BaseTTAModel)
        ):
            model = model.module
        load_whole(model, checkpoint, self.path)


def check_checkpoint(
    cfg: Config, path: str, classes: Sequence[str] | None = None
) -> None:
    """Have a run refuse a checkpoint of another model or other classes."""
    add_hook(cfg, type='CheckpointCheckHook', path=path, classes=classes)


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
