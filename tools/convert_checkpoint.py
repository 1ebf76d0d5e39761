"""Convert a checkpoint of the EfficientMod authors to this project's layout.

Reads their classifiers (timm), detectors (mmdet 2) and segmentors (mmseg 0),
and checkpoints trained with this project; `--deploy` merges parallel branches
of the latter (docs/reparam.md). A whole model is written with the names
`backbone.*` and those of its toolbox, the head of a classifier with the names
`head.fc.*`. With `--part backbone`, the names have no prefix.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmefficientmod import cli
from mmefficientmod.apis.converting import (
    PARTS,
    Conversion,
    convert_checkpoint,
    save_checkpoint,
)
from mmefficientmod.checkpoint.reading import CheckpointError, trust_files
from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import build_model

# The group of tensors in a line of the table: a stage or its downsampling;
# for other tensors the first name, for a RoI head or backbone the first two.
GROUP = re.compile(
    r'((backbone\.)?(stages|layers)\.\d+(\.downsample)?'
    r'|(backbone|roi_head)\.\w+|head\.fc|\w+)'
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.tool_parser(
        __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('src', help='checkpoint to read')
    parser.add_argument(
        'dst',
        help='file to write, in the format of safetensors if its name ends '
        'in .safetensors',
    )
    parser.add_argument(
        '--part',
        choices=PARTS,
        default='model',
        help='the whole model (default), for tests and --resume, or only '
        'the backbone, for --pretrained',
    )
    parser.add_argument(
        '--config',
        help='config whose model the result must fit; default: the backbone '
        'and the head of a classifier must fit one of the variants',
    )
    parser.add_argument(
        '--use-ema',
        action='store_true',
        help='take the averaged weights of a file that has both',
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='merge the parallel branches of a training with reparam, so '
        'that the result is a checkpoint of the plain variant',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace DST if it exists'
    )
    cli.add_trust_argument(parser)
    parser.add_argument(
        '--verbose', action='store_true', help='list every tensor'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Conversion:
    args = parse_args(argv)
    if Path(args.dst).is_dir():
        raise CheckpointError(f'{args.dst} is a folder; name a file')
    if Path(args.dst).exists() and not args.force:
        raise CheckpointError(
            f'{args.dst} exists; give another name, or --force to replace it'
        )
    trust_files(args.trust)
    model = args.config and build_model(load_config(args.config))
    result = convert_checkpoint(
        args.src, args.part, args.use_ema, model, args.deploy
    )
    save_checkpoint(result, args.dst)
    show(result, args)
    return result


def show(result: Conversion, args: argparse.Namespace) -> None:
    """Print the new name of each group of tensors, or of each tensor."""
    rows: Counter[tuple[str | None, str | None]] = Counter()
    for key, new in result.names.items():
        name = key.removeprefix('module.')
        rows[(name, new) if args.verbose else (group(name), group(new))] += 1
    table = Table('in the file', 'tensors', 'becomes')
    table.columns[1].justify = 'right'
    for (old, new), count in rows.items():
        becomes = 'the same' if old == new else new or 'left out'
        table.add_row(old, str(count), becomes)
    arch = result.arch or 'of no known variant'
    print(f'{args.src}: {result.kind}, EfficientMod {arch}')
    print(f'taken: {result.source}')
    Console(width=110).print(table)
    if args.deploy:
        print(
            f'merged: the parallel branches of reparam={result.merged}'
            if result.merged
            else 'merged: nothing, there are no parallel branches'
        )
    values = sum(w.numel() for w in result.weights.values())
    if args.config:
        fits = f'fits {args.config}'
    elif result.meta['kind'] in ('detector', 'segmentor'):
        fits = 'the backbone fits; for neck and heads, name a --config'
    else:
        fits = f'fits EfficientMod {result.arch}'
        if result.reparam:
            fits += f' with reparam={result.reparam}'
    print(
        f'{args.dst}: {len(result.weights)} tensors, {values / 1e6:.2f} M '
        f'values; {fits}'
    )


def group(name: str | None) -> str | None:
    """The group of a tensor in the table; None for no name."""
    found = GROUP.match(name or '')
    return found[0] if found else None


if __name__ == '__main__':
    cli.run(main)
