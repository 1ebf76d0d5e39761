"""Export a trained model to a file that runs without PyTorch.

The file is compared with PyTorch before it is written. See docs/deploy.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmefficientmod import cli
from mmefficientmod.apis.exporting import (
    DYNAMIC,
    HALF_TOLERANCE,
    PHONES,
    TARGETS,
    TOLERANCE,
    Export,
    ExportOptions,
    export_model,
)
from mmefficientmod.apis.inference import toolbox_of
from mmefficientmod.checkpoint.reading import check_exists
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.toolbox import input_size
from mmefficientmod.deploy.layouts import LAYOUTS
from mmefficientmod.deploy.segmentor import LABELS, LOGITS
from mmefficientmod.deploy.tasks import PARTS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of the whole model')
    parser.add_argument(
        '--out',
        required=True,
        metavar='FILE',
        help='file to write: *.onnx, *.xml for OpenVINO, *.param for ncnn, '
        '*.mlpackage for CoreML',
    )
    parser.add_argument(
        '--to',
        choices=TARGETS,
        help='what the file is for (default: by its suffix)',
    )
    parser.add_argument(
        '--part',
        choices=PARTS,
        default='model',
        help='the whole model (default) or its backbone alone',
    )
    parser.add_argument(
        '--size',
        metavar='SIZE',
        help='height and width of the images in pixels, such as 512 or '
        f'512x1024; {DYNAMIC} for any size (default: {DYNAMIC}; for a '
        'classifier the size of its test, for phones that of the config)',
    )
    parser.add_argument(
        '--batch',
        default='1',
        metavar='N',
        help=f'number of images at once; {DYNAMIC} for any (default: 1)',
    )
    parser.add_argument(
        '--output',
        choices=(LOGITS, LABELS),
        default=LOGITS,
        help='of a segmentor: the logits of each pixel (default) or its class',
    )
    parser.add_argument(
        '--layout',
        choices=LAYOUTS,
        help='memory layout of EfficientMod in the file (default: the best '
        'one for what the file is for)',
    )
    parser.add_argument(
        '--half',
        action='store_true',
        help='store the weights as float16, half the size',
    )
    parser.add_argument(
        '--preprocess',
        action='store_true',
        help='the file takes raw RGB images, uint8, and normalises them',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help="images for the comparison with PyTorch (default: the config's "
        'own if there are any, else drawn ones)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        metavar='X',
        help='largest difference from PyTorch, relative to the largest value '
        f'(default: {TOLERANCE}, with --half {HALF_TOLERANCE})',
    )
    cli.add_trust_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Export:
    args = parse_args(argv)
    target = find_target(args.out, args.to)
    batch = parse_batch(args.batch)
    cfg = cli.load_chosen_config(args)
    apply_options(cfg, args.cfg_options)
    check_exists(args.checkpoint)
    size = parse_size(args.size)
    if args.size is None and (
        target in PHONES or toolbox_of(cfg) == 'mmpretrain'
    ):
        size = input_size(cfg)
    options = ExportOptions(
        to=target,
        part=args.part,
        size=size,
        batch=batch,
        output=args.output,
        layout=args.layout,
        preprocess=args.preprocess,
        images=args.images,
        half=args.half,
        tolerance=args.tolerance,
    )
    export = export_model(cfg, args.checkpoint, args.out, options)
    show(export)
    return export


def show(export: Export) -> None:
    """Print what was written, and how it was checked."""
    print(f'input: {export.inputs}')
    print(f'outputs: {", ".join(export.outputs)}')
    if export.divisor > 1:
        print(
            f'height and width must be multiples of {export.divisor}, as in '
            'PyTorch'
        )
    print(f'compared with PyTorch on {export.images}:')
    for check in export.checks:
        number, height, width = check.shape
        print(f'  {number} x {height}x{width}: {check.difference.text}')
    for path in export.files:
        inside = path.rglob('*') if path.is_dir() else [path]
        size = sum(x.stat().st_size for x in inside if x.is_file())
        print(f'written: {path} ({size / 1e6:.1f} MB)')


def find_target(out: str, to: str | None) -> str:
    """What the file is for.

    Raises:
        ConfigError: If its suffix belongs to nothing, or to something else.
    """
    found = [k for k, suffix in TARGETS.items() if out.endswith(suffix)]
    if not found or to not in (None, found[0]):
        suffixes = [TARGETS[to]] if to else TARGETS.values()
        raise ConfigError(
            f'--out {out} must end in {" or ".join(suffixes)}'
            + (f' for --to {to}' if to else '')
        )
    return found[0]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width; None for any size.

    Raises:
        ConfigError: If the text is neither.
    """
    if text in (None, DYNAMIC):
        return None
    numbers = [int(x) if x.isdecimal() else 0 for x in str(text).split('x')]
    if len(numbers) > 2 or min(numbers) < 1:
        raise ConfigError(
            f'--size {text} is neither SIDE, such as 512, nor HEIGHTxWIDTH, '
            f'such as 512x1024, nor {DYNAMIC}'
        )
    return numbers[0], numbers[-1]


def parse_batch(text: str) -> int | None:
    """Number of images; None for any number.

    Raises:
        ConfigError: If the text is neither.
    """
    if text == DYNAMIC:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f'--batch {text} is neither a number of 1 or more nor {DYNAMIC}'
        )
    return int(text)


if __name__ == '__main__':
    cli.run(main)
