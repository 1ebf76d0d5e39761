"""Train, evaluate and draw predictions, on a small generated data set.

Trains Semantic FPN with EfficientMod-s from random weights on drawn scenes in
the layout of ADE20K, and prints the mIoU and the path of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import train
from matplotlib.patches import Patch

from mmefficientmod import cli
from mmefficientmod.apis.inference import build_inferencer
from mmefficientmod.config.files import load_config
from mmefficientmod.datasets import apply_mini

CONFIG = 'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py'


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.tool_parser(__doc__)
    parser.add_argument('--config', default=CONFIG)
    parser.add_argument('--work-dir', default='work_dirs/demo')
    args = parser.parse_args(argv)

    run = [args.config, '--mini', '--work-dir', args.work_dir, '--overwrite']
    runner = train.main(run)
    miou = runner.message_hub.get_scalar('val/mIoU_present').current()
    last = Path(args.work_dir, 'last_checkpoint').read_text().strip()
    picture = Path(args.work_dir, 'demo.png')
    draw(args.config, last, picture)
    print(
        f'\nmIoU over the classes present: {miou:.2f} %'
        f'\nimage | ground truth | prediction: {picture}'
    )


def draw(config: str, checkpoint: str, picture: Path, rows: int = 4) -> None:
    """Draw image, ground truth and prediction side by side.

    Args:
        config: The config that was trained with ``--mini``.
        checkpoint: The trained checkpoint.
        picture: PNG file to write.
        rows: Number of validation images. Default: 4.
    """
    from mmseg.registry import DATASETS

    cfg = load_config(config)
    apply_mini(cfg)
    inferencer = build_inferencer(cfg, checkpoint)
    inferencer.show_progress = False
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    # Black is for pixels without a label, 255.
    black = len(dataset.metainfo['palette'])
    palette = np.array([*dataset.metainfo['palette'], (0, 0, 0)], np.uint8)
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        rows, 3, figsize=(9, 2.3 * rows + 0.6), squeeze=False
    )
    seen: set[int] = set()
    for row, sample in zip(axes, dataset, strict=False):
        path = sample['data_samples'].img_path
        truth = sample['data_samples'].gt_sem_seg.data[0].numpy()
        result = inferencer(path, return_datasamples=True)
        predicted = result.pred_sem_seg.data[0].cpu().numpy()
        seen |= {*np.unique(truth), *np.unique(predicted)} - {255}
        panels = (
            plt.imread(path),
            palette[np.where(truth == 255, black, truth)],
            palette[predicted],
        )
        for axis, panel in zip(row, panels, strict=True):
            axis.imshow(panel)
            axis.axis('off')
    titles = ('image', 'ground truth', 'prediction')
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    names = dataset.metainfo['classes']
    figure.legend(
        handles=[
            Patch(color=palette[i] / 255, label=names[i]) for i in sorted(seen)
        ],
        loc='lower center',
        ncols=7,
        fontsize='small',
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(picture, dpi=120)


if __name__ == '__main__':
    cli.run(main)
