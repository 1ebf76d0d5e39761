"""Options of the old backbone that the new one keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict

from mmefficientmod.config.nodes import type_name
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.probe import Levels, option_of, parameters_of
from mmefficientmod.swap.weights import has_weights

# Options that say how a backbone is trained, and not which one it is.
TRAINING_OPTIONS = ('frozen_stages', 'norm_eval', 'with_cp')
# Options that are kept only with pretrained weights, and why, for the log.
NEED_WEIGHTS = dict(
    frozen_stages='it would freeze random weights',
    norm_eval='batch norms would keep mean 0 and variance 1',
)


def keep_options(
    old: Mapping[str, Any],
    new: ConfigDict,
    levels: Levels,
    pretrained: str | None,
) -> None:
    """Give options of the old backbone to the new one, if it has them.

    Options that are left out are logged.

    Args:
        old: The dict of the old backbone.
        new: The dict of the new backbone, changed in place. The options that
            it has stay.
        levels: What the new backbone gives.
        pretrained: Weights for the new backbone; None without.
    """
    handled = {'type', 'out_indices'}
    if 'in_channels' in old and 'in_channels' in parameters_of(new):
        new.setdefault('in_channels', old['in_channels'])
        handled.add('in_channels')
    with_weights = bool(pretrained) or has_weights(new)
    for key in TRAINING_OPTIONS:
        handled.add(key)
        value = old.get(key)
        if key in new or not _has_effect(key, old):
            continue
        obstacle = _obstacle(key, old, new, levels, with_weights)
        if obstacle is None:
            new[key] = value
        else:
            log_change(
                f'{key}={value} of {type_name(old)} is left out: {obstacle}'
            )
    removed = [
        f'{key}={value!r}'
        for key, value in old.items()
        if key not in handled and value is not None
    ]
    if removed:
        log_change(
            f'options of {type_name(old)} are removed: {", ".join(removed)}'
        )


def _has_effect(key: str, backbone: Mapping[str, Any]) -> bool:
    """Whether the dict of a backbone turns a training option on."""
    value = backbone.get(key)
    if value is None or value is False or value == -1:
        return False
    # `frozen_stages=0` freezes the stem of most backbones, but nothing where
    # it is the default, as in ConvNeXt.
    return value != 0 or option_of(dict(type=backbone['type']), key) != 0


def _obstacle(
    key: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    levels: Levels,
    with_weights: bool,
) -> str | None:
    """Why the new backbone cannot keep an option; None if it can."""
    if key not in parameters_of(new):
        return f'{type_name(new)} has no such option'
    if key == 'norm_eval' and not levels.has_batch_norm:
        return f'{type_name(new)} has no batch norms'
    if key in NEED_WEIGHTS and not with_weights:
        return NEED_WEIGHTS[key]
    if key == 'frozen_stages' and not _count_alike(old, new):
        return f'{type_name(new)} numbers its stages differently'
    return None


def _count_alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether both backbones number their stages in the same way."""
    # Freezing the first stage is frozen_stages=0 for VAN, 1 for others.
    starts_alike = (type_name(old) == 'VAN') == (type_name(new) == 'VAN')
    return starts_alike and _last_stage(old) == _last_stage(new)


def _last_stage(backbone: Mapping[str, Any]) -> int | None:
    """The last index in ``out_indices``; None if there is none."""
    indices = option_of(backbone, 'out_indices')
    if isinstance(indices, Sequence) and indices:
        return indices[-1]
    return indices if isinstance(indices, int) else None
