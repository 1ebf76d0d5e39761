"""Predictions of a trained model on images."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader

from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.config.files import TOOLBOXES
from mmefficientmod.config.nodes import ConfigError, dataset_dicts
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets.folders import has_class_folders, set_num_classes
from mmefficientmod.engine.console import quieten


def build_inferencer(
    cfg: Config, checkpoint: str, device: str | None = None
) -> Any:
    """The inferencer of the toolbox that a config belongs to.

    Args:
        cfg: The config.
        checkpoint: A checkpoint of the whole model.
        device: Where to run; by default a GPU if there is one.

    Raises:
        CheckpointError: If the checkpoint is of another model.
        ConfigError: If the toolbox has no inferencer here.
    """
    scope = cfg.get('default_scope')
    if scope not in TOOLBOXES:
        raise ConfigError(
            f'predictions are drawn for {", ".join(TOOLBOXES)}, and the '
            f'config has default_scope={scope!r}'
        )
    import_toolbox(scope)
    init_default_scope(scope)
    quieten(MMLogger.get_current_instance())
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = None  # the inferencer writes the files
    weights = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
    meta = (weights.get('meta') or {}).get('dataset_meta') or {}
    if scope == 'mmseg':
        from mmseg.apis import MMSegInferencer
        from mmseg.registry import DATASETS

        # Without them it would draw in the colours of Cityscapes.
        dataset = next(dataset_dicts(cfg, 'test_dataloader'))
        meta = meta or DATASETS.get(dataset['type']).METAINFO
        inferencer = MMSegInferencer(
            cfg, checkpoint, meta['classes'], meta['palette'], device=device
        )
    elif scope == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(cfg, checkpoint, device=device)
    else:
        from mmpretrain.apis import ImageClassificationInferencer

        # The folders may be elsewhere; the training has seen them.
        if has_class_folders(cfg) and meta.get('classes'):
            set_num_classes(cfg, len(meta['classes']))
        inferencer = ImageClassificationInferencer(
            cfg, checkpoint, device=device
        )
    load_whole(inferencer.model, weights, checkpoint)
    return inferencer
