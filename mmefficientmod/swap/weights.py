"""The weights of a new backbone, and the images that these weights expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import CheckpointLoader

from mmefficientmod.checkpoint.loading import pretrained_part
from mmefficientmod.checkpoint.reading import CheckpointError, select_weights
from mmefficientmod.config.nodes import ConfigError, find_model, type_name
from mmefficientmod.config.toolbox import default_scope
from mmefficientmod.models import TimmPyramid
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.names import BACKBONES
from mmefficientmod.swap.probe import (
    class_of,
    is_ours,
    not_loaded,
    parameters_of,
    without_weights,
)


def set_pretrained(cfg: Config, pretrained: str) -> None:
    """Have the backbone that a config has start from weights.

    Args:
        cfg: The config, changed in place.
        pretrained: A file or URL.

    Raises:
        ConfigError: If there is no backbone, or the weights do not fit one
            of others. Ours looks when it is built.
    """
    model = find_model(cfg)
    _drop_shortcut(model)
    with default_scope(cfg):
        _name_weights(model.backbone, pretrained)


def replace_weights(
    cfg: Config, model: ConfigDict, new: ConfigDict, pretrained: str | None
) -> None:
    """Remove the weights of the old model, and name those of the new one."""
    if pretrained:
        _name_weights(new, pretrained)
    _drop_shortcut(model)
    for node in (model, cfg.model):
        if pretrained_part(node.get('init_cfg')):
            node.init_cfg = None
    if cfg.get('load_from'):
        log_change(
            f'load_from={cfg.load_from} is left out: it holds the old model'
        )
        cfg.load_from = None


def _drop_shortcut(node: ConfigDict) -> None:
    """MMEngine turns ``pretrained``, older than ``init_cfg``, into one."""
    if 'pretrained' in node:
        node.pretrained = None


def _name_weights(backbone: ConfigDict, pretrained: str) -> None:
    """Have a backbone start from weights; its other rules for that stay."""
    given = backbone.get('init_cfg') or []
    parts = [given] if isinstance(given, Mapping) else list(given)
    named = pretrained_part(parts)
    others = [part for part in parts if part is not named]
    # A prefix that its dict names is meant.
    named = ConfigDict(named or {}, type='Pretrained')
    named.checkpoint = str(pretrained)
    ours = is_ours(backbone)
    if not ours and 'prefix' not in named and _is_whole(named.checkpoint):
        named.prefix = 'backbone.'
    backbone.init_cfg = [*others, named] if others else named
    if not ours:
        _drop_shortcut(backbone)
        _refuse_weights_that_do_not_fit(backbone, named)


def _is_whole(path: str) -> bool:
    """Whether a file holds a whole model, and not a backbone alone."""
    try:
        content = CheckpointLoader.load_checkpoint(path, 'cpu', 'silent')
        weights, _ = select_weights(content, path)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        raise ConfigError(
            f'the weights {path} cannot be read: {error}'
        ) from error
    return any(name.startswith('backbone.') for name in weights)


def _refuse_weights_that_do_not_fit(
    backbone: ConfigDict, init_cfg: Mapping[str, Any]
) -> None:
    """MMEngine goes on with a warning where nothing, or half, is loaded.

    A norm for each output, which no file of ImageNet weights has, starts
    from ones and zeros.
    """
    random = not_loaded(backbone)
    if random:
        before = not_loaded(without_weights(backbone))
        raise ConfigError(
            f'{init_cfg["checkpoint"]} does not fit {type_name(backbone)}: '
            f'{len(random)} of {len(before)} tensors would stay random, such '
            f'as {", ".join(random[:4])}. Is it a checkpoint of the same '
            'architecture? Where its names begin with something else than '
            "the backbone's, say so by init_cfg=dict(type='Pretrained', "
            "prefix='...') in the dict of the backbone"
        )


def has_weights(backbone: Mapping[str, Any]) -> bool:
    named = pretrained_part(backbone.get('init_cfg'))
    return bool(backbone.get('pretrained') or named)


def fit_normalisation(cfg: Config, model: ConfigDict, new: ConfigDict) -> None:
    """Give a backbone the images that its weights were trained on.

    Caffe's weights of ResNet want BGR and no scaling, YOLOX's nothing at all.
    """
    values = normalisation(new)
    if values is None or new.get('in_channels', 3) != 3:
        return
    for holder in (cfg, cfg.model, model):
        node = holder.get('data_preprocessor')
        while isinstance(node, Mapping):
            # MMPretrain's may have no type, and calls it otherwise.
            accepted = parameters_of(node) if 'type' in node else 'to_rgb'
            swapped = 'to_rgb' if 'to_rgb' in accepted else 'bgr_to_rgb'
            wanted = dict(values, **{swapped: True})
            given = {k: node.get(k) for k in wanted}
            if swapped in accepted and (
                not node.get(swapped)
                or list(node.get('mean') or ()) != values['mean']
                or list(node.get('std') or ()) != values['std']
            ):
                log_change(
                    f'images are normalised as {wanted}, not as {given}'
                )
                node.pop('rgb_to_bgr', None)
                node.update(wanted)
            node = node.get('data_preprocessor')


# What most ImageNet weights expect of the image, RGB, 0 to 255.
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def normalisation(
    backbone: Mapping[str, Any],
) -> dict[str, list[float]] | None:
    """What the ImageNet weights of a backbone expect of the image.

    Args:
        backbone: Its dict.

    Returns:
        ``mean`` and ``std`` of three channels, RGB, 0 to 255; None for a
        backbone that is neither ours nor one of :data:`BACKBONES`.
    """
    kind = class_of(backbone)
    if issubclass(kind, TimmPyramid):
        return TimmPyramid.normalisation(backbone)
    named = any(
        all(backbone.get(key) == entry[key] for key in ('type', 'arch'))
        for entry in BACKBONES.values()
        if 'arch' in entry
    )
    return IMAGENET if named or is_ours(backbone) else None
