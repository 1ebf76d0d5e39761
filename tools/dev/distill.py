"""Compare training with and without a teacher, on the ImageNet miniature.

First trains the teacher, EfficientMod-s. Then trains EfficientMod-xxs twice
for each seed, with the plain config and with the distilled one, and prints the
top-1 accuracies. Finished runs are kept, so that more seeds can be added; the
table has the epochs after which every run was evaluated.

    python tools/dev/distill.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmefficientmod.benchmark.tables import markdown_table

TRAIN = Path(__file__).parents[1] / 'train.py'
CONFIG = 'mmefficientmod::cls/efficientmod_{}_in1k.py'
VARIANTS = dict(plain='xxs', distilled='xxs_distill')


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--work-dir', default='work_dirs/distill')
    parser.add_argument(
        '--every', type=int, default=4, help='epochs between evaluations'
    )
    args = parser.parse_args(argv)
    root = Path(args.work_dir)
    teacher = root / 'teacher'
    curves = {'teacher': train('s', teacher, args.every)}
    for seed in args.seeds:
        for variant, config in VARIANTS.items():
            options = [f'randomness.seed={seed}']
            if variant == 'distilled':
                weights = (teacher / 'last_checkpoint').read_text()
                options += [
                    f'model.teacher.model={CONFIG.format("s")}',
                    f'model.teacher.checkpoint={weights}',
                ]
            name = f'{variant}, seed {seed}'
            folder = root / f'{variant}_{seed}'
            curves[name] = train(config, folder, args.every, options)
    epochs = sorted(set.intersection(*map(set, curves.values())))
    for variant in VARIANTS:
        runs = [c for name, c in curves.items() if name.startswith(variant)]
        curves[f'{variant}, mean'] = {
            epoch: statistics.mean(run[epoch] for run in runs)
            for epoch in epochs
        }
    print(table(curves, epochs))


def train(
    config: str, folder: Path, every: int, options: Sequence[str] = ()
) -> dict[int, float]:
    """Train on the miniature, unless the folder holds a finished run.

    Args:
        config: The part of the config's name that differs, such as ``'s'``.
        folder: The work dir.
        every: Epochs between evaluations.
        options: Further ``--cfg-options``.

    Returns:
        Top-1 accuracy of the averaged weights in per cent, by epoch.
    """
    if not (folder / 'last_checkpoint').is_file():
        argv = [CONFIG.format(config), '--mini', '--work-dir', str(folder)]
        argv += ['--cfg-options', *options]
        argv += [f'train_cfg.val_interval={every}']
        subprocess.run([sys.executable, TRAIN, *argv], check=True)
    lines = [
        json.loads(line)
        for path in folder.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
    ]
    return {
        line['step']: line['accuracy/top1']
        for line in lines
        if 'accuracy/top1' in line
    }


def table(curves: dict[str, dict[int, float]], epochs: Sequence[int]) -> str:
    """A Markdown table with a row for each run and a column for each epoch.

    Args:
        curves: Top-1 accuracy by epoch, for each run.
        epochs: Epochs that all runs have.
    """
    titles = ['top-1 after epoch', *map(str, epochs)]
    rows = [
        [name, *(f'{curve[epoch]:.1f}' for epoch in epochs)]
        for name, curve in curves.items()
    ]
    return markdown_table([titles, *rows])


if __name__ == '__main__':
    main()
