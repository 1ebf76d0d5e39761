"""Draw the predictions of a trained model on images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2

from mmefficientmod import cli
from mmefficientmod.apis.inference import build_inferencer
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.datasets import DataError


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


if __name__ == '__main__':
    cli.run(main)
