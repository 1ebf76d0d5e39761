"""Weights of a new backbone, and the image normalisation that they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.checkpoint.entry import protect
from mmefficientmod.checkpoint.loading import pretrained_part
from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    read_checkpoint,
    select_weights,
)
from mmefficientmod.config.nodes import ConfigError, find_model, type_name
from mmefficientmod.config.toolbox import default_scope
from mmefficientmod.models import TimmPyramid
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.names import BACKBONES
from mmefficientmod.swap.probe import (
    class_of,
    is_ours,
    parameters_of,
    randomly_initialised,
    without_weights,
)

# Normalisation of images, RGB, 0 to 255, for most ImageNet weights.
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def set_pretrained(cfg: Config, pretrained: str) -> None:
    """Make the backbone of a config start from weights.

    Args:
        cfg: The config, changed in place.
        pretrained: A file or URL.

    Raises:
        ConfigError: If the config has no backbone, or the weights do not fit
            a backbone of timm or a toolbox. Our backbones check the weights
            when they are built.
    """
    model = find_model(cfg)
    _remove_pretrained_key(model)
    with default_scope(cfg):
        _name_weights(model.backbone, pretrained)


def replace_weights(
    cfg: Config, model: ConfigDict, new: ConfigDict, pretrained: str | None
) -> None:
    """Remove weights of the old model, and name those of the new backbone.

    Args:
        cfg: The config, changed in place.
        model: The dict in it that has the backbone.
        new: The dict of the new backbone.
        pretrained: A file or URL; None for no weights.

    Raises:
        ConfigError: If the weights do not fit a backbone of timm or a
            toolbox.
    """
    if pretrained:
        _name_weights(new, pretrained)
    for node, key in (
        (model, 'pretrained'),
        (model, 'init_cfg'),
        (cfg.model, 'init_cfg'),
        (cfg, 'load_from'),
    ):
        value = node.get(key)
        if pretrained_part(value) if key == 'init_cfg' else value:
            log_change(
                f'{key}={value} is left out: it has the weights of the old '
                'model'
            )
            node[key] = None


def has_weights(backbone: Mapping[str, Any]) -> bool:
    """Whether the dict of a backbone names pretrained weights."""
    named = pretrained_part(backbone.get('init_cfg'))
    return bool(backbone.get('pretrained') or named)


def _remove_pretrained_key(node: ConfigDict) -> None:
    """Unset ``pretrained``, of which OpenMMLab's models make ``init_cfg``."""
    if 'pretrained' in node:
        node.pretrained = None


def _name_weights(backbone: ConfigDict, pretrained: str) -> None:
    """Name weights in ``init_cfg``, and keep its other initialisations."""
    given = backbone.get('init_cfg') or []
    parts = [given] if isinstance(given, Mapping) else list(given)
    part = pretrained_part(parts)
    others = [p for p in parts if p is not part]
    # Keys that the user gave, such as a prefix, are kept.
    named = ConfigDict(part or {}, type='Pretrained')
    named.checkpoint = str(pretrained)
    ours = is_ours(backbone)
    if not ours and 'prefix' not in named and _is_whole(named.checkpoint):
        named.prefix = 'backbone.'
    backbone.init_cfg = [*others, named] if others else named
    if not ours:
        _remove_pretrained_key(backbone)
        _check_weights_fit(backbone, named)


def _is_whole(path: str) -> bool:
    """Whether a file has the weights of a whole model."""
    try:
        weights, _ = select_weights(read_checkpoint(path), path)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    return any(name.startswith('backbone.') for name in weights)


def _check_weights_fit(
    backbone: ConfigDict, init_cfg: Mapping[str, Any]
) -> None:
    """Refuse weights that leave tensors of a backbone random.

    MMEngine loads the file, here and in the training. It takes the tensors
    that fit, and only warns of the others. Tensors that start from constants
    may be missing, as this check does not see them: the norms of single
    outputs, which ImageNet weights do not have, are among them.
    """
    protect()
    random = randomly_initialised(backbone)
    if random:
        tensors = randomly_initialised(without_weights(backbone))
        raise ConfigError(
            f'{init_cfg["checkpoint"]} does not fit {type_name(backbone)}: '
            f'{len(random)} of {len(tensors)} tensors would stay random, such '
            f'as {", ".join(random[:4])}. Is it a checkpoint of the same '
            'architecture? If its names begin with another prefix than '
            "backbone., give it by init_cfg=dict(type='Pretrained', "
            "prefix='...') in the dict of the backbone"
        )


def fit_image_normalisation(
    cfg: Config, model: ConfigDict, new: ConfigDict
) -> None:
    """Normalise images as the weights of the new backbone expect.

    Configs with Caffe's weights of ResNet have BGR images and no division by
    a deviation, and those of YOLOX do not normalise images. Nothing changes
    for a backbone without known weights, or for images that do not have three
    channels.

    Args:
        cfg: The config, changed in place.
        model: The dict in it that has the backbone.
        new: The dict of the new backbone.
    """
    values = image_normalisation(new)
    if values is None or new.get('in_channels', 3) != 3:
        return
    for holder in (cfg, cfg.model, model):
        node = holder.get('data_preprocessor')
        while isinstance(node, dict):
            # MMPretrain's may have no type, and has another name for the
            # order of channels.
            accepted = parameters_of(node) if 'type' in node else 'to_rgb'
            flag = 'to_rgb' if 'to_rgb' in accepted else 'bgr_to_rgb'
            wanted = dict(values, **{flag: True})
            given = {k: node.get(k) for k in wanted}
            if flag in accepted and (
                not node.get(flag)
                or list(node.get('mean') or ()) != values['mean']
                or list(node.get('std') or ()) != values['std']
            ):
                log_change(
                    f'images are normalised as {wanted}, not as {given}'
                )
                node.pop('rgb_to_bgr', None)
                node.update(wanted)
            node = node.get('data_preprocessor')


def image_normalisation(
    backbone: Mapping[str, Any],
) -> dict[str, list[float]] | None:
    """The normalisation of images for the ImageNet weights of a backbone.

    Args:
        backbone: The dict of the backbone.

    Returns:
        ``mean`` and ``std`` of three channels, RGB, 0 to 255; None for a
        backbone that is neither ours nor in
        :data:`~mmefficientmod.swap.names.BACKBONES`.
    """
    if issubclass(class_of(backbone), TimmPyramid):
        return TimmPyramid.normalisation(backbone)
    has_name = any(
        all(backbone.get(key) == entry[key] for key in ('type', 'arch'))
        for entry in BACKBONES.values()
        if 'arch' in entry
    )
    return IMAGENET if has_name or is_ours(backbone) else None
