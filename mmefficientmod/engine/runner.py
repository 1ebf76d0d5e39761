"""MMEngine's two runners, as the tools use them.

They seed each sample and each training step, name a file that cannot be
loaded, run in several processes on CPUs too, scale the learning rate by the
number of images in a step of the optimizer, and show only progress in the
terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmefficientmod.checkpoint.entry import protect
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.config.schedule import adapt_auto_scale_lr
from mmefficientmod.datasets import DataError, name_file_on_error
from mmefficientmod.engine import distributed
from mmefficientmod.engine.console import show_progress
from mmefficientmod.engine.finite import FiniteHook
from mmefficientmod.engine.hooks import MatmulLogHook, NoObjectsHook
from mmefficientmod.engine.interrupt import InterruptHook, init_worker
from mmefficientmod.engine.resume import resume_as_before
from mmefficientmod.engine.saving import SafeCheckpointHook, SavingMixin
from mmefficientmod.engine.schedules import ConfigSchedule
from mmefficientmod.engine.seeding import SeedStepHook, seed_samples
from mmefficientmod.messages import shorten

if TYPE_CHECKING:
    # MMEngine's strategies have no public module.
    from mmengine._strategy import BaseStrategy


# MMEngine's hook for checkpoints where a config has none.
MMENGINE_SAVING = dict(type='CheckpointHook', interval=1)


class RunnerMixin(SavingMixin):
    """What the runners of the tools have in common."""

    cfg: Config

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | Mapping[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build a data loader.

        Each sample is seeded by its position in the training, a file that
        cannot be loaded is named, and there are no more workers than cores.

        Args:
            dataloader: The config of the data loader. A data loader is
                returned as it is.
            seed: The seed of the run. Default: samples are not seeded.
            diff_rank_seed: Whether each process shuffles in its own order.
        """
        if isinstance(dataloader, DataLoader):
            return dataloader
        cfg = limit_workers(dataloader)
        if seed is not None:
            cfg = seed_samples(cfg, seed)
        loader = Runner.build_dataloader(cfg, seed, diff_rank_seed)
        name_file_on_error(loader.dataset)
        loader.worker_init_fn = partial(init_worker, loader.worker_init_fn)
        return loader

    # The runner that this mixin is combined with has these methods.

    def register_hooks(
        self,
        default_hooks: Mapping[str, Any] | None = None,
        custom_hooks: list | None = None,
    ) -> None:
        """Register the hooks of the config, and those of every run.

        Args:
            default_hooks: Those of the config, with MMEngine's for the
                others. ``CheckpointHook`` becomes ``SafeCheckpointHook``.
            custom_hooks: Further hooks of the config.
        """
        hooks = dict(default_hooks or {})
        saving = hooks.get('checkpoint', MMENGINE_SAVING)
        if isinstance(saving, Mapping) and (
            type_name(saving) == 'CheckpointHook'
        ):
            hooks['checkpoint'] = {**saving, 'type': SafeCheckpointHook}
        super().register_hooks(hooks, custom_hooks)  # type: ignore[misc]
        self.interrupt_hook = InterruptHook()
        for hook in (
            SeedStepHook(),
            MatmulLogHook(),
            NoObjectsHook(),
            FiniteHook(self.cfg.get('keep_going', False)),
            self.interrupt_hook,
        ):
            self.register_hook(hook)  # type: ignore[attr-defined]

    def load_or_resume(self) -> None:
        """Load the checkpoint; a resumed run keeps the config's schedule."""
        resume = self._resume  # type: ignore[attr-defined]
        schedule = ConfigSchedule(self) if resume else None
        super().load_or_resume()  # type: ignore[misc]
        if schedule:
            schedule.restore()

    def train(self) -> nn.Module:
        """Train, and leave the handling of signals as it was."""
        try:
            return super().train()  # type: ignore[misc]
        finally:
            self.interrupt_hook.restore()

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: If its training state is not that of this run.
        """
        try:
            super().resume(filename, *args, **kwargs)  # type: ignore[misc]
        except (ConfigError, DataError):
            raise
        # What MMEngine and PyTorch raise for a state of other types. An
        # error of another type may be one of the machine.
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise CheckpointError(
                f'{filename} cannot be resumed: its training state does not '
                f'fit this run ({type(error).__name__}: {shorten(str(error))})'
                '; to start from its weights alone, set load_from to it by '
                '--cfg-options'
            ) from error


class ToolRunner(RunnerMixin, Runner):
    """MMEngine's default runner, for the tools.

    The terminal shows progress; environment, config and list of hooks are in
    the log file alone. See :mod:`mmefficientmod.engine.console`.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger and limit what it shows in the terminal."""
        logger = super().build_logger(*args, **kwargs)
        show_progress(logger)
        return logger

    def wrap_model(
        self, model_wrapper_cfg: dict | None, model: nn.Module
    ) -> nn.Module:
        """Wrap the model for several processes, also where there is no GPU.

        Args:
            model_wrapper_cfg: The wrapper. Default: data parallelism.
            model: The model.
        """
        if self.distributed and get_device() == 'cpu':
            # PyTorch's SyncBN runs on GPUs only.
            model = revert_sync_batchnorm(model)
            self.cfg.sync_bn = None
            if model_wrapper_cfg is None:
                model_wrapper_cfg = dict(
                    broadcast_buffers=False,  # MMEngine's default
                    find_unused_parameters=self.cfg.get(
                        'find_unused_parameters', False
                    ),
                )
            model_wrapper_cfg = distributed.without_device(model_wrapper_cfg)
        return super().wrap_model(model_wrapper_cfg, model)

    def scale_lr(
        self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None
    ) -> None:
        """Scale the learning rate by the images in a step of the optimizer.

        Args:
            optim_wrapper: The optimizer wrapper, changed in place.
            auto_scale_lr: Dict with ``enable`` and ``base_batch_size``.
        """
        super().scale_lr(
            optim_wrapper, adapt_auto_scale_lr(self.cfg, auto_scale_lr)
        )


class ToolFlexibleRunner(RunnerMixin, FlexibleRunner):
    """MMEngine's runner with a strategy such as FSDP, for the tools."""

    def build_strategy(
        self,
        strategy: BaseStrategy | dict | None = None,
        launcher: str = 'none',
        **kwargs: Any,
    ) -> BaseStrategy:
        """Build the strategy and limit what its logger shows.

        Args:
            strategy: A strategy or its config. Default: one process without
                a launcher, data parallelism with one.
            launcher: What started the processes.
            **kwargs: The other arguments of ``FlexibleRunner``'s method.

        Raises:
            ConfigError: If the strategy needs GPUs or several processes, and
                there are none.
        """
        if strategy is None:
            single = launcher == 'none'
            strategy = dict(
                type='SingleDeviceStrategy' if single else 'DDPStrategy'
            )
        if isinstance(strategy, dict):
            _check_strategy(type_name(strategy), launcher)
            scale = strategy.get(
                'auto_scale_lr', self.cfg.get('auto_scale_lr')
            )
            strategy = {
                **strategy,
                'auto_scale_lr': adapt_auto_scale_lr(self.cfg, scale),
            }
        built = super().build_strategy(strategy, launcher, **kwargs)
        show_progress(built.logger)
        return built


