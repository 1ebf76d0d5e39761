"""Evaluate a checkpoint under any config: ours, a stock one, or your own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmefficientmod import cli
from mmefficientmod.config import ConfigError
from mmefficientmod.datasets import check_data_exists

# How each toolbox writes predictions to a folder.
DUMPS = {
    'mmdet': dict(type='DumpDetResults', out_file_path='predictions.pkl'),
    'mmpretrain': dict(type='DumpResults', out_file_path='predictions.pkl'),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of the whole model')
    cli.add_run_arguments(parser)
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation, where the config describes one',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder for metrics.json and the predictions',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    cfg = cli.load_run_config(args)
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        raise ConfigError(f'checkpoint {args.checkpoint} does not exist')
    cfg.load_from = args.checkpoint
    cfg.custom_hooks.append(
        dict(type='CheckpointCheckHook', path=args.checkpoint)
    )
    if args.tta:
        use_tta(cfg, args.config)
    if args.out:
        dump_predictions(cfg, Path(args.out))
    check_data_exists(cfg, ('test_dataloader',))
    with cli.remove_if_failed(cfg.work_dir):
        metrics = cli.build_runner(cfg).test()
    if args.out:
        result = dict(
            config=args.config, checkpoint=args.checkpoint, metrics=metrics
        )
        path = Path(args.out, 'metrics.json')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, default=float))
        print(f'metrics and predictions: {args.out}')
    return metrics


def use_tta(cfg: Config, name: str) -> None:
    """Turn a config into its test-time augmentation."""
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise ConfigError(f'--tta: {name} has no tta_model and tta_pipeline')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def dump_predictions(cfg: Config, folder: Path) -> None:
    """Have the evaluator write predictions to a folder."""
    if cfg.get('default_scope') == 'mmseg':
        cfg.test_evaluator['output_dir'] = str(folder / 'predictions')
        return
    dump = DUMPS[cfg.get('default_scope')]
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, list):
        evaluators = [evaluators]
    path = str(folder / dump['out_file_path'])
    cfg.test_evaluator = [*evaluators, dict(dump, out_file_path=path)]


if __name__ == '__main__':
    cli.run(main)
