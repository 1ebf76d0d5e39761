"""The arguments of the tools, and the config that they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from mmefficientmod.checkpoint.entry import protect
from mmefficientmod.checkpoint.reading import trust_files
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import LOADERS, ConfigError
from mmefficientmod.config.options import OptionsAction, apply_options
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets import apply_mini, apply_own
from mmefficientmod.engine import distributed
from mmefficientmod.models.layers import matmul
from mmefficientmod.swap.backbone import swap_backbone
from mmefficientmod.swap.names import BACKBONES, backbone_name

# Arguments that every tool takes.
COMMON = argparse.ArgumentParser(add_help=False)
COMMON.add_argument(
    '--traceback',
    action='store_true',
    help='show the traceback of every error',
)


def tool_parser(
    description: str | None, **kwargs: Any
) -> argparse.ArgumentParser:
    """A parser with the arguments that every tool takes.

    Args:
        description: Text above the arguments in the help.
        **kwargs: Further arguments of ``argparse.ArgumentParser``.
    """
    return argparse.ArgumentParser(
        description=description, parents=[COMMON], **kwargs
    )


def add_matmul_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--matmul``, the argument of ``matmul.use_library``.

    Args:
        parser: The parser.
    """
    parser.add_argument(
        '--matmul',
        choices=matmul.LIBRARIES,
        help='library for float32 matrix products of EfficientMod on a CPU: '
        "the faster one, PyTorch's own (mostly MKL) or oneDNN (default: the "
        f'variable {matmul.VARIABLE}, or auto)',
    )


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust``, the files for ``trust_files``.

    Args:
        parser: The parser.
    """
    parser.add_argument(
        '--trust',
        action='append',
        default=[],
        metavar='FILE',
        help='read this checkpoint by PyTorch, which runs the code in it and '
        'checks nothing; only for a file whose author you trust. Without '
        'it, no checkpoint runs code. May be given several times',
    )


def add_fast_linear_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--fast-linear``.

    Args:
        parser: The parser.
    """
    parser.add_argument(
        '--fast-linear',
        action='store_true',
        help='on a CPU, choose the library for the linear layers and 1x1 '
        'convolutions of the whole model, not of EfficientMod alone',
    )


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``, the CPU threads of an exported file.

    Args:
        parser: The parser.
    """
    parser.add_argument(
        '--threads',
        type=int,
        metavar='N',
        help='CPU threads that run an exported file (default: the choice of '
        'its library)',
    )


def config_arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of every tool that reads a config.

    Args:
        description: Text above the arguments in the help.
    """
    parser = tool_parser(description)
    parser.add_argument(
        'config',
        help='a path, or a config of an installed package such as '
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    )
    parser.add_argument(
        '--backbone',
        metavar='NAME',
        help='replace the backbone by this one: '
        f'{", ".join(BACKBONES)}, timm:NAME for a model of timm, or the dict '
        'of a registered backbone',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='KEY=VALUE',
        help='settings to override, for example '
        'train_dataloader.batch_size=2 or data_root=/data/ade',
    )
    return parser


def add_data_argument(
    parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup,
) -> None:
    """Add ``--data``, the folder for ``apply_own``.

    Args:
        parser: The parser, or a group of it.
    """
    parser.add_argument(
        '--data',
        metavar='FOLDER',
        help='your own data: COCO files for detection, images and masks for '
        'segmentation, class folders for classification; classes, heads and '
        'evaluators of the config follow (see docs/own_data.md)',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of training and testing.

    Args:
        parser: The parser.
    """
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints '
        '(default: work_dirs/NAME_OF_CONFIG)',
    )
    data = parser.add_mutually_exclusive_group()
    add_data_argument(data)
    data.add_argument(
        '--mini',
        action='store_true',
        help='run on a small generated data set of the same layout, kept '
        'in data/mini',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision, on a GPU'
    )
    add_matmul_argument(parser)
    add_trust_argument(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    parser.add_argument(
        '--dist-timeout',
        type=float,
        default=10,
        metavar='MINUTES',
        help='for so long a process waits for another one (default: 10)',
    )
    # torch.distributed.launch passes it; torchrun sets a variable instead.
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, default=0,
        help=argparse.SUPPRESS,
    )  # fmt: skip


def load_chosen_config(args: argparse.Namespace) -> Config:
    """The config that is named, with the backbone that is named.

    Imports the toolbox of the config, and has MMEngine read checkpoints by the
    reader of this package, and applies ``--data``. ``--cfg-options`` are not
    applied yet, since they may set options of the new backbone.

    Args:
        args: Arguments of :func:`config_arguments`, and ``pretrained``,
            ``trust`` and ``data`` if the tool has them. A tool that needs
            training data has ``trains=True``.

    Raises:
        ConfigError: If the config does not exist, or the backbone or
            ``--data`` does not fit it.
        DataError: If the folder of ``--data`` does not hold what the config
            needs.
    """
    protect()
    trust_files(getattr(args, 'trust', []))
    cfg = load_config(args.config)
    import_toolbox(cfg.get('default_scope') or 'mmengine')
    if args.backbone:
        pretrained = getattr(args, 'pretrained', None)
        cfg = swap_backbone(cfg, args.backbone, pretrained)
    if getattr(args, 'data', None):
        apply_own(cfg, args.data, getattr(args, 'trains', False))
    return cfg


def load_run_config(args: argparse.Namespace) -> Config:
    """The config of a training or a test, with all options applied.

    Also joins the process group of a distributed run.

    Args:
        args: Arguments of :func:`config_arguments` and
            :func:`add_run_arguments`.

    Raises:
        ConfigError: If the config does not exist, an option does not fit it,
            or ``--amp`` or ``--launcher`` need a GPU that is not there.
    """
    matmul.use_library(args.matmul)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not args.dist_timeout > 0:
        raise ConfigError('--dist-timeout must be more than 0 minutes')
    distributed.start(args.launcher, args.dist_timeout)
    cfg = load_chosen_config(args)
    if args.launcher != 'none':
        seconds = max(1, round(60 * args.dist_timeout))
        cfg.merge_from_dict({'env_cfg.dist_cfg.timeout': seconds})
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
            '--amp needs a GPU: MMEngine has no mixed precision on CPUs'
        )
    if cfg.get('visualizer'):
        # Visualizers of the same name are one object in a process, which
        # would write the second run into the folder of the first.
        cfg.visualizer.pop('name', None)
    if cfg.get('default_scope') == 'mmpretrain':
        _collate_like_mmpretrain(cfg)
    return cfg


def _collate_like_mmpretrain(cfg: Config) -> None:
    """Set the defaults of the loaders that MMPretrain's train script sets."""
    for name in LOADERS:
        if cfg.get(name):
            cfg[name] = ConfigDict(
                pin_memory=True,
                persistent_workers=cfg[name].get('num_workers', 0) > 0,
                collate_fn=dict(type='default_collate'),
            ) | dict(cfg[name])
