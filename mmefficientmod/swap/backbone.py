"""A config in, the same config with another backbone out.

The old backbone is built once, without weights, to see at which strides the
rest of the model reads it; the new one, to see which channels it gives there.
Nothing about either is tabulated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.config.nodes import ConfigError, find_model, type_name
from mmefficientmod.config.toolbox import default_scope
from mmefficientmod.swap.levels import choose_levels, strides_to_give
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.names import resolve_backbone
from mmefficientmod.swap.necks_and_heads import (
    MAP_HEADS,
    PYRAMID_MAKERS,
    TOKEN_HEADS,
    fit_classifier_head,
    fit_heads,
    fit_neck,
    reads_by_index,
    refuse_impossible_swaps,
)
from mmefficientmod.swap.optimizer import fit_optimizer
from mmefficientmod.swap.options import carry_over, set_default
from mmefficientmod.swap.probe import (
    Levels,
    class_of,
    neck_channels,
    option_of,
    probe,
)
from mmefficientmod.swap.weights import fit_normalisation, replace_weights


def swap_backbone(
    cfg: Config,
    backbone: str | Mapping[str, Any],
    pretrained: str | None = None,
) -> Config:
    """Replace the backbone of any config of the three toolboxes.

    What reads the backbone gets its new channels, at the strides of before;
    classification reads the last stage with its final norm and pools it. Old
    weights go, options of the old backbone stay where they mean something.
    Whatever else changes is logged.

    Args:
        cfg: A config of MMDetection, MMSegmentation or MMPretrain; it is not
            changed.
        backbone: A name of :data:`~mmefficientmod.zoo.BACKBONES`, or the
            dict of any registered backbone that returns a tuple of
            ``(N, C_i, H_i, W_i)``.
        pretrained: Weights of the new backbone, a file or URL. Ours reads
            them when it is built; for another they are tried at once.

    Returns:
        The new config.

    Raises:
        ConfigError: If the config has no backbone that can be replaced, or
            the new one does not give what the config reads. The message says
            why.

    Example:
        >>> cfg = Config.fromfile('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        >>> cfg = swap_backbone(cfg, 'efficientmod_s')
    """  # noqa: E501
    cfg = copy.deepcopy(cfg)
    new = resolve_backbone(backbone)
    _import_package(cfg)
    model = find_model(cfg)
    with default_scope(cfg):
        if _is_classifier(cfg, model):
            _swap_classifier(cfg, model, new, pretrained)
        else:
            _swap_dense(cfg, model, new, pretrained)
    return cfg


def _import_package(cfg: Config) -> None:
    """Have whoever runs the new config import this package first."""
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'mmefficientmod' not in names:
        names.insert(0, 'mmefficientmod')
    cfg.custom_imports = dict(imports=names, allow_failed_imports=False)


def _is_classifier(cfg: Config, model: Mapping[str, Any]) -> bool:
    if any(k.__name__ == 'ImageClassifier' for k in class_of(model).__mro__):
        return True
    if cfg.get('default_scope') == 'mmpretrain':
        raise ConfigError(
            f'{type_name(model)} is no ImageClassifier: what it has besides '
            'the backbone is made for that backbone (its tokens, or features '
            'to contrast); of MMPretrain, classifiers take another one'
        )
    return False


def _swap_classifier(
    cfg: Config, model: ConfigDict, new: ConfigDict, pretrained: str | None
) -> None:
    head = model.get('head')
    if not isinstance(head, Mapping) or type_name(head) in TOKEN_HEADS:
        raise ConfigError(
            f'{type_name(head) or type_name(model)} reads tokens of the '
            'backbone that it was made for, and a pyramid has none; start '
            'from a config with a LinearClsHead, such as '
            'mmpretrain::resnet/resnet50_8xb32_in1k.py'
        )
    old = model.backbone
    # MMPretrain's ConvNeXt and its kin pool by themselves unless told not to.
    set_default(new, final_norm=True, gap_before_final_norm=False)
    indices = option_of(new, 'out_indices')
    if isinstance(indices, Sequence):
        # The head reads no other, and a norm of another would not learn.
        new.out_indices = (indices[-1],)
    levels = probe(new)
    carry_over(old, new, levels, pretrained)
    model.backbone = new
    replace_weights(cfg, model, new, pretrained)
    if type_name(head) not in MAP_HEADS:
        neck, pooling = model.get('neck'), dict(type='GlobalAveragePooling')
        if neck and neck != pooling:
            necks = neck if isinstance(neck, Sequence) else [neck]
            kinds = ' and '.join(map(type_name, necks))
            log_change(f'neck {kinds} gives way to average pooling')
        model.neck = ConfigDict(pooling)
    fit_classifier_head(model, old, levels.channels[-1])
    fit_normalisation(cfg, model, new)
    fit_optimizer(cfg, old, new)


def _swap_dense(
    cfg: Config, model: ConfigDict, new: ConfigDict, pretrained: str | None
) -> None:
    old = model.backbone
    refuse_impossible_swaps(model)
    if type_name(model.get('neck')) in PYRAMID_MAKERS:
        # The new backbone has the pyramid that this neck would make.
        log_change(f'neck {type_name(model.neck)} is not needed, and gone')
        model.neck = None
        before = Levels((), (4, 8, 16, 32), False)
    else:
        before = probe(old)
    strides = strides_to_give(model, before)
    levels = choose_levels(new, strides)
    # What the heads read, before and after: the backbone, or else a neck,
    # whose channels most often stay as they are.
    old_feats, new_feats = before.channels, levels.channels
    neck = model.get('neck')
    if neck:
        old_feats = new_feats = ()
        first = neck[0] if isinstance(neck, Sequence) else neck
        old_neck = copy.deepcopy(neck)
        fit_neck(model, first, before.channels, levels.channels)
        if reads_by_index(model):
            old_feats = neck_channels(old_neck, before)
            new_feats = neck_channels(neck, levels)
    if not neck or old_feats != new_feats:
        for name, head in model.items():
            if name.endswith('head') and head:
                fit_heads(head, old_feats, new_feats, bool(neck))
    carry_over(old, new, levels, pretrained)
    model.backbone = new
    replace_weights(cfg, model, new, pretrained)
    fit_normalisation(cfg, model, new)
    fit_optimizer(cfg, old, new)
