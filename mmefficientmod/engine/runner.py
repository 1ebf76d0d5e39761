"""MMEngine's runners, with seeded samples and a quiet terminal."""

from __future__ import annotations

from typing import Any

from mmengine._strategy import BaseStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.config.schedule import accumulation
from mmefficientmod.datasets import name_file_on_error
from mmefficientmod.engine import distributed
from mmefficientmod.engine.console import show_progress
from mmefficientmod.engine.resume import resume_as_before
from mmefficientmod.engine.seeding import SeedStepHook, seed_samples


class RunnerMixin:
    """What the runners of the tools have in common."""

    @staticmethod
    def build_dataloader(
        dataloader: Any,
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build a data loader that names the file where it fails.

        What is random in a sample is seeded by its place in the training.
        """
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        name_file_on_error(loader.dataset)
        if seed is not None:
            seed_samples(loader, seed)
        return loader

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Register hooks, with the one that seeds each step."""
        super().register_hooks(*args, **kwargs)
        self.register_hook(SeedStepHook())

    def count_accumulation(self, auto_scale_lr: dict | None) -> dict | None:
        """What the learning rate is scaled by, for MMEngine.

        It compares the images of an iteration with ``base_batch_size``,
        which are those of a step of the optimizer.
        """
        counts = accumulation(self.cfg)
        if counts == 1 or not (auto_scale_lr or {}).get('enable'):
            return auto_scale_lr
        base = auto_scale_lr['base_batch_size']
        print_log(
            f'Gradients of {counts} iterations are accumulated: of the '
            f'{base} images that the learning rate is for, an iteration has '
            f'{base / counts:g}.',
            'current',
        )
        return dict(auto_scale_lr, base_batch_size=base / counts)


class ToolRunner(RunnerMixin, Runner):
    """MMEngine's runner, with a terminal that shows progress.

    Environment, config and hooks stand in the log file alone; the notes in
    ``NOISE`` and the rows of classes that a table has no number for, nowhere.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger and quieten it."""
        logger = super().build_logger(*args, **kwargs)
        show_progress(logger)
        return logger

    def wrap_model(
        self, model_wrapper_cfg: dict | None, model: nn.Module
    ) -> nn.Module:
        """Wrap the model for several processes, on the CPU too."""
        if self.distributed and get_device() == 'cpu':
            # PyTorch synchronises batch norm on GPUs alone.
            model = revert_sync_batchnorm(model)
            self.cfg.sync_bn = None
            if model_wrapper_cfg is None:
                model_wrapper_cfg = dict(
                    broadcast_buffers=False,
                    find_unused_parameters=self.cfg.get(
                        'find_unused_parameters', False
                    ),
                )
            model_wrapper_cfg = distributed.without_device(model_wrapper_cfg)
        return super().wrap_model(model_wrapper_cfg, model)

    def scale_lr(
        self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None
    ) -> None:
        """Scale the learning rate by the images of an optimizer's step."""
        super().scale_lr(optim_wrapper, self.count_accumulation(auto_scale_lr))


class ToolFlexibleRunner(RunnerMixin, FlexibleRunner):
    """MMEngine's runner with a strategy, such as FSDP, in the same way."""

    def build_strategy(
        self, strategy: Any = None, launcher: str = 'none', **kwargs: Any
    ) -> BaseStrategy:
        """Build the strategy and quieten its logger.

        Raises:
            ConfigError: If it needs GPUs that are not there.
        """
        kind = (strategy or {}).get('type', 'DDPStrategy')
        if get_device() == 'cpu' and launcher != 'none':
            if kind == 'DDPStrategy':
                raise ConfigError(
                    'DDPStrategy needs GPUs; without `runner_type` the '
                    'config trains on several processes of the CPU too'
                )
        elif launcher == 'none' and 'FSDP' in str(kind):
            raise ConfigError(
                'FSDP is for several processes; start them with '
                'tools/dist_train.sh'
            )
        built = super().build_strategy(strategy, launcher, **kwargs)
        built._auto_scale_lr = self.count_accumulation(built._auto_scale_lr)
        show_progress(built.logger)
        return built


RUNNER_TYPES = dict(Runner=ToolRunner, FlexibleRunner=ToolFlexibleRunner)


def build_runner(cfg: Config) -> Runner:
    """The runner that a config asks for."""
    if cfg.get('resume'):
        resume_as_before(cfg)
    kind = cfg.get('runner_type', 'Runner')
    if kind not in RUNNER_TYPES:
        return RUNNERS.build(cfg)
    hooks = cfg.get('custom_hooks') or []
    if 'FSDP' in type_name(cfg.get('strategy')) and 'EMAHook' in map(
        type_name, hooks
    ):
        raise ConfigError(
            'FSDP does not go with EMAHook, which copies the model before it '
            'is dealt out; leave the hook out with `--cfg-options '
            "custom_hooks='[]'`"
        )
    runner = RUNNER_TYPES[kind].from_cfg(cfg)
    print_log(f'log, config and checkpoints: {runner.log_dir}', 'current')
    return runner


def train_with_amp(cfg: Config) -> None:
    """Have the optimizer wrapper train in mixed precision.

    Raises:
        ConfigError: If its wrapper is one that cannot.
    """
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper) or 'OptimWrapper'
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp cannot replace the optimizer wrapper {kind}')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')
