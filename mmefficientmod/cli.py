"""What the command lines in ``tools/`` share."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine._strategy import BaseStrategy
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.model import (
    BaseTTAModel,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import RUNNERS
from mmengine.runner import (
    CheckpointLoader,
    FlexibleRunner,
    Runner,
    find_latest_checkpoint,
)
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

from mmefficientmod import dist
from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import (
    ConfigError,
    add_hook,
    find_model,
    kind_of,
)
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.schedule import accumulation
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets import DataError, apply_mini, guard
from mmefficientmod.randomness import SeedStepHook, seed_samples
from mmefficientmod.swap.backbone import swap_backbone
from mmefficientmod.swap.names import BACKBONES, backbone_name

# What a user did wrong or lacks, as opposed to a fault of ours.
USER_ERRORS = (CheckpointError, ConfigError, DataError)
# Notes of the libraries that a user can do nothing about, each where it
# arises. Everything else is shown.
NOISE = (
    dict(message='pkg_resources is deprecated'),
    dict(message=r'`torch\.jit\.', category=DeprecationWarning),
    dict(message='invalid escape sequence', category=DeprecationWarning),
    dict(message='``MultiScaleDeformableAttention`` has been moved'),
    dict(message='`reduce_zero_label` will be deprecated'),
    dict(message='``build_loss`` would be deprecated'),
    dict(message='"FileClient" will be deprecated'),
    dict(message='"HardDiskBackend" is the alias'),
    dict(message='in the "function" registry tree'),
    dict(message='The prefix is not set in metric class'),
    dict(message='Default ``avg_non_ignore`` is False'),
    dict(message='The draw is False, it means'),
    dict(message='Setting [A-Z]+_NUM_THREADS environment variable'),
    dict(message='`broadcast_buffers` is deprecated'),
    dict(message='FSDP.state_dict_type'),
    dict(message='Grad strides do not match bucket view strides'),
    dict(message='faster_coco_eval is not installed'),
    dict(message="'pin_memory' argument is set as true"),
)
# What stands in the log file alone.
NO_PROGRESS = (
    '----', 'Config:', 'Exp name:', 'Hooks will be', 'paramwise_options',
)  # fmt: skip
# A class that is neither in the data nor predicted.
EMPTY_ROW = re.compile(r'\|[^|]*(\| *nan *)+\|\s*$')
# Where MMEngine builds what a config names.
REGISTRY = 'mmengine.registry.build_functions'


def config_arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every tool takes.

    Args:
        description: First line of the help.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        'config',
        help='a path, or a config of an installed package such as '
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    )
    parser.add_argument(
        '--backbone',
        metavar='NAME',
        help=f'put this backbone in: {", ".join(BACKBONES)}, or the dict of '
        'another registered one',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='settings to override, for example '
        'train_dataloader.batch_size=2 or data_root=/data/ade',
    )
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing take."""
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints '
        '(default: work_dirs/NAME OF THE CONFIG)'
    )  # fmt: skip
    parser.add_argument(
        '--mini',
        action='store_true',
        help='run on a small generated data set of the same layout, kept '
        'in data/mini',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision, on a GPU'
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    # torch.distributed.launch passes it; torchrun sets the variable.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0,
        help=argparse.SUPPRESS,
    )  # fmt: skip


def load_chosen_config(args: argparse.Namespace) -> Config:
    """The config that is named, with the backbone that is asked for.

    Its toolbox is imported. The options of the command line are not in it
    yet: they are meant for the new backbone.

    Raises:
        ConfigError: If the config does not exist or the backbone does not
            go into it.
    """
    cfg = load_config(args.config)
    import_toolbox(cfg.get('default_scope') or 'mmengine')
    if args.backbone:
        pretrained = getattr(args, 'pretrained', None)
        cfg = swap_backbone(cfg, args.backbone, pretrained)
    return cfg


def load_run_config(args: argparse.Namespace) -> Config:
    """The config that the arguments of a run ask for.

    Raises:
        ConfigError: If it does not exist or an option does not fit.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    dist.start(args.launcher)
    cfg = load_chosen_config(args)
    if args.mini:
        apply_mini(cfg)
    apply_options(cfg, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        name = Path(args.config).stem
        if args.backbone:
            name += f'_{backbone_name(args.backbone)}'
        cfg.work_dir = f'work_dirs/{name}{"_mini" * args.mini}'
    if args.amp and not torch.cuda.is_available():
        raise ConfigError(
            '--amp needs a GPU: MMEngine has no mixed precision on a CPU'
        )
    if cfg.get('visualizer'):
        # A fixed name is one object for all runs of a process.
        cfg.visualizer.pop('name', None)
    if cfg.get('default_scope') == 'mmpretrain':
        _collate_like_mmpretrain(cfg)
    return cfg


def train_with_amp(cfg: Config) -> None:
    """Have the optimizer wrapper train in mixed precision.

    Raises:
        ConfigError: If its wrapper is one that cannot.
    """
    wrapper = cfg.optim_wrapper
    kind = kind_of(wrapper) or 'OptimWrapper'
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp cannot replace the optimizer wrapper {kind}')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def _collate_like_mmpretrain(cfg: Config) -> None:
    """Stack samples, as MMPretrain's own train script does."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name] = ConfigDict(
                pin_memory=True,
                persistent_workers=cfg[name].get('num_workers', 0) > 0,
                collate_fn=dict(type='default_collate'),
            ) | dict(cfg[name])


class _Tool:
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
        guard(loader.dataset)
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


