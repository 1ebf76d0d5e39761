"""Replacing the backbone of a config, step by step.

Strides and channels are measured, by running each backbone once with random
weights: the strides of the old backbone, and the channels that the new one has
at these strides. Tables hold only what such a run does not show:

- ``names.py``: names of backbones, and the options that give them four
  levels.
- ``levels.py``: networks that are backbone and decoder in one.
- ``necks_and_heads.py``: necks that make a pyramid, heads that read tokens,
  and heads that pool their input themselves.
- ``options.py``: options that say how a backbone is trained.
- ``optimizer.py``: constructors that decay the learning rate by layer.
- ``weights.py``: the normalisation of images for most ImageNet weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.config.nodes import ConfigError, find_model, type_name
from mmefficientmod.config.toolbox import default_scope
from mmefficientmod.swap.levels import (
    choose_last_level,
    choose_levels,
    strides_to_give,
)
from mmefficientmod.swap.names import resolve_backbone
from mmefficientmod.swap.necks_and_heads import (
    check_classifier,
    check_dense_model,
    fit_classifier_head,
    fit_neck_and_heads,
    pool_average,
    remove_pyramid_maker,
)
from mmefficientmod.swap.optimizer import fit_optimizer
from mmefficientmod.swap.options import keep_options
from mmefficientmod.swap.probe import Levels, class_of, probe
from mmefficientmod.swap.unread import leave_out, levels_read
from mmefficientmod.swap.weights import (
    fit_image_normalisation,
    replace_weights,
)


def swap_backbone(
    cfg: Config,
    backbone: str | Mapping[str, Any],
    pretrained: str | None = None,
) -> Config:
    """Replace the backbone of a config of any of the three toolboxes.

    Neck and heads get the channels of the new backbone, at the strides of the
    old one. A classifier reads the last stage, after the final norm and
    average pooling. Weights of the old model are removed. Options of the old
    backbone are kept if the new one has them. All changes are logged, except
    channels, ``out_indices`` and ``custom_imports``.

    Args:
        cfg: A config of MMDetection, MMSegmentation or MMPretrain. It does
            not change.
        backbone: A name in :data:`~mmefficientmod.swap.names.BACKBONES`,
            ``timm:NAME`` for a model of timm, or the dict of any registered
            backbone that returns a tuple of ``(N, C_i, H_i, W_i)``.
        pretrained: File or URL with weights of the new backbone. Our
            backbones load them when they are built; for others, loading is
            tried at once. Default: None.

    Returns:
        The new config.

    Raises:
        ConfigError: If the config has no backbone that can be replaced, or
            the new backbone does not have the levels that neck and heads
            read. The message gives the reason.

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
            levels = _fit_classifier(model, new)
        else:
            levels = _fit_dense_model(model, new)
        _put_in(cfg, model, new, levels, pretrained)
    return cfg


def _fit_dense_model(model: ConfigDict, new: ConfigDict) -> Levels:
    """Choose the stages that a detector or segmentor reads, and fit it."""
    check_dense_model(model)
    if remove_pyramid_maker(model):
        before = Levels(strides=(4, 8, 16, 32))
    else:
        before = probe(model.backbone)
    strides = strides_to_give(model, before)
    read = levels_read(model, before)
    try:
        levels = choose_levels(new, tuple(strides[i] for i in read))
    except ConfigError:
        # It may have no choice of its levels, and give those that are not
        # read as well.
        read = tuple(range(len(strides)))
        levels = choose_levels(new, strides)
    before = leave_out(model, before, read)
    fit_neck_and_heads(model, before, levels)
    return levels


def _fit_classifier(model: ConfigDict, new: ConfigDict) -> Levels:
    """Choose the last stage of the new backbone, and fit a classifier."""
    check_classifier(model)
    levels = choose_last_level(new)
    pool_average(model)
    fit_classifier_head(model, levels.channels[-1])
    return levels


def _put_in(
    cfg: Config,
    model: ConfigDict,
    new: ConfigDict,
    levels: Levels,
    pretrained: str | None,
) -> None:
    """Put the new backbone in the place of the old one."""
    old = model.backbone
    keep_options(old, new, levels, pretrained)
    model.backbone = new
    replace_weights(cfg, model, new, pretrained)
    fit_image_normalisation(cfg, model, new)
    fit_optimizer(cfg, old, new)


def _import_package(cfg: Config) -> None:
    """Make the new config import this package, which registers backbones."""
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'mmefficientmod' not in names:
        names.insert(0, 'mmefficientmod')
    cfg.custom_imports = {
        'allow_failed_imports': False,
        **imports,
        'imports': names,
    }


def _is_classifier(cfg: Config, model: ConfigDict) -> bool:
    if any(k.__name__ == 'ImageClassifier' for k in class_of(model).__mro__):
        return True
    if cfg.get('default_scope') == 'mmpretrain':
        raise ConfigError(
            f'{type_name(model)} is no ImageClassifier, and its other parts '
            'depend on its own backbone; start from a config of MMPretrain '
            'with an ImageClassifier'
        )
    return False
