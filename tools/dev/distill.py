"""Does a teacher help? Top-1 on the miniature with one and without, by seed.

EfficientMod-s is trained first, then EfficientMod-xxs for each seed by the
plain config and by the distilled one, both with the same seed. Finished runs
are kept, so that seeds may be added one by one.

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

TRAIN = Path(__file__).parents[1] / 'train.py'
CONFIG = 'mmefficientmod::cls/efficientmod_{}_in1k.py'
KINDS = dict(alone='xxs', taught='xxs_distill')


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
        for kind, config in KINDS.items():
            options = [f'randomness.seed={seed}']
            if kind == 'taught':
                weights = (teacher / 'last_checkpoint').read_text()
                options += [
                    f'model.teacher.model={CONFIG.format("s")}',
                    f'model.teacher.checkpoint={weights}',
                ]
            name = f'{kind}, seed {seed}'
            folder = root / f'{kind}_{seed}'
            curves[name] = train(config, folder, args.every, options)
    for kind in KINDS:
        runs = [c for name, c in curves.items() if name.startswith(kind)]
        curves[f'{kind}, mean'] = {
            epoch: statistics.mean(run[epoch] for run in runs)
            for epoch in runs[0]
        }
    print(table(curves))


def train(
    config: str, folder: Path, every: int, options: Sequence[str] = ()
) -> dict[int, float]:
    """Train on the miniature, unless it is done.

    Args:
        config: Name of the config, without what all have.
        folder: The work dir.
        every: Epochs between evaluations.
        options: For ``--cfg-options``.

    Returns:
        Top-1 of the averaged weights in per cent, by epoch.
    """
    if not (folder / 'last_checkpoint').is_file():
        subprocess.run(
            [sys.executable, TRAIN, CONFIG.format(config), '--mini']
            + ['--work-dir', folder, '--cfg-options', *options]
            + [f'train_cfg.val_interval={every}'],
            check=True,
        )
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


def table(curves: dict[str, dict[int, float]]) -> str:
    """A row for each run, a column for each epoch, in Markdown."""
    epochs = list(next(iter(curves.values())))
    rows = [
        ['top-1 after epoch', *map(str, epochs)],
        ['---', *['---'] * len(epochs)],
        *(
            [name, *(f'{c[e]:.1f}' for e in epochs)]
            for name, c in curves.items()
        ),
    ]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


if __name__ == '__main__':
    main()
