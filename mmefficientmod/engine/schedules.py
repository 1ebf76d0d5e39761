"""The learning-rate schedule of a resumed run is that of its config.

MMEngine takes all of a schedule from the checkpoint: its position, but also
its length. A run that is resumed to train longer would keep the rates of the
end of the shorter schedule.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict

# What changes while a schedule runs; all else is its shape.
PROGRESS = {'last_step', '_global_step', '_last_value', 'verbose'}


class ConfigSchedule:
    """The schedule of a config, kept over the loading of a checkpoint.

    Args:
        runner: A runner whose optimizer and schedulers were built, before it
            loads the checkpoint.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.schedulers = _schedulers(runner)
        self.states = [_state(s) for s in self.schedulers]
        self.groups = copy.deepcopy(_options(runner))

    def restore(self) -> None:
        """Compute the rates of the config if the checkpoint has others.

        The schedule is run from its beginning to the iteration of the
        checkpoint, since each rate depends on the one before.
        """
        runner = self.runner
        # Loading builds no new schedulers from those that are built.
        self.schedulers = _schedulers(runner)
        if not self.groups or not self._differs():
            return
        loaded = _rates(runner)
        for group, options in zip(
            runner.optim_wrapper.param_groups, self.groups, strict=True
        ):
            group.update(copy.deepcopy(options))
        for scheduler, state in zip(self.schedulers, self.states, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        with warnings.catch_warnings():
            # The steps of the optimizer were those of the earlier run.
            warnings.filterwarnings('ignore', '.*optimizer.step.*')
            self._run()
        print_log(
            'the schedule of the config differs from that of the checkpoint, '
            f'and is used: learning rate {_rates(runner)} after iteration '
            f'{runner.iter}, not {loaded}',
            'current',
        )

    def _differs(self) -> bool:
        if not self.schedulers:
            return [g['lr'] for g in self.groups] != [
                g['lr'] for g in _options(self.runner)
            ]
        return any(
            _shape(_state(scheduler)) != _shape(state)
            or (
                # One that the checkpoint does not have is at its start.
                self.runner.iter > 0
                and not scheduler.by_epoch
                and scheduler._global_step != self.runner.iter
            )
            for scheduler, state in zip(
                self.schedulers, self.states, strict=True
            )
        )

    def _run(self) -> None:
        by_iter = [s for s in self.schedulers if not s.by_epoch]
        by_epoch = [s for s in self.schedulers if s.by_epoch]
        epochs = self.runner.epoch if by_epoch else 0
        done = 0
        for epoch in range(max(epochs, 1)):
            end = self.runner.iter * (epoch + 1) // max(epochs, 1)
            for _ in range(done, end if by_iter else done):
                for scheduler in by_iter:
                    scheduler.step()
            done = end
            if epochs:
                for scheduler in by_epoch:
                    scheduler.step()


def _schedulers(runner: Any) -> list[Any]:
    found = runner.param_schedulers or []
    return list(found) if isinstance(found, list) else []


def _options(runner: Any) -> list[dict[str, Any]]:
    """Learning rate and the other options of each group of parameters."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):  # several optimizers
        return []
    return [
        {k: v for k, v in group.items() if k != 'params'}
        for group in wrapper.param_groups
    ]


def _state(scheduler: Any) -> dict[str, Any]:
    return copy.deepcopy(scheduler.state_dict())


def _shape(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k not in PROGRESS}


def _rates(runner: Any) -> str:
    rates = sorted({f'{group["lr"]:.3g}' for group in _options(runner)})
    return ', '.join(rates[:3])