class ToolRunner(_Tool, Runner):
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
            model_wrapper_cfg = dist.without_device(model_wrapper_cfg)
        return super().wrap_model(model_wrapper_cfg, model)

    def scale_lr(
        self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None
    ) -> None:
        """Scale the learning rate by the images of an optimizer's step."""
        super().scale_lr(optim_wrapper, self.count_accumulation(auto_scale_lr))


class ToolFlexibleRunner(_Tool, FlexibleRunner):
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
        _resume_as_before(cfg)
    kind = cfg.get('runner_type', 'Runner')
    if kind not in RUNNER_TYPES:
        return RUNNERS.build(cfg)
    hooks = cfg.get('custom_hooks') or []
    if 'FSDP' in kind_of(cfg.get('strategy')) and 'EMAHook' in map(
        kind_of, hooks
    ):
        raise ConfigError(
            'FSDP does not go with EMAHook, which copies the model before it '
            'is dealt out; leave the hook out with `--cfg-options '
            "custom_hooks='[]'`"
        )
    runner = RUNNER_TYPES[kind].from_cfg(cfg)
    print_log(f'log, config and checkpoints: {runner.log_dir}', 'current')
    return runner


def _resume_as_before(cfg: Config) -> None:
    """Take the seed of the checkpoint, and see that the same is frozen.

    MMEngine takes the seed after the order of the data was drawn. Whether
    `--backbone` keeps frozen stages depends on `--pretrained`.

    Raises:
        ConfigError: If the run that is resumed had other stages frozen.
    """
    path = cfg.get('load_from')
    if not path and Path(cfg.work_dir, 'last_checkpoint').is_file():
        path = find_latest_checkpoint(cfg.work_dir)
    if not path:
        return
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu', 'silent')
    meta = checkpoint.get('meta') or {}
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        cfg.randomness = dict(randomness, seed=meta.get('seed'))
    if isinstance(meta.get('cfg'), str):
        before = _frozen(Config.fromstring(meta['cfg'], '.py'))
        now = _frozen(cfg)
        if before != now:
            raise ConfigError(
                f'{path} is of a run with frozen_stages={before}, and this '
                f'one has {now}; give the options of that run again, also '
                '--pretrained'
            )


def _frozen(cfg: Config) -> int:
    try:
        return find_model(cfg).backbone.get('frozen_stages', -1)
    except ConfigError:  # it brings its own backbone
        return -1


def show_progress(logger: logging.Logger) -> None:
    """Keep what is no progress out of the terminal, and noise out of all."""
    quieten(logger)
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_progress)


def quieten(logger: logging.Logger) -> None:
    """Keep the notes in ``NOISE`` out of a logger."""
    logger.addFilter(_drop_noise)


def _drop_noise(record: logging.LogRecord) -> bool:
    lines = str(record.msg).splitlines(keepends=True)
    if len(lines) > 1:
        record.msg = ''.join(x for x in lines if not EMPTY_ROW.match(x))
    return not any(
        re.search(noise['message'], str(record.msg)) for noise in NOISE
    )


def _is_progress(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().lstrip(
        '\n'
    ).startswith(NO_PROGRESS)


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


def check_exists(checkpoint: str) -> None:
    """Refuse a checkpoint that is neither a file nor a URL.

    Raises:
        ConfigError: If it is neither.
    """
    if not Path(checkpoint).is_file() and '://' not in checkpoint:
        raise ConfigError(f'checkpoint {checkpoint} does not exist')


def check_checkpoint(
    cfg: Config, path: str, classes: Sequence[str] | None = None
) -> None:
    """Have a run refuse a checkpoint of another model or other classes."""
    add_hook(cfg, type='CheckpointCheckHook', path=path, classes=classes)


def silence_noise() -> None:
    """Ignore the warnings of the libraries that are listed here."""
    for noise in NOISE:
        warnings.filterwarnings('ignore', **noise)


@contextlib.contextmanager
def remove_if_failed(work_dir: str) -> Iterator[None]:
    """Leave no work dir behind of a run that failed before its first result.

    A folder that was there before, or that holds a checkpoint, stays; so
    does one with the log of an error that is not a user's.
    """
    folder = Path(work_dir)
    existed = folder.exists()
    try:
        yield
    except Exception as error:
        if (
            not existed
            and user_message(error) is not None
            and is_main_process()
            and not any(folder.rglob('*.pth'))
        ):
            _close_log_files()
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _close_log_files() -> None:
    for logger in logging.Logger.manager.loggerDict.values():
        for handler in list(getattr(logger, 'handlers', [])):
            if isinstance(handler, logging.FileHandler):
                handler.close()
                logger.removeHandler(handler)


def run(main: Callable[[Sequence[str] | None], Any]) -> None:
    """Run a tool's ``main``; what a user can mend ends in one sentence.

    Exits with 2 for such an error, with 130 for Ctrl-C.
    """
    silence_noise()
    try:
        main(None)
        dist.stop()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f'error: {message}', file=sys.stderr)
        sys.exit(2)


def user_message(error: BaseException | None) -> str | None:
    """The message for a user, if the cause of an error is one of theirs.

    A worker process adds a stack trace to the message, which is taken off.
    What MMEngine's registry or a model of ours says of its arguments is a
    user's, too.
    """
    while error is not None:
        if isinstance(error, USER_ERRORS):
            text = str(error)
            for kind in USER_ERRORS:
                text = text.split(f'{kind.__name__}: ')[-1]
            return text.strip()
        if isinstance(error, (TypeError, ValueError, KeyError)):
            where = _raised_in(error)
            if where.startswith(('mmefficientmod.models', REGISTRY)):
                return str(error).strip('"')
        error = error.__cause__
    return None


def _raised_in(error: BaseException) -> str:
    """The module whose code raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get('__name__', '') if frames else ''
