"""Stopping a training whose loss or weights are no longer finite.

After a step with such a loss, all weights are NaN, and a checkpoint of them
would take the place of a good one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mmefficientmod.checkpoint.checks import is_finite
from mmefficientmod.registry import HOOKS

# PyTorch's scaler halves its factor after each overflow, from 65536. Below
# this factor, smaller gradients cannot be the remedy.
LEAST_SCALE = 1.0
MOST_FILES = 8  # that a message names


class TrainingError(RuntimeError):
    """A training cannot go on."""


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stops a training before weights that are not finite are saved.

    The runners of the tools register it. In mixed precision, the scaler of
    the loss skips steps whose gradients are not finite, so the training only
    stops when its factor has fallen below :data:`LEAST_SCALE`.

    Args:
        keep_going: Log a warning instead (``--keep-going``). Default: False.
    """

    priority = 'ABOVE_NORMAL'  # before the averaged weights are updated

    def __init__(self, keep_going: bool = False) -> None:
        self.keep_going = keep_going

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Check the losses of a step.

        Args:
            runner: The runner.
            batch_idx: Number of the batch in the epoch.
            data_batch: The batch.
            outputs: The losses by name.

        Raises:
            TrainingError: If one of them is not finite.
        """
        bad = [
            f'{name} = {value:g}'
            for name, value in _losses(outputs)
            if not math.isfinite(value)
        ]
        if not bad or _may_recover(runner):
            return
        rates = sorted({f'{lr:.3g}' for lr in _learning_rates(runner)})
        self._refuse(
            runner,
            f'iteration {runner.iter + 1}: {", ".join(bad)}, at learning rate '
            f'{", ".join(rates[:3])}, {_files(data_batch)}. {_remedy(runner)}',
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights that are about to be saved.

        Args:
            runner: The runner.
            checkpoint: The content of the file.

        Raises:
            TrainingError: If one of them is not finite.
        """
        for name, value in checkpoint.get('state_dict', {}).items():
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and not is_finite(name, value)
            ):
                self._refuse(
                    runner,
                    f'iteration {runner.iter + 1}: the weight {name} is not '
                    f'finite, and is not saved. {_remedy(runner)}',
                )
                return

    def _refuse(self, runner: Runner, message: str) -> None:
        if not self.keep_going:
            raise TrainingError(message)
        runner.logger.log(logging.WARNING, message)


def _losses(outputs: Mapping[str, Any] | None) -> Iterator[tuple[str, float]]:
    for name, value in (outputs or {}).items():
        if 'loss' in name:
            if isinstance(value, Tensor):
                value = value.detach()
            yield name, float(value)


def _may_recover(runner: Runner) -> bool:
    """Whether a scaler of the loss can still skip this step."""
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, AmpOptimWrapper):
        return False
    scaler = wrapper.loss_scaler
    return scaler.is_enabled() and scaler.get_scale() >= LEAST_SCALE


def _learning_rates(runner: Runner) -> Iterator[float]:
    rates = runner.optim_wrapper.get_lr()
    lists = rates.values() if isinstance(rates, Mapping) else [rates]
    for values in lists:
        yield from values


def _files(batch: Any) -> str:
    """The files of a batch, in words."""
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    if isinstance(samples, dict):  # of a detector with several branches
        samples = [x for branch in samples.values() for x in branch]
    paths = [getattr(x, 'img_path', None) for x in samples]
    names = [str(path) for path in paths if path]
    if not names:
        return 'in a batch without file names'
    more = len(names) - MOST_FILES
    return (
        'in the batch '
        + ', '.join(names[:MOST_FILES])
        + (f' and {more} more' if more > 0 else '')
    )


def _remedy(runner: Runner) -> str:
    last = getattr(runner, 'whole_checkpoint', None)
    return (
        'Lower the learning rate, clip gradients '
        '(optim_wrapper.clip_grad.max_norm=1), or look at these files; '
        + (f'the last good checkpoint is {last}; ' if last else '')
        + '--keep-going trains on regardless'
    )
