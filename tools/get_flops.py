"""Count parameters and FLOPs of any config: ours, a stock one, or your own.

One FLOP is one multiply-add, as in the paper and in OpenMMLab.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mmefficientmod import cli
from mmefficientmod.analysis.complexity import Complexity, measure
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.toolbox import build_model, input_size


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.config_arguments(__doc__)
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar='PIXELS',
        help='height and width of the input, or one number for both; '
        'default: the crop of the training for a segmentor, the size of the '
        'test images for a classifier or detector, and 800 x 1280 for 1333 x '
        '800',
    )
    parser.add_argument('--out', metavar='FILE', help='JSON file to write')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Complexity:
    args = parse_args(argv)
    cfg = cli.load_chosen_config(args)
    apply_options(cfg, args.cfg_options)
    shape = args.shape
    if shape and (len(shape) > 2 or min(shape) < 1):
        raise ConfigError(
            f'--shape {" ".join(map(str, shape))} is neither one side nor '
            'height and width, in pixels'
        )
    model = build_model(cfg)
    size = (shape[0], shape[-1]) if shape else input_size(cfg)
    try:
        result = measure(model, size)
    except Exception as error:
        # Each toolbox has models whose forward needs more than an image.
        raise ConfigError(
            f'{args.config} cannot be run for counting at {size[0]}x'
            f'{size[1]}: {type(error).__name__}: {error}'
        ) from error
    show(result, args.config)
    if args.out:
        content = dict(
            config=args.config,
            flops_are='multiply-adds',
            torch=torch.__version__,
            **dataclasses.asdict(result),
        )
        path = Path(args.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + '\n')
        print(f'written: {args.out}')
    return result


def show(result: Complexity, config: str) -> None:
    """Print the counts, exactly and in millions or billions."""
    print(f'{config}, one image of {result.size[0]}x{result.size[1]}')
    table = Table('', 'parameters', 'M', 'FLOPs (multiply-adds)', 'G')
    for column in table.columns[1:]:
        column.justify = 'right'
    rows = [('whole model', result.params, result.flops)]
    if (
        result.backbone_params is not None
        and result.backbone_flops is not None
    ):
        rows.append(
            ('backbone', result.backbone_params, result.backbone_flops)
        )
    for name, params, flops in rows:
        table.add_row(
            name,
            f'{params:,}',
            f'{params / 1e6:.2f}',
            f'{flops:,}',
            f'{flops / 1e9:.2f}',
        )
    Console(width=110).print(table)
    if result.uncounted:
        print('not counted: ' + ', '.join(
            f'{name} ({count})' for name, count in result.uncounted.items()
        ))  # fmt: skip


if __name__ == '__main__':
    cli.run(main)
