"""Draw the predictions of a trained model on images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader

from mmefficientmod import cli
from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.config.files import TOOLBOXES
from mmefficientmod.config.nodes import ConfigError, dataset_dicts
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets import DataError
from mmefficientmod.datasets.folders import (
    has_class_folders,
    set_num_classes,
)
from mmefficientmod.engine.console import quieten


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of the whole model')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument('--out', default='outputs', help='folder to draw to')
    parser.add_argument(
        '--score-thr',
        type=float,
        metavar='SCORE',
        help='least score of what is drawn of a detector (default: 0.3)',
    )
    parser.add_argument('--device', help='such as cpu or cuda:0')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Path]:
    args = parse_args(argv)
    cfg = cli.load_chosen_config(args)
    apply_options(cfg, args.cfg_options)
    if args.score_thr is not None and cfg.get('default_scope') != 'mmdet':
        raise ConfigError('--score-thr is for detectors')
    cli.check_exists(args.checkpoint)
    for image in args.images:
        if not Path(image).is_file() or cv2.imread(image) is None:
            raise DataError(f'{image} is no image that can be read')
    inferencer = build_inferencer(cfg, args.checkpoint, args.device)
    out = Path(args.out)
    # Each toolbox has a word of its own for where to draw.
    where = 'show_dir' if cfg.default_scope == 'mmpretrain' else 'out_dir'
    options = {where: str(out)}
    if args.score_thr is not None:
        options['pred_score_thr'] = args.score_thr
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*.*')}
    inferencer(args.images, **options)
    drawn = sorted(
        p
        for p in out.rglob('*.*')
        if p.suffix in ('.jpg', '.png')
        and p.relative_to(out).parts[0] != 'pred'
        and before.get(p) != p.stat().st_mtime_ns
    )  # fmt: skip
    print('\n'.join(map(str, drawn)))
    return drawn


def build_inferencer(
    cfg: Config, checkpoint: str, device: str | None = None
) -> Any:
    """The inferencer of the toolbox that a config belongs to.

    Args:
        cfg: The config.
        checkpoint: A checkpoint of the whole model.
        device: Where to run; by default a GPU if there is one.

    Raises:
        CheckpointError: If the checkpoint is of another model.
        ConfigError: If the toolbox has no inferencer here.
    """
    scope = cfg.get('default_scope')
    if scope not in TOOLBOXES:
        raise ConfigError(
            f'predictions are drawn for {", ".join(TOOLBOXES)}, and the '
            f'config has default_scope={scope!r}'
        )
    import_toolbox(scope)
    init_default_scope(scope)
    quieten(MMLogger.get_current_instance())
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = None  # the inferencer writes the files
    weights = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
    meta = (weights.get('meta') or {}).get('dataset_meta') or {}
    if scope == 'mmseg':
        from mmseg.apis import MMSegInferencer
        from mmseg.registry import DATASETS

        # Without them it would draw in the colours of Cityscapes.
        dataset = next(dataset_dicts(cfg, 'test_dataloader'))
        meta = meta or DATASETS.get(dataset['type']).METAINFO
        inferencer = MMSegInferencer(
            cfg, checkpoint, meta['classes'], meta['palette'], device=device
        )
    elif scope == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(cfg, checkpoint, device=device)
    else:
        from mmpretrain.apis import ImageClassificationInferencer

        # The folders may be elsewhere; the training has seen them.
        if has_class_folders(cfg) and meta.get('classes'):
            set_num_classes(cfg, len(meta['classes']))
        inferencer = ImageClassificationInferencer(
            cfg, checkpoint, device=device
        )
    load_whole(inferencer.model, weights, checkpoint)
    return inferencer


if __name__ == '__main__':
    cli.run(main)
