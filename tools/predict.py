"""Draw the predictions of a trained model on images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmefficientmod import cli
from mmefficientmod.apis.inference import (
    build_inferencer,
    check_images,
    draw_predictions,
)
from mmefficientmod.checkpoint.reading import check_exists
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.models.layers import matmul
from mmefficientmod.models.layers.fast_linear import use_fast_linear


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of the whole model')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument('--out', default='outputs', help='folder to draw to')
    parser.add_argument(
        '--score-thr',
        type=float,
        metavar='SCORE',
        help='least score of a box that is drawn, for detectors '
        '(default: 0.3)',
    )
    parser.add_argument('--device', help='such as cpu or cuda:0')
    cli.add_data_argument(parser)
    cli.add_matmul_argument(parser)
    cli.add_trust_argument(parser)
    cli.add_fast_linear_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Path]:
    args = parse_args(argv)
    matmul.use_library(args.matmul)
    cfg = cli.load_chosen_config(args)
    apply_options(cfg, args.cfg_options)
    if args.score_thr is not None and cfg.get('default_scope') != 'mmdet':
        raise ConfigError('--score-thr is for detectors')
    check_exists(args.checkpoint)
    check_images(args.images)  # before the model is built, which takes long
    inferencer = build_inferencer(cfg, args.checkpoint, args.device)
    if args.fast_linear:
        use_fast_linear(inferencer.model)
    drawn = draw_predictions(inferencer, args.images, args.out, args.score_thr)
    print('\n'.join(map(str, drawn)))
    return drawn


if __name__ == '__main__':
    cli.run(main)
