"""Building what predicts: the inferencer of a toolbox, for any config.

For example::

    from mmefficientmod.apis.inference import build_inferencer
    from mmefficientmod.apis.predicting import predict_files

    inferencer = build_inferencer(
        'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py',
        'work_dirs/fpn_efficientmod_s_ade20k/iter_40000.pth',
    )
    result = inferencer('photo.jpg', return_datasamples=True)
    for path in predict_files(inferencer, ['photos', 'clip.mp4'], 'outputs'):
        print(path)
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import VISUALIZERS, init_default_scope

from mmefficientmod.apis.class_names import (
    Classes,
    count_classes,
    dataset_meta,
    find_classes,
)
from mmefficientmod.checkpoint.entry import protect
from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.checkpoint.reading import read_checkpoint, select_weights
from mmefficientmod.config.class_checks import registered
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError, dataset_dicts, type_name
from mmefficientmod.config.toolbox import import_toolbox, toolbox_of
from mmefficientmod.datasets.folders import has_class_folders, set_num_classes
from mmefficientmod.deploy.exported.config import use_exported
from mmefficientmod.deploy.files import is_exported
from mmefficientmod.engine.console import drop_noise

LOADER = 'LoadImageFromFile'
# For configs that describe neither a test nor a validation.
USUAL_PIPELINES: dict[str, list[dict[str, Any]]] = {
    'mmdet': [
        dict(type=LOADER),
        dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        dict(type='PackDetInputs'),
    ],
    'mmseg': [dict(type=LOADER), dict(type='PackSegInputs')],
    'mmpretrain': [
        dict(type=LOADER),
        dict(type='ResizeEdge', scale=256, edge='short'),
        dict(type='CenterCrop', crop_size=224),
        dict(type='PackInputs'),
    ],
}
# A data set without files, which the inferencers ask for names of classes.
EMPTY_DATASETS = {
    'mmdet': 'BaseDetDataset',
    'mmseg': 'BaseSegDataset',
    'mmpretrain': 'BaseDataset',
}
DRAWERS = {
    'mmdet': 'DetLocalVisualizer',
    'mmseg': 'SegLocalVisualizer',
    'mmpretrain': 'UniversalVisualizer',
}
# What the inferencers say about weights and names that they do not know yet.
WARNINGS = (
    'Checkpoint is not loaded', 'weights is None', 'palette does not exist',
)  # fmt: skip


def build_inferencer(
    config: str | Config,
    checkpoint: str,
    device: str | None = None,
    threads: int | None = None,
) -> Any:
    """The inferencer of the toolbox that a config belongs to.

    The config needs no visualizer and no part for the test; see
    :func:`find_pipeline`. Names and colours of the classes are those of
    :func:`~mmefficientmod.apis.class_names.find_classes`.

    Args:
        config: A config, its path, or ``package::path``.
        checkpoint: Path or URL of a checkpoint of the whole model, or a file
            of ``tools/export.py``, which runs on the CPU.
        device: Where to run, such as ``'cpu'`` or ``'cuda:0'``. Default: a
            GPU if there is one.
        threads: CPU threads that run an exported file. Default: the choice
            of its library.

    Returns:
        ``DetInferencer`` of MMDetection, ``MMSegInferencer`` of
        MMSegmentation or ``ImageClassificationInferencer`` of MMPretrain.
        Called with a path or a BGR array ``(H, W, 3)``, or a list of them, it
        predicts; its documentation lists the options. It keeps all results
        in memory; :func:`~mmefficientmod.apis.predicting.predict_files` does
        not.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of another
            model.
        ConfigError: If the config does not exist, its toolbox has no
            inferencer or is not installed, its test does not load images, or
            the device does not exist.
    """
    given = load_config(config) if isinstance(config, str) else config
    cfg = copy.deepcopy(given)
    scope = toolbox_of(cfg)
    import_toolbox(scope)
    init_default_scope(scope)
    drop_noise(MMLogger.get_current_instance())
    protect()  # parts of a model may read files of their own
    exported = is_exported(checkpoint)
    if exported and device not in (None, 'cpu'):
        raise ConfigError(
            f'{checkpoint} is an exported file, which runs on the CPU, not '
            f'on {device}'
        )
    device = 'cpu' if exported else device or get_device()
    _check_device(device)
    weights: Mapping[str, Any] = {}
    if exported:
        file = use_exported(cfg, checkpoint, threads)
        meta = {name: file.described(name) for name in ('classes', 'palette')}
    else:
        weights, meta = read_trained(cfg, checkpoint)
    cfg.test_dataloader = ConfigDict(
        dataset=dict(
            type=EMPTY_DATASETS[scope],
            lazy_init=True,
            pipeline=find_pipeline(cfg, scope),
        )
    )
    cfg.visualizer = _visualizer(cfg, scope)
    with warnings.catch_warnings():
        for message in WARNINGS:
            warnings.filterwarnings('ignore', message)
        inferencer = _INFERENCERS[scope](cfg, device)
    if exported:
        count = len(meta['classes'] or ()) or None
    else:
        # The inferencers load the weights that fit and only warn of the
        # others.
        load_whole(inferencer.model, weights, checkpoint)
        count = count_classes(inferencer.model)
    classes = find_classes(given, meta, count)
    if classes.remark:
        MMLogger.get_current_instance().warning(classes.remark)
    _name_classes(inferencer, classes, scope)
    return inferencer


def read_trained(
    cfg: Config, checkpoint: str
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The weights of a checkpoint, and what it says about its data.

    Args:
        cfg: The config of its model. Where class folders number the classes,
            the model gets as many as the checkpoint has, since the folders of
            the training may be missing here.
        checkpoint: Path or URL of the file.

    Raises:
        CheckpointError: If it cannot be read.
    """
    content = read_checkpoint(checkpoint)
    weights, _ = select_weights(content, checkpoint)
    meta = dataset_meta(content)
    if toolbox_of(cfg) == 'mmpretrain' and has_class_folders(cfg):
        names = meta.get('classes')
        if isinstance(names, Sequence) and names:
            set_num_classes(cfg, len(names))
    return weights, meta


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f'the device {device} cannot be used here '
            f'({str(error).splitlines()[0]}); --device cpu always can'
        ) from error


