"""``--data``: a config on the data in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from mmefficientmod.config.nodes import (
    LOADERS,
    ConfigError,
    dataset_dicts,
    type_name,
    walk,
    walk_pipelines,
)
from mmefficientmod.datasets import folders
from mmefficientmod.datasets.checks import DataError
from mmefficientmod.messages import list_some

from .find import FINDERS, find_data
from .heads import set_names, set_num_classes
from .layout import OwnData, Split

# Keys of a data set's dict that do not depend on where its files are.
KEPT = (
    '_scope_', 'filter_cfg', 'indices', 'lazy_init', 'max_refetch',
    'pipeline', 'return_classes', 'serialize_data', 'test_mode',
)  # fmt: skip
# Steps of pipelines that load what own data does not have.
OTHER_STEPS = {
    'LoadBiomedicalAnnotation', 'LoadDepthAnnotation', 'LoadEmptyAnnotations',
    'LoadMultipleRSImageFromFile', 'LoadOneDLSegmentation',
    'LoadPanopticAnnotations', 'LoadProposals', 'LoadSingleRSImageFromFile',
    'LoadTrackAnnotations',
}  # fmt: skip
# What MMEngine takes together or not at all.
TRAINING = (
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
)
SHOWN = 20  # names of classes in the message


def apply_own(cfg: Config, folder: str, trains: bool) -> None:
    """Make a config use the data in a folder, and print what was understood.

    Changes the data sets, their names of classes and colours, the number of
    classes of the heads, and the evaluators. The pipelines, the schedule and
    the batch size stay.

    Args:
        cfg: The config, changed in place.
        folder: The folder.
        trains: Whether training data is needed.

    Raises:
        ConfigError: If the config is for other data than boxes, masks or
            classes of images.
        DataError: If the folder does not hold what the config needs.
    """
    scope = cfg.get('default_scope')
    if scope not in FINDERS:
        raise ConfigError(
            f'--data needs a config of {", ".join(FINDERS)}, and this one '
            f'has default_scope={scope!r}'
        )
    _check_task(cfg, scope)
    data = find_data(folder, scope)
    splits = _choose_splits(data, folder, trains)
    heads = TASKS[scope](cfg, data, splits)
    for line in _describe(data, folder, splits, heads):
        print_log(line, 'current')


def _check_task(cfg: Config, scope: str) -> None:
    """Refuse configs whose data sets own data cannot replace."""
    loading = {type_name(step) for step in walk_pipelines(cfg)}
    evaluators = {type_name(x) for x in walk(cfg.get('test_evaluator'))}
    evaluators.discard('')
    other = sorted(loading & OTHER_STEPS)
    reason = None
    if not cfg.get('model'):
        reason = 'it has no model'
    elif other:
        reason = f'its pipelines have {other[0]}'
    elif 'LoadImageFromFile' not in loading:
        reason = 'its pipelines load no image files'
    elif any(step.get('with_seg') for step in walk_pipelines(cfg)):
        reason = (
            'its pipelines load label maps beside the boxes (with_seg=True); '
            'take the config without its semantic head'
        )
    elif scope == 'mmdet' and not evaluators <= BOX_METRICS:
        reason = f'it is evaluated by {sorted(evaluators - BOX_METRICS)[0]}'
    elif scope == 'mmpretrain' and not evaluators & {
        'Accuracy', 'SingleLabelMetric'
    }:  # fmt: skip
        reason = 'it does not predict one class for each image'
    if reason:
        raise ConfigError(
            f'--data cannot replace the data of this config: {reason}'
        )


BOX_METRICS = {
    'CocoMetric', 'VOCMetric', 'LVISMetric', 'OpenImagesMetric',
    'CityScapesMetric', 'CrowdHumanMetric',
}  # fmt: skip


def _choose_splits(
    data: OwnData, folder: str, trains: bool
) -> dict[str, Split]:
    """The data of each loader, by its name."""
    found = data.splits
    if trains and 'train' not in found:
        raise DataError(
            f'--data {folder}: there is no training data, only '
            f'{" and ".join(found)}; a file or folder with train in its name '
            'should have it'
        )
    val = found.get('val') or found.get('test') or found['train']
    chosen = dict(val_dataloader=val, test_dataloader=found.get('test') or val)
    if 'train' in found:
        chosen['train_dataloader'] = found['train']
    if 'val' not in found and 'test' in found:
        data.notes.append('no validation data: the test data is used for it')
    return chosen


def _replace(
    cfg: Config,
    splits: Mapping[str, Split],
    make: Callable[[Split], Mapping[str, Any]],
) -> None:
    """Give each loader the data set of its split.

    The wrappers of data sets stay, except those that put several together.
    """
    for loader in LOADERS:
        if not cfg.get(loader):
            continue
        if loader not in splits:  # a test needs no training data
            cfg.update(dict.fromkeys(TRAINING))
            continue
        pipelines = [x.get('pipeline') for x in dataset_dicts(cfg, loader)]
        if any(p != pipelines[0] for p in pipelines):
            raise ConfigError(
                f'--data cannot replace the data of {loader}: it has '
                f'{len(pipelines)} data sets with different pipelines'
            )
        cfg[loader].dataset = _with_leaf(
            cfg[loader].dataset, make(splits[loader])
        )


def _with_leaf(node: ConfigDict, new: Mapping[str, Any]) -> ConfigDict:
    if 'dataset' in node:
        node['dataset'] = _with_leaf(node['dataset'], new)
        return node
    if 'datasets' in node:
        return _with_leaf(node['datasets'][0], new)
    return ConfigDict({k: node[k] for k in KEPT if k in node}, **new)


def _set_evaluators(cfg: Config, make: Callable[[str], Any]) -> None:
    """Set the evaluators of the loaders that the config evaluates."""
    for part in ('val', 'test'):
        if cfg.get(f'{part}_evaluator'):
            cfg[f'{part}_evaluator'] = make(part)


def _first(evaluator: Any, names: Sequence[str]) -> ConfigDict | None:
    """The first evaluator of one of these types."""
    return next((x for x in walk(evaluator) if type_name(x) in names), None)


def _meta(data: OwnData) -> dict[str, Any]:
    return dict(classes=data.classes, palette=data.palette)


def _apply_boxes(
    cfg: Config, data: OwnData, splits: Mapping[str, Split]
) -> list[str]:
    if not data.has_masks and _predicts_masks(cfg):
        raise DataError(
            f'{data.root} has boxes without masks, and the config predicts '
            'masks; take a config for boxes, such as '
            'configs/det/retinanet_efficientmod_s_fpn_1x_coco.py'
        )
    _replace(
        cfg,
        splits,
        lambda split: dict(
            type='CocoDataset',
            data_root='',
            ann_file=split.ann_file,
            data_prefix=dict(img=f'{split.folder}/'),
            metainfo=_meta(data),
        ),
    )
    metric = ['bbox', 'segm'] if _predicts_masks(cfg) else 'bbox'

    def evaluator(part: str) -> dict[str, Any]:
        old = _first(cfg[f'{part}_evaluator'], ['CocoMetric']) or {}
        return dict(
            type='CocoMetric',
            metric=old.get('metric', metric),
            classwise=old.get('classwise', False),
            ann_file=splits[f'{part}_dataloader'].ann_file,
        )

    _set_evaluators(cfg, evaluator)
    return set_num_classes(cfg.model, len(data.classes))


def _predicts_masks(cfg: Config) -> bool:
    metrics = [x.get('metric') for x in walk(cfg.get('test_evaluator'))]
    return any('segm' in (m or ()) for m in metrics)


def _apply_masks(
    cfg: Config, data: OwnData, splits: Mapping[str, Split]
) -> list[str]:
    _replace(
        cfg,
        splits,
        lambda split: dict(
            type='mmefficientmod.PairedMasks',
            data_root=split.folder,
            ann_file=split.ann_file,
            metainfo=_meta(data),
            reduce_zero_label=data.ignores_zero,
        ),
    )
    for step in walk_pipelines(cfg):
        if type_name(step) == 'LoadAnnotations':
            step.pop('reduce_zero_label', None)

    def evaluator(part: str) -> ConfigDict | dict[str, Any]:
        kept = ('IoUMetric', 'PresentIoUMetric')
        old = _first(cfg[f'{part}_evaluator'], kept)
        return old or dict(type='IoUMetric', iou_metrics=['mIoU'])

    _set_evaluators(cfg, evaluator)
    set_names(cfg.model, data.classes)
    return set_num_classes(cfg.model, len(data.classes))


def _apply_classes(
    cfg: Config, data: OwnData, splits: Mapping[str, Split]
) -> list[str]:
    def dataset(split: Split) -> dict[str, Any]:
        names = dict(metainfo=dict(classes=data.classes))
        return dict(
            type='CustomDataset',
            data_root=split.folder,
            **(
                dict(ann_file=split.ann_file, **names)
                if split.ann_file
                else {}
            ),
        )

    _replace(cfg, splits, dataset)
    folders.set_num_classes(cfg, len(data.classes))
    return ['head']


TASKS: dict[str, Callable[..., list[str]]] = dict(
    mmdet=_apply_boxes, mmseg=_apply_masks, mmpretrain=_apply_classes
)


def _describe(
    data: OwnData,
    folder: str,
    splits: Mapping[str, Split],
    heads: Sequence[str],
) -> Iterator[str]:
    """Lines that say what was understood."""
    yield f'--data {folder}: {data.layout}'
    for loader in LOADERS:
        if loader in splits:
            name = loader.removesuffix('_dataloader')
            split = splits[loader]
            if (
                loader == 'test_dataloader'
                and split is splits['val_dataloader']
            ):
                continue
            same = loader == 'val_dataloader' and (
                split is splits['test_dataloader']
            )
            yield (
                f'  {name}{" and test" if same else ""}: '
                f'{split.num_images} images ({split.source})'
            )
    yield (
        f'  classes: {len(data.classes)}, '
        f'{list_some(data.classes, SHOWN)} (names from {data.names_from})'
    )
    changed = ['data sets', 'evaluators']
    changed += [f'number of classes of {list_some(heads, 8)}'] * bool(heads)
    yield f'  set in the config: {", ".join(changed)}'
    for note in data.notes:
        yield f'  note: {note}'
