"""Draw the chart of README: published accuracy against measured CPU latency.

The values are read from the first table of docs/comparison.md, so that chart
and table agree. Run this script again when the table changes:

    python tools/dev/pareto_chart.py
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmefficientmod.benchmark.figures import pareto, subplots

ROOT = Path(__file__).parents[2]
LATENCY = 'ONNX Runtime, 1'  # the column for one image at a time
# Columns of accuracies, how their lines and markers look, and the legend.
ACCURACIES = (
    ('top-1', '-', 'full', 'trained without distillation'),
    ('dist.', ':', 'none', 'trained with distillation'),
)
OURS = 'efficientmod_'
# EfficientMod without attention: not on the line xxs, xs, s.
APART = (
    'efficientmod_s_conv',
    'efficientmod_xxs_conv',
    'efficientmod_xxs_phone',
)
Row = Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """Backbones of one design, drawn as a line.

    Attributes:
        title: The label.
        prefix: What the names of its backbones start with.
        color: Of line, markers and label.
        offset: Of the label, from the slowest backbone to the right, or with
            a negative first value from the fastest one to the left; right and
            up, in 1/72 inch.
    """

    title: str
    prefix: str
    color: str = 'darkgrey'
    offset: tuple[int, int] = (6, -3)


FAMILIES = (
    Family('EfficientMod', OURS, 'C3', (-8, -3)),
    Family('RepViT', 'repvit_', 'C0', (-7, -1)),
    Family('EfficientFormerV2', 'efficientformerv2_', 'C2', (-7, -1)),
    Family('FasterNet', 'fasternet_', 'C1', (5, -6)),
    Family('EdgeViT', 'edgevit_', 'C4', (0, -13)),
    Family('EfficientFormer', 'efficientformer_', offset=(5, 1)),
    Family('MBConv', 'mbconv_'),
    Family('MobileNetV2', 'mobilenetv2_', offset=(-6, 4)),
    Family('MobileViT', 'mobilevit_', offset=(4, 1)),
    Family('MobileViTV2', 'mobilevitv2_', offset=(5, -8)),
    Family('PVTv2', 'pvt_v2_'),
    Family('FocalNet', 'focalnet_', offset=(-6, 0)),
    Family('PoolFormer', 'poolformer_'),
    Family('VAN', 'van_'),
    Family('ResNet', 'resnet'),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--table', default=ROOT / 'docs/comparison.md')
    parser.add_argument('--out', default=ROOT / 'docs/images/pareto.png')
    args = parser.parse_args(argv)
    rows = read_table(Path(args.table).read_text())
    draw(rows).savefig(args.out, dpi=160)


def read_table(text: str) -> list[dict[str, str]]:
    """The rows of the first table of a Markdown page, by column title."""
    lines = text.splitlines()
    table = []
    for line in lines[lines.index('## Alone') :]:
        if line.startswith('|'):
            table.append([cell.strip(' `') for cell in line.split('|')[1:-1]])
        elif table:
            break
    titles, _, *rows = table
    return [dict(zip(titles, row, strict=True)) for row in rows]


def draw(rows: Sequence[Row]) -> Figure:
    """Top-1 against latency: a line for each family, and the Pareto fronts."""
    figure, ((ax,),) = subplots(1, 1, (8.0, 5.2))
    for column, style, fill, text in ACCURACIES:
        ax.step(
            *zip(*pareto(points(rows, column)), strict=True),
            where='post',
            color='gold',
            lw=5,
            alpha=0.4,
            zorder=0,
            label='Pareto fronts' if column == 'top-1' else None,
        )
        ax.plot([], [], f'o{style}', fillstyle=fill, color='grey', label=text)
    for family in FAMILIES:
        draw_family(ax, family, rows)
    ax.set_xscale('log')
    ax.set_xlim(left=3.7)
    ticks = (5, 10, 20, 50, 100)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel(
        'milliseconds for an image of 224x224: ONNX Runtime, one CPU thread'
    )
    ax.set_ylabel('ImageNet top-1 (published), %')
    ax.legend(loc='lower right', frameon=False)
    ax.spines[['top', 'right']].set_visible(False)
    return figure


def draw_family(ax: Axes, family: Family, rows: Sequence[Row]) -> None:
    """The lines of a family, with its label."""
    ours = family.prefix == OURS
    members = [r for r in rows if r['backbone'].startswith(family.prefix)]
    line = [r for r in members if r['backbone'] not in APART]
    apart = [[r] for r in members if r['backbone'] in APART]
    for column, style, fill, _ in ACCURACIES:
        for group in filter(None, (points(x, column) for x in (line, *apart))):
            ax.plot(
                *zip(*group, strict=True),
                f'o{style}',
                color=family.color,
                fillstyle=fill,
                lw=2.5 if ours else 1.2,
                markersize=8 if ours else 5,
                zorder=3 if ours else 2,
            )
    places = points(members, 'dist.') or points(members, 'top-1')
    left = family.offset[0] < 0
    ax.annotate(
        family.title,
        min(places) if left else max(places),
        family.offset,
        textcoords='offset points',
        ha='right' if left else 'left',
        color='dimgrey' if family.color == 'darkgrey' else family.color,
        fontsize=14 if ours else 9,
        fontweight='bold' if ours else 'normal',
    )
    if ours:
        for row in members:
            ax.annotate(
                row['backbone'].removeprefix(OURS),
                points([row], 'top-1')[0],
                (8, -8),
                textcoords='offset points',
                color=family.color,
                fontsize=9,
            )


def points(rows: Sequence[Row], column: str) -> list[tuple[float, float]]:
    """Latency in ms and accuracy in per cent of the rows that have both."""
    return sorted(
        (float(row[LATENCY].split()[0]), float(row[column]))
        for row in rows
        if row[column]
    )


if __name__ == '__main__':
    main()
