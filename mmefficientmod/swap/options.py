"""Options of the old backbone that the new one keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict

from mmefficientmod.config.nodes import type_name
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.probe import Levels, option_of, parameters_of
from mmefficientmod.swap.weights import has_weights

# Arguments of a backbone that say how to train it and not what it is.
TRAINING_OPTIONS = ('frozen_stages', 'norm_eval', 'with_cp')
# Of these, what makes sense with weights alone, and what it does without.
NEED_WEIGHTS = dict(
    frozen_stages='it would freeze random weights',
    norm_eval='batch norms would keep mean 0 and variance 1',
)


def carry_over(
    old: Mapping[str, Any],
    new: ConfigDict,
    levels: Levels,
    pretrained: str | None,
) -> None:
    """Keep what the old backbone was told, where that means something."""
    accepted = parameters_of(new)
    kept = {'type', 'init_cfg', 'pretrained', 'out_indices'}
    if 'in_channels' in accepted and 'in_channels' in old:
        new.setdefault('in_channels', old['in_channels'])
        kept.add('in_channels')
    for key in TRAINING_OPTIONS:
        value = old.get(key)
        if key in new or value in (None, False, -1):
            kept.add(key)
            continue
        if key not in accepted:
            reason = f'{type_name(new)} has no such option'
        elif key == 'norm_eval' and not levels.has_batch_norm:
            reason = f'{type_name(new)} has no batch norms'
        elif key in NEED_WEIGHTS and not (pretrained or has_weights(new)):
            reason = NEED_WEIGHTS[key]
        elif key == 'frozen_stages' and not _count_alike(old, new):
            reason = f'{type_name(new)} numbers its stages otherwise'
        else:
            new[key] = value
            kept.add(key)
            continue
        kept.add(key)
        log_change(f'{key}={value} of {type_name(old)} is left out: {reason}')
    gone = [f'{k}={v!r}' for k, v in old.items() if k not in kept]
    if gone:
        log_change(f'with {type_name(old)} go its options {", ".join(gone)}')


def _count_alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether one stage has the same number in both, as far as is known."""
    # To freeze the first stage is 0 there, and 1 elsewhere.
    vans = (type_name(old) == 'VAN') + (type_name(new) == 'VAN')
    return _last_stage(old) == _last_stage(new) and vans != 1


def _last_stage(backbone: Mapping[str, Any]) -> int | None:
    """The last stage of which the output is used, by the backbone's count."""
    indices = option_of(backbone, 'out_indices')
    if isinstance(indices, Sequence) and indices:
        return indices[-1]
    return indices if isinstance(indices, int) else None


def set_default(backbone: ConfigDict, **options: Any) -> None:
    accepted = parameters_of(backbone)
    for key, value in options.items():
        if key in accepted:
            backbone.setdefault(key, value)
