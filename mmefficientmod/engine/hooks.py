"""Hooks of the tools, for the checkpoint, inference and the log.

The hook that seeds each step is in :mod:`mmefficientmod.engine.seeding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmefficientmod.checkpoint.loading import drop_classes, load_whole
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.nodes import add_hook
from mmefficientmod.messages import list_some
from mmefficientmod.models.layers import matmul
from mmefficientmod.models.layers.deploy import switch_to_deploy
from mmefficientmod.models.layers.fast_linear import use_fast_linear
from mmefficientmod.registry import HOOKS


@HOOKS.register_module()
class CheckpointCheckHook(Hook):
    """Refuses a checkpoint of another model before MMEngine loads it.

    MMEngine itself loads the weights that fit and only warns of the others.

    Args:
        path: Name of the file, for messages.
        classes: Names of the classes that the model must have been trained
            on. Default: any.
        fine_tunes: Whether the layers of classes may have another number of
            classes in the file. They are left out, and the log names them.
            Default: False.
    """

    priority = 'HIGH'  # before EMAHook takes the weights

    def __init__(
        self,
        path: str,
        classes: Sequence[str] | None = None,
        fine_tunes: bool = False,
    ) -> None:
        self.path = path
        self.classes = classes
        self.fine_tunes = fine_tunes

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load the weights strictly. MMEngine then loads them once more.

        Args:
            runner: The runner.
            checkpoint: Content of the file.

        Raises:
            CheckpointError: If the weights do not fit the model, or the
                classes differ.
        """
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        trained = list(meta.get('classes') or ())
        if self.classes and trained and trained != list(self.classes):
            raise CheckpointError(
                f'{self.path} was trained on the classes '
                f'{", ".join(trained)}, and the data has '
                f'{", ".join(self.classes)}'
            )
        model = _unwrap(runner.model)
        left_out: list[str] = []
        if self.fine_tunes:
            left_out = drop_classes(
                model, checkpoint.get('state_dict', checkpoint)
            )
        load_whole(model, checkpoint, self.path, left_out)
        if left_out:
            layers = dict.fromkeys(x.rpartition('.')[0] for x in left_out)
            runner.logger.info(
                f'{self.path} was trained on other classes'
                + (f' ({list_some(trained)})' if trained else '')
                + '; these layers are left out and start from new weights: '
                + ', '.join(layers)
            )


def _unwrap(model: nn.Module) -> nn.Module:
    """The model in the wrappers for several processes and for TTA.

    The wrapper of FSDP stays: only it can load weights into its shards.
    """
    while not isinstance(model, FullyShardedDataParallel) and (
        is_model_wrapper(model) or isinstance(model, BaseTTAModel)
    ):
        model = model.get_submodule('module')
    return model


def check_checkpoint(
    cfg: Config,
    path: str,
    classes: Sequence[str] | None = None,
    fine_tunes: bool = False,
) -> None:
    """Add a hook that refuses a checkpoint of another model.

    Args:
        cfg: The config, changed in place.
        path: The checkpoint that the run loads.
        classes: As for :class:`CheckpointCheckHook`.
        fine_tunes: As for :class:`CheckpointCheckHook`.
    """
    add_hook(
        cfg,
        type='mmefficientmod.CheckpointCheckHook',
        path=path,
        classes=classes,
        fine_tunes=fine_tunes,
    )


@HOOKS.register_module()
class SwitchToDeployHook(Hook):
    """Folds the model for inference before a test.

    MMEngine has loaded the checkpoint by then.
    ``custom_hooks = [dict(type='mmefficientmod.SwitchToDeployHook')]``
    """

    def before_test(self, runner: Runner) -> None:
        """Fold the model, and log the names of the folded modules."""
        names = switch_to_deploy(runner.model)
        for hook in runner.hooks:
            # EMAHook exchanges the averaged weights with those of the model,
            # so both must be folded.
            if isinstance(hook, EMAHook):
                switch_to_deploy(hook.ema_model)
        runner.logger.info(
            f'folded for inference: {", ".join(names)}'
            if names
            else 'nothing of this model can be folded for inference'
        )


@HOOKS.register_module()
class FastLinearHook(Hook):
    """Lets the whole model use the faster library for its products in a test.

    ``custom_hooks = [dict(type='mmefficientmod.FastLinearHook')]``; see
    :func:`mmefficientmod.models.layers.fast_linear.use_fast_linear`.
    """

    priority = 'VERY_LOW'  # after the model may have been folded

    def before_test(self, runner: Runner) -> None:
        """Change the layers, and log their number."""
        count = use_fast_linear(runner.model)
        runner.logger.info(
            f'--fast-linear: {count} linear layers and 1x1 convolutions '
            'beside those of EfficientMod choose their library'
        )


@HOOKS.register_module()
class MatmulLogHook(Hook):
    """Logs which library computes matrix products on the CPU.

    The runners of the tools register it themselves. The line comes after the
    first iteration of a training, and after a test.
    """

    def before_train(self, runner: Runner) -> None:
        """Remember the first iteration, which is not 0 in a resumed run."""
        self._first = runner.iter

    def after_train_iter(
        self, runner: Runner, *args: Any, **kwargs: Any
    ) -> None:
        """Log the line after the first iteration."""
        if runner.iter == self._first:
            self._log(runner)

    def after_test(self, runner: Runner) -> None:
        """Log the line."""
        self._log(runner)

    def _log(self, runner: Runner) -> None:
        line = matmul.summary()
        if line:
            runner.logger.info(line)


@HOOKS.register_module()
class NoObjectsHook(Hook):
    """Says why an AP or AR of an evaluation is -1.

    The runners of the tools register it.
    """

    def after_val_epoch(
        self, runner: Runner, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Look at the metrics of a validation."""
        self._explain(runner, metrics or {})

    def after_test_epoch(
        self, runner: Runner, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Look at the metrics of a test."""
        self._explain(runner, metrics or {})

    def _explain(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        names = [n for n, value in metrics.items() if value == -1]
        if names:
            runner.logger.info(
                f'-1 for want of annotations: {", ".join(names)}. The data '
                'has no such objects; small (s) ones have an area of less '
                'than 32x32 pixels, large (l) ones of more than 96x96'
            )
