"""Evaluate a checkpoint with any config: ours, a stock one, or your own.

In place of a checkpoint, a file of tools/export.py can be given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.dist import is_main_process

from mmefficientmod import cli
from mmefficientmod.checkpoint.reading import check_exists
from mmefficientmod.config.class_checks import metainfo
from mmefficientmod.config.nodes import ConfigError, add_hook, dataset_dicts
from mmefficientmod.datasets import fit_classes
from mmefficientmod.deploy.exported.config import (
    check_file_classes,
    use_exported,
)
from mmefficientmod.deploy.files import is_exported
from mmefficientmod.engine import modes
from mmefficientmod.engine.hooks import check_checkpoint
from mmefficientmod.engine.preflight import Preflight
from mmefficientmod.engine.runner import build_runner


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    parser.add_argument(
        'checkpoint',
        help='checkpoint of the whole model, or an exported file: *.onnx, or '
        '*.xml of OpenVINO',
    )
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
    cli.add_threads_argument(parser)
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
    exported = is_exported(args.checkpoint)
    if exported:
        check_modes(args)
    else:
        cfg.load_from = args.checkpoint
    # First the check of class folders, whose messages say more.
    classes = fit_classes(cfg, ('test_dataloader',))
    if args.data:
        (dataset,) = dataset_dicts(cfg, 'test_dataloader')
        classes = classes or metainfo(dataset).get('classes')
    if not exported:
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
    if exported:
        file = use_exported(cfg, args.checkpoint, args.threads)
        check_file_classes(file, preflight.datasets.get('test_dataloader'))
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


def check_modes(args: argparse.Namespace) -> None:
    """Refuse what changes the model, which an exported file does not allow.

    Raises:
        ConfigError: If such an argument was given.
    """
    for name in ('amp', 'deploy', 'fast_linear', 'tta'):
        if getattr(args, name):
            raise ConfigError(
                f'--{name.replace("_", "-")} changes the model of a '
                f'checkpoint, and {args.checkpoint} is an exported file'
            )


if __name__ == '__main__':
    cli.run(main)
