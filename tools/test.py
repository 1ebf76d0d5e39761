"""Evaluate a checkpoint with any config: ours, a stock one, or your own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.dist import is_main_process

from mmefficientmod import cli
from mmefficientmod.checkpoint.reading import check_exists
from mmefficientmod.config.class_checks import metainfo
from mmefficientmod.config.nodes import add_hook, dataset_dicts
from mmefficientmod.datasets import fit_classes
from mmefficientmod.engine import modes
from mmefficientmod.engine.hooks import check_checkpoint
from mmefficientmod.engine.preflight import Preflight
from mmefficientmod.engine.runner import build_runner


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of the whole model')
    cli.add_run_arguments(parser)
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation, if the config has one',
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='fold the model for inference before the test',
    )
    cli.add_fast_linear_argument(parser)
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder for metrics.json and the predictions',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    cfg = cli.load_run_config(args)
    check_exists(args.checkpoint)
    cfg.load_from = args.checkpoint
    # First the check of class folders, whose messages say more.
    classes = fit_classes(cfg, ('test_dataloader',))
    if args.data:
        (dataset,) = dataset_dicts(cfg, 'test_dataloader')
        classes = classes or metainfo(dataset).get('classes')
    check_checkpoint(cfg, args.checkpoint, classes)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.tta:
        modes.use_tta(cfg, args.config)
    if args.deploy:
        add_hook(cfg, type='mmefficientmod.SwitchToDeployHook')
    if args.fast_linear:
        add_hook(cfg, type='mmefficientmod.FastLinearHook')
    preflight = Preflight(cfg, 'test')
    preflight.run()
    with cli.remove_if_failed(cfg.work_dir):
        runner = build_runner(cfg)
        preflight.hand_over(runner)
        if not args.mini:  # whose data is as it should be
            preflight.log()
        if args.out:
            modes.save_predictions(runner, Path(args.out))
        metrics = runner.test()
    if args.out and is_main_process():
        result = dict(
            config=args.config, checkpoint=args.checkpoint, metrics=metrics
        )
        path = Path(args.out, 'metrics.json')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, default=float))
        print(f'metrics and predictions: {args.out}')
    return metrics


if __name__ == '__main__':
    cli.run(main)
