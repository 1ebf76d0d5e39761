"""What the command lines in ``tools/`` share."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dist import is_main_process

from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets import DataError, apply_mini
from mmefficientmod.engine import distributed
from mmefficientmod.engine.console import silence_noise
from mmefficientmod.swap.backbone import swap_backbone
from mmefficientmod.swap.names import BACKBONES, backbone_name

# What a user did wrong or lacks, as opposed to a fault of ours.
USER_ERRORS = (CheckpointError, ConfigError, DataError)
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
    distributed.start(args.launcher)
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


def _collate_like_mmpretrain(cfg: Config) -> None:
    """Stack samples, as MMPretrain's own train script does."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name] = ConfigDict(
                pin_memory=True,
                persistent_workers=cfg[name].get('num_workers', 0) > 0,
                collate_fn=dict(type='default_collate'),
            ) | dict(cfg[name])


def check_exists(checkpoint: str) -> None:
    """Refuse a checkpoint that is neither a file nor a URL.

    Raises:
        ConfigError: If it is neither.
    """
    if not Path(checkpoint).is_file() and '://' not in checkpoint:
        raise ConfigError(f'checkpoint {checkpoint} does not exist')


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
        distributed.stop()
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
