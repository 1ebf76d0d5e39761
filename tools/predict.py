"""Predict on images, videos or a camera; draw or save the predictions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmefficientmod import cli
from mmefficientmod.apis.inference import build_inferencer
from mmefficientmod.apis.inputs import SUFFIXES, find_sources
from mmefficientmod.apis.outputs import folders
from mmefficientmod.apis.predicting import (
    IMAGE,
    SAVES,
    check_save,
    predict_files,
)
from mmefficientmod.checkpoint.reading import check_exists
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.toolbox import toolbox_of
from mmefficientmod.deploy.files import is_exported
from mmefficientmod.models.layers import matmul
from mmefficientmod.models.layers.fast_linear import use_fast_linear


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    parser.add_argument(
        'checkpoint',
        help='checkpoint of the whole model, or an exported file: *.onnx, or '
        '*.xml of OpenVINO',
    )
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='input',
        help='an image, a video, a folder, a pattern such as '
        '"photos/**/*.jpg" in quotes, the number of a camera such as 0, or '
        f'its file. Folders and patterns are searched for {SUFFIXES}',
    )
    parser.add_argument(
        '--out',
        default='outputs',
        help='folder to write to (default: outputs)',
    )
    parser.add_argument(
        '--save',
        choices=SAVES,
        default=IMAGE,
        help='image: drawings; json: the predictions of a detector, in '
        "COCO's format; png: the label maps of a segmentor; csv: the scores "
        'of a classifier; both: drawings and predictions (default: image)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        metavar='SCORE',
        help='least score of an object of a detector (default: 0.3 in '
        'drawings, none in the file)',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        metavar='N',
        help='predict on N images of the same size at once (default: 1)',
    )
    parser.add_argument('--device', help='such as cpu or cuda:0')
    cli.add_threads_argument(parser)
    cli.add_data_argument(parser)
    cli.add_matmul_argument(parser)
    cli.add_trust_argument(parser)
    cli.add_fast_linear_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Path]:
    args = parse_args(argv)
    if args.batch_size < 1:
        raise ConfigError('--batch-size must be 1 or more')
    matmul.use_library(args.matmul)
    cfg = cli.load_chosen_config(args)
    apply_options(cfg, args.cfg_options)
    scope = toolbox_of(cfg)
    check_save(args.save, scope)
    if args.score_thr is not None and scope != 'mmdet':
        raise ConfigError('--score-thr is for detectors')
    check_exists(args.checkpoint)
    if args.fast_linear and is_exported(args.checkpoint):
        raise ConfigError(
            '--fast-linear changes the model of a checkpoint, and '
            f'{args.checkpoint} is an exported file'
        )
    # Before the model is built, which takes long.
    sources = find_sources(args.inputs, folders(args.out))
    inferencer = build_inferencer(
        cfg, args.checkpoint, args.device, args.threads
    )
    if args.fast_linear:
        use_fast_linear(inferencer.model)
    paths = []
    for path in predict_files(
        inferencer,
        sources,
        args.out,
        args.save,
        args.score_thr,
        args.batch_size,
    ):
        # A name may have bytes that are no characters.
        print(str(path).encode(errors='replace').decode(), flush=True)
        paths.append(path)
    return paths


if __name__ == '__main__':
    cli.run(main)