def _check_strategy(name: str, launcher: str) -> None:
    if launcher == 'none' and 'FSDP' in name:
        raise ConfigError(
            'FSDP needs several processes; start them with tools/dist_train.sh'
        )
    if launcher != 'none' and name == 'DDPStrategy' and get_device() == 'cpu':
        raise ConfigError(
            'DDPStrategy needs GPUs; leave runner_type out of the config to '
            'train on several processes of the CPU'
        )


def limit_workers(dataloader: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a data loader, with at most one worker for each core.

    The processes of this machine share its cores. Each has at least one
    worker if the config asks for any. More workers would only take turns, and
    PyTorch would warn of them. Without workers, ``persistent_workers``, which
    PyTorch then refuses, is turned off.

    Args:
        dataloader: The config; not changed.
    """
    cfg = dict(dataloader)
    wanted = cfg.get('num_workers', 0)
    cores = distributed.num_cores()
    processes = distributed.num_local_processes()
    most = max(1, cores // processes)
    if wanted > most:
        cfg['num_workers'] = most
        print_log(
            f'num_workers={most} instead of {wanted}: cores of this machine: '
            f'{cores}, processes: {processes}',
            'current',
        )
    elif not wanted and cfg.get('persistent_workers'):
        cfg['persistent_workers'] = False
    return cfg


RUNNER_TYPES: dict[str, type[ToolRunner] | type[ToolFlexibleRunner]] = dict(
    Runner=ToolRunner, FlexibleRunner=ToolFlexibleRunner
)


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """The runner of a config.

    Args:
        cfg: The config; in a resumed run, it gets the seed of the checkpoint.

    Raises:
        ConfigError: If the options of a resumed run differ from those of the
            run that it continues, or if FSDP and ``EMAHook`` are combined.
    """
    protect()
    if cfg.get('resume'):
        resume_as_before(cfg)
    name = cfg.get('runner_type', 'Runner')
    if name not in RUNNER_TYPES:  # a class of the user's own
        return RUNNERS.build(cfg)
    hooks = cfg.get('custom_hooks') or []
    if 'FSDP' in type_name(cfg.get('strategy')) and 'EMAHook' in map(
        type_name, hooks
    ):
        raise ConfigError(
            'FSDP does not work with EMAHook, which copies the model: a '
            'sharded model cannot be copied. Leave the hook out with '
            "`--cfg-options custom_hooks='[]'`"
        )
    runner = RUNNER_TYPES[name].from_cfg(cfg)
    print_log(f'log, config and checkpoints: {runner.log_dir}', 'current')
    return runner