def find_pipeline(cfg: Config, scope: str) -> list[ConfigDict]:
    """The steps from the file of an image to the input of the model.

    They are those of the test, else of the validation, else of a variable
    ``test_pipeline``, else the usual ones of the toolbox. Steps before the
    image is loaded, and those that load annotations, are left out.

    Args:
        cfg: The config.
        scope: Name of the toolbox.

    Raises:
        ConfigError: If no step loads an image by ``LoadImageFromFile``.
    """
    pipelines = [
        dataset.get('pipeline')
        for name in ('test_dataloader', 'val_dataloader')
        for dataset in dataset_dicts(cfg, name)
    ]
    pipelines += [cfg.get('test_pipeline'), cfg.get('val_pipeline')]
    steps = next((p for p in pipelines if p), None)
    if steps is None:
        steps = USUAL_PIPELINES[scope]
        MMLogger.get_current_instance().warning(
            'the config describes neither a test nor a validation; images '
            'are prepared by '
            + ', '.join(
                type_name(step)
                + ''.join(f' {k}={step[k]}' for k in step if k != 'type')
                for step in steps
            )
        )
    names = [type_name(step) for step in steps]
    if LOADER not in names:
        raise ConfigError(
            f'the test of the config does not load its images by {LOADER}, '
            f'but its steps are {", ".join(names)}; it cannot predict on '
            'image files'
        )
    first = names.index(LOADER)
    # The inferencers look for the name, not for the class that pure-Python
    # configs have here.
    loader = ConfigDict(copy.deepcopy(steps[first]), type=LOADER)
    rest = [
        ConfigDict(copy.deepcopy(step))
        for step in steps[first + 1 :]
        if 'Annotation' not in type_name(step)
    ]
    return [loader, *rest]


def _visualizer(cfg: Config, scope: str) -> ConfigDict:
    """The config's visualizer if it draws predictions, else the usual one.

    It writes no files: :mod:`mmefficientmod.apis.outputs` does.
    """
    usual = ConfigDict(type=DRAWERS[scope])
    given = cfg.get('visualizer')
    if not isinstance(given, Mapping):
        return usual
    cls = registered(VISUALIZERS, given.get('type'))
    drawer = registered(VISUALIZERS, usual.get('type'))
    if not isinstance(cls, type) or not issubclass(cls, drawer):
        return usual
    options = {k: v for k, v in given.items() if k != 'name'}
    return ConfigDict(options, vis_backends=None)


def _detection(cfg: Config, device: str) -> Any:
    from mmdet.apis import DetInferencer

    return DetInferencer(cfg, device=device)


def _segmentation(cfg: Config, device: str) -> Any:
    from mmseg.apis import MMSegInferencer

    return MMSegInferencer(cfg, device=device)


def _classification(cfg: Config, device: str) -> Any:
    from mmpretrain.apis import ImageClassificationInferencer

    inferencer = ImageClassificationInferencer(cfg, False, device=device)
    # Visualizers of the same name are one object in a process.
    options = dict(cfg.visualizer, name=f'predict {time.time_ns()}')
    inferencer.visualizer = VISUALIZERS.build(options)
    return inferencer


_INFERENCERS = {
    'mmdet': _detection,
    'mmseg': _segmentation,
    'mmpretrain': _classification,
}


def _name_classes(inferencer: Any, classes: Classes, scope: str) -> None:
    # Without names, MMDetection draws `class 0` and so on by itself.
    meta: dict[str, Any] = dict(classes=None, palette='random')
    if classes.names:
        meta = dict(classes=classes.names, palette=classes.palette)
    inferencer.model.dataset_meta = meta
    inferencer.visualizer.dataset_meta = dict(meta)
    if scope == 'mmseg':
        inferencer.visualizer.set_dataset_meta(**meta)
    if scope == 'mmpretrain':
        inferencer.classes = list(classes.names) or None
