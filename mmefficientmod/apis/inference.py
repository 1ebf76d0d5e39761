"""Predictions of a trained model on images.

For example::

    from mmefficientmod.apis.inference import (
        build_inferencer,
        draw_predictions,
    )

    inferencer = build_inferencer(
        'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py',
        'work_dirs/fpn_efficientmod_s_ade20k/iter_40000.pth',
    )
    result = inferencer('photo.jpg', return_datasamples=True)
    files = draw_predictions(inferencer, ['photo.jpg'], 'outputs')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from mmefficientmod.checkpoint.entry import protect
from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.checkpoint.reading import read_checkpoint, select_weights
from mmefficientmod.config.files import TOOLBOXES, load_config
from mmefficientmod.config.nodes import ConfigError, dataset_dicts
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets import DataError
from mmefficientmod.datasets.folders import has_class_folders, set_num_classes
from mmefficientmod.engine.console import drop_noise


def build_inferencer(
    config: str | Config, checkpoint: str, device: str | None = None
) -> Any:
    """The inferencer of the toolbox that a config belongs to.

    Args:
        config: A config, its path, or ``package::path``; changed in place.
        checkpoint: Path or URL of a checkpoint of the whole model.
        device: Where to run, such as ``'cpu'`` or ``'cuda:0'``. Default: a
            GPU if there is one.

    Returns:
        ``DetInferencer`` of MMDetection, ``MMSegInferencer`` of
        MMSegmentation or ``ImageClassificationInferencer`` of MMPretrain.
        Called with a path or a BGR array ``(H, W, 3)``, or a list of them, it
        predicts; its documentation lists the options.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of another
            model.
        ConfigError: If the config does not exist, or its toolbox has no
            inferencer or is not installed.
    """
    cfg = load_config(config) if isinstance(config, str) else config
    scope = cfg.get('default_scope')
    if scope not in TOOLBOXES:
        raise ConfigError(
            f'only configs of {", ".join(TOOLBOXES)} can predict, and this '
            f'one has default_scope={scope!r}'
        )
    import_toolbox(scope)
    init_default_scope(scope)
    drop_noise(MMLogger.get_current_instance())
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = None  # the inferencer writes the files
    protect()  # the inferencer reads the file once more, by MMEngine
    content = read_checkpoint(checkpoint)
    weights, _ = select_weights(content, checkpoint)
    meta = (content.get('meta') or {}).get('dataset_meta') or {}
    if scope == 'mmseg':
        inferencer = _segmentation(cfg, checkpoint, device, meta)
    elif scope == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(cfg, checkpoint, device=device)
    else:
        inferencer = _classification(cfg, checkpoint, device, meta)
    # The inferencer loads the weights that fit and only warns of the others.
    load_whole(inferencer.model, weights, checkpoint)
    return inferencer


def _segmentation(
    cfg: Config, checkpoint: str, device: str | None, meta: Mapping[str, Any]
) -> Any:
    from mmseg.apis import MMSegInferencer
    from mmseg.registry import DATASETS

    # Without classes and palette, it draws those of Cityscapes.
    dataset = next(dataset_dicts(cfg, 'test_dataloader'))
    meta = meta or DATASETS.get(dataset['type']).METAINFO
    return MMSegInferencer(
        cfg, checkpoint, meta['classes'], meta['palette'], device=device
    )


def _classification(
    cfg: Config, checkpoint: str, device: str | None, meta: Mapping[str, Any]
) -> Any:
    from mmpretrain.apis import ImageClassificationInferencer

    # The folders of the training may be missing here, so the number of
    # classes is that of the checkpoint.
    if has_class_folders(cfg) and meta.get('classes'):
        set_num_classes(cfg, len(meta['classes']))
    return ImageClassificationInferencer(cfg, checkpoint, device=device)


def check_images(images: Sequence[str]) -> None:
    """Raise if a file is no image.

    Args:
        images: Paths.

    Raises:
        DataError: Naming the first file that OpenCV cannot read.
    """
    for image in images:
        if not Path(image).is_file() or cv2.imread(image) is None:
            raise DataError(f'{image} is no image that can be read')


def draw_predictions(
    inferencer: Any,
    images: Sequence[str],
    out: str = 'outputs',
    score_thr: float | None = None,
) -> list[Path]:
    """Predict on images and draw the results.

    Args:
        inferencer: From :func:`build_inferencer`.
        images: Paths of the images; :func:`check_images` checks them.
        out: Folder to draw to; made if it does not exist.
        score_thr: Least score of a box that is drawn, for detectors.
            Default: that of MMDetection, 0.3.

    Returns:
        Paths of the drawings.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    # MMPretrain calls the argument for the folder `show_dir`; MMDetection and
    # MMSegmentation call it `out_dir`.
    classifies = type(inferencer).__module__.startswith('mmpretrain')
    options: dict[str, Any] = {'show_dir' if classifies else 'out_dir': out}
    if score_thr is not None:
        options['pred_score_thr'] = score_thr
    before = _drawings(folder)
    inferencer(list(images), **options)
    after = _drawings(folder)
    return sorted(p for p in after if before.get(p) != after[p])


def _drawings(folder: Path) -> dict[Path, int]:
    """The drawings in a folder, and when each was written.

    Their format is that of the image. Label maps and predictions, in
    ``pred`` and ``preds``, are no drawings.
    """
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob('*')
        if path.is_file()
        and path.relative_to(folder).parts[0] not in ('pred', 'preds')
    }
