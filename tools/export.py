"""Export a trained model to a file that runs without PyTorch.

The file is compared with PyTorch before it is written. See docs/deploy.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from mmefficientmod import cli
from mmefficientmod.apis.export_options import (
    DYNAMIC,
    HALF_TOLERANCE,
    PHONES,
    TARGETS,
    TOLERANCE,
    ExportOptions,
)
from mmefficientmod.apis.exporting import Export, export_model
from mmefficientmod.benchmark.tables import Column
from mmefficientmod.benchmark.terminal import print_table
from mmefficientmod.checkpoint.reading import check_exists
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.toolbox import input_size, toolbox_of
from mmefficientmod.deploy.int8 import CALIBRATION_IMAGES
from mmefficientmod.deploy.layouts import LAYOUTS
from mmefficientmod.deploy.report import Int8Report
from mmefficientmod.deploy.segmentor import LABELS, LOGITS
from mmefficientmod.deploy.tasks import PARTS

SHOWN = 10  # layers of each table of the report
OUTPUT = Column('output', 'Output', '', lambda row, _: row.name)
NOISE = Column('noise', 'SQNR, dB', '.1f', lambda row, _: row.noise)
SLOWEST = Column('layer', 'Slowest layers', '', lambda row, _: row.name)
NOISIEST = Column('layer', 'Noisiest layers', '', lambda row, _: row.name)
KIND = Column('kind', 'Operator', '', lambda row, _: row.kind)
TIME = Column('time', 'ms', '.3f', lambda row, _: row.milliseconds)
SHARE = Column('share', 'Share', '.1%', lambda row, _: row.share)


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
    parser.add_argument(
        '--int8',
        action='store_true',
        help='store weights in 8 bits, and compute the products with them in '
        '8 bits; needs --calibrate',
    )
    parser.add_argument(
        '--calibrate',
        metavar='FOLDER',
        help='images like those of the training, to measure the range of '
        f'activations for --int8; at most {CALIBRATION_IMAGES} are taken',
    )
    parser.add_argument(
        '--report',
        action='store_true',
        help='with --int8, print the noise of each level of the backbone and '
        'of each output, and the slowest and the noisiest layers',
    )
    cli.add_trust_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Export:
    args = parse_args(argv)
    check_precision(args)
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
        calibrate=args.calibrate,
        report=args.report,
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
    if export.noise is not None:
        print(f'int8 compared with PyTorch on {export.noise_images}:')
        print(f'  {export.noise.text}')
    if export.report is not None:
        show_report(export.report, Console())
        print()
    for path in export.files:
        inside = path.rglob('*') if path.is_dir() else [path]
        size = sum(x.stat().st_size for x in inside if x.is_file())
        print(f'written: {path} ({size / 1e6:.1f} MB)')


def check_precision(args: argparse.Namespace) -> None:
    """Check that the arguments for int8 fit together.

    Raises:
        ConfigError: If they do not.
    """
    if args.int8 and args.half:
        raise ConfigError(
            '--int8 and --half are two ways to store weights: give one of them'
        )
    if args.int8 and args.calibrate is None:
        raise ConfigError(
            '--int8 needs --calibrate FOLDER, images like those of the '
            'training'
        )
    for name in ('calibrate', 'report'):
        if getattr(args, name) and not args.int8:
            raise ConfigError(f'--{name} has an effect with --int8 only')


def show_report(report: Int8Report, console: Console) -> None:
    """Print what is slow and what is noisy in a file in 8 bits."""
    tables: list[tuple[list[Column], list[dict[str, Any]]]] = [
        (
            [OUTPUT, NOISE],
            [dict(output=k, noise=v) for k, v in report.outputs.items()],
        ),
        (
            [SLOWEST, KIND, TIME, SHARE],
            [
                dict(
                    layer=x.name,
                    kind=x.kind,
                    time=x.milliseconds,
                    share=x.share,
                )
                for x in report.slowest[:SHOWN]
            ],
        ),
        (
            [NOISIEST, NOISE],
            [dict(layer=k, noise=v) for k, v in report.worst[:SHOWN]],
        ),
    ]
    for columns, rows in tables:
        console.print()
        keys = [column.key for column in columns]
        print_table(console, columns, rows, keys, 'a wider terminal has them')


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
