"""Train any config: ours, a stock one of a toolbox, or your own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner

from mmefficientmod import cli
from mmefficientmod.checkpoint.reading import check_exists
from mmefficientmod.config.schedule import enable_auto_scale_lr
from mmefficientmod.datasets import fit_classes
from mmefficientmod.engine import modes
from mmefficientmod.engine.hooks import check_checkpoint
from mmefficientmod.engine.preflight import Preflight
from mmefficientmod.engine.resume import choose_checkpoint, nothing_left
from mmefficientmod.engine.runner import build_runner
from mmefficientmod.engine.work_dir import (
    refuse_checkpoints,
    refuse_removal,
    remove_checkpoints,
)
from mmefficientmod.swap.weights import set_pretrained


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    cli.add_run_arguments(parser)
    parser.set_defaults(trains=True)
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
        help='continue from a checkpoint, by default the newest whole one in '
        'the work dir; without any, start at the beginning',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='remove the checkpoints that an earlier run left in the work dir',
    )
    parser.add_argument(
        '--keep-going',
        action='store_true',
        help='only warn if the loss or a weight is not finite',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate linearly with the total batch',
    )
    parser.add_argument(
        '--fsdp',
        action='store_true',
        help='shard the weights over the processes, by stage (FSDP)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Runner | FlexibleRunner:
    args = parse_args(argv)
    cfg = cli.load_run_config(args)
    if args.fsdp:
        modes.train_with_fsdp(cfg)
    if args.amp:
        modes.train_with_amp(cfg)
    if args.resume:
        cfg.resume = True
        # None is for the last checkpoint of the work dir.
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg, args.config)
    if not cfg.get('resume') and not args.overwrite:
        refuse_checkpoints(cfg.work_dir)
    cfg.keep_going = args.keep_going
    start = choose_checkpoint(cfg)
    if start:
        check_exists(start)
        check_checkpoint(cfg, start, fine_tunes=not cfg.get('resume'))
        done = nothing_left(cfg, start) if cfg.resume else None
        if done:
            print_log(done, 'current')
            sys.exit()
    if args.overwrite:
        refuse_removal(cfg.work_dir, start, args.pretrained)
    if args.pretrained and not args.backbone:
        set_pretrained(cfg, args.pretrained)
    # First the check of class folders, whose messages say more.
    classes = fit_classes(cfg, ('train_dataloader', 'val_dataloader'))
    preflight = Preflight(cfg, 'train')
    preflight.run()
    with cli.remove_if_failed(cfg.work_dir):
        runner = build_runner(cfg)
        preflight.hand_over(runner)
        if not args.mini:  # whose data is as it should be
            preflight.log()
        if classes:
            print_log(
                f'{len(classes)} classes: {", ".join(classes)}', 'current'
            )
        if not args.mini:
            modes.warn_without_weights(cfg, fine_tunes=bool(classes))
        if args.overwrite and not cfg.resume and is_main_process():
            remove_checkpoints(cfg.work_dir)
        runner.train()
    return runner


if __name__ == '__main__':
    cli.run(main)
