"""Train any config: ours, a stock one of a toolbox, or your own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmefficientmod import cli
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError, find_model, type_name
from mmefficientmod.datasets import check_data_exists, fit_classes
from mmefficientmod.engine.hooks import check_checkpoint
from mmefficientmod.engine.runner import build_runner, train_with_amp
from mmefficientmod.swap.weights import set_pretrained


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    cli.add_run_arguments(parser)
    parser.add_argument(
        '--pretrained',
        metavar='FILE',
        help='ImageNet weights of the backbone, to start from',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='FILE',
        help='go on from a checkpoint, by default the last of the work dir',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate linearly with the total batch',
    )
    parser.add_argument(
        '--fsdp',
        action='store_true',
        help='deal the weights out to the processes (FSDP), a stage at a time',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Runner:
    args = parse_args(argv)
    cfg = cli.load_run_config(args)
    if args.fsdp:
        cfg.merge_from_dict(load_config('mmefficientmod::_base_/fsdp.py'))
    if args.amp:
        train_with_amp(cfg)
    if args.resume:
        if args.resume != 'auto':
            cli.check_exists(args.resume)
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ConfigError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size, which '
                f'{args.config} does not have'
            )
        cfg.auto_scale_lr.enable = True
    if cfg.get('load_from'):
        check_checkpoint(cfg, cfg.load_from)
    if args.pretrained and not args.backbone:
        set_pretrained(cfg, args.pretrained)
    loaders = ('train_dataloader', 'val_dataloader')
    check_data_exists(cfg, loaders)
    classes = fit_classes(cfg, loaders)
    with cli.remove_if_failed(cfg.work_dir):
        runner = build_runner(cfg)
        if classes:
            print_log(
                f'{len(classes)} classes: {", ".join(classes)}', 'current'
            )
        if not args.mini:
            warn_without_weights(cfg, fine_tunes=bool(classes))
        runner.train()
    return runner


def warn_without_weights(cfg: Config, fine_tunes: bool) -> None:
    """Say so where a recipe for pretrained weights runs without any.

    Args:
        cfg: The config.
        fine_tunes: Whether a classifier is for data of the user's own.
    """
    try:
        backbone = find_model(cfg).backbone
    except ConfigError:  # it brings its own
        return
    if (
        type_name(backbone) == 'EfficientMod'
        and not backbone.get('init_cfg')
        and not cfg.get('load_from')
        and (fine_tunes or cfg.get('default_scope') != 'mmpretrain')
    ):
        print_log(
            'The backbone starts from random weights'
            + ('' if fine_tunes else '; the published results do not')
            + ': give it ImageNet weights with --pretrained FILE',
            logger='current',
            level=30,
        )


if __name__ == '__main__':
    cli.run(main)
