"""Weights of others into our backbones: read safely, load completely.

MMEngine loads ``init_cfg=dict(type='Pretrained', ...)`` non-strictly, so a
file that shares no name with the model would train from random weights with
no more than a warning. Here a file fits or is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from torch import Tensor, nn

from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    _some,
    read_checkpoint,
    select_weights,
    strip_prefix,
)
from mmefficientmod.config.nodes import type_name

INIT_CFG_KEYS = ('type', 'checkpoint', 'prefix', 'use_ema', 'map_location')


def pretrained_part(init_cfg: Any) -> Mapping[str, Any] | None:
    """The dict in MMEngine's ``init_cfg`` that asks for a checkpoint."""
    parts = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []
    kinds = ('Pretrained', PretrainedInit.__name__)
    return next((p for p in parts if type_name(p) in kinds), None)


def load_pretrained(
    module: nn.Module,
    init_cfg: Mapping[str, Any],
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    optional: Sequence[str] = (),
    read: Callable[[str, str], Any] | None = None,
) -> None:
    """Load ``dict(type='Pretrained', ...)`` into a backbone.

    The keys of ``init_cfg`` are MMEngine's ``checkpoint`` (path or URL),
    ``prefix`` (the part of the file to take, for example ``'backbone.'``;
    found by itself where it is left out) and ``map_location`` (default
    ``'cpu'``), and ``use_ema`` (take the averaged weights of a file that
    holds both; default False).

    Args:
        module: The backbone.
        init_cfg: The dict.
        convert: Renames foreign keys to the backbone's own, and may add
            what the backbone has beyond them.
        optional: Beginnings of keys that either side may lack.
        read: Gives what the path and the device stand for. Default:
            :func:`read_checkpoint`.

    Raises:
        CheckpointError: If the file is missing, unsafe or does not fit.
        TypeError: If ``init_cfg`` has an unknown key.
    """
    unknown = sorted(set(init_cfg) - set(INIT_CFG_KEYS))
    if unknown or not init_cfg.get('checkpoint'):
        raise TypeError(
            f'init_cfg={dict(init_cfg)} of {type(module).__name__} '
            + (f'has unknown keys {unknown}' if unknown else 'names no file')
            + f'; the keys are {", ".join(INIT_CFG_KEYS)}'
        )
    path = str(init_cfg['checkpoint'])
    read = read or read_checkpoint
    checkpoint = read(path, init_cfg.get('map_location', 'cpu'))
    weights, source = select_weights(
        checkpoint, path, init_cfg.get('use_ema', False)
    )
    given = strip_prefix(weights, path, init_cfg.get('prefix'))
    try:
        weights = convert(given)
    except CheckpointError as error:
        raise CheckpointError(f'{path} does not fit: {error}') from None
    left_out, kept = load_strictly(module, weights, path, optional)
    print_log(
        f'{type(module).__name__}: {len(given) - len(left_out)} tensors '
        f'from {path} ({source})'
        + (f'; not needed: {", ".join(left_out)}' if left_out else '')
        + (f'; not in the file, new: {", ".join(kept)}' if kept else ''),
        logger='current',
    )
    if hasattr(module, '_params_init_info'):
        update_init_info(module, init_info=f'loaded from {path}')


def load_strictly(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    path: str,
    optional: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Load weights that must fit.

    Args:
        module: The model.
        weights: Tensors under the model's own names.
        path: Name of the file, for messages.
        optional: Beginnings of keys that either side may lack.

    Returns:
        Optional keys that the file has beyond the model, and the reverse.

    Raises:
        CheckpointError: For any other key that one side lacks or a shape
            that differs; the message shows both sides.
    """
    own = module.state_dict()
    surplus = [k for k in weights if k not in own]
    lacking = [k for k in own if k not in weights]
    unexpected = [k for k in surplus if not k.startswith(tuple(optional))]
    missing = [k for k in lacking if not k.startswith(tuple(optional))]
    shapes = [
        f'{k} is {tuple(weights[k].shape)} in the file and '
        f'{tuple(own[k].shape)} in the model'
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    matched = len(own) - len(lacking)
    if unexpected or missing or shapes or not matched:
        faults = [f'{matched} of the {len(own)} keys of the model match']
        if missing:
            faults.append(f'the file lacks {_some(missing)}')
        if unexpected:
            faults.append(f'the model has no {_some(unexpected)}')
        if shapes:
            faults.append(f'shapes differ: {_some(shapes)}')
        raise CheckpointError(
            f'{path} does not fit {type(module).__name__}: '
            f'{"; ".join(faults)}. Is it a checkpoint of the same '
            'architecture?'
        )
    module.load_state_dict(weights, strict=False)
    return surplus, lacking


def load_whole(model: nn.Module, checkpoint: Mapping, path: str) -> None:
    """Load a whole detector, segmentor or classifier, which must fit.

    The model's own hooks for older checkpoints have their say. What a file
    holds beyond the model is left out.

    Args:
        model: The model.
        checkpoint: What the file holds.
        path: Name of the file, for messages.

    Raises:
        CheckpointError: If the file lacks something or a shape differs.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    weights = {re.sub(r'^module\.', '', k): v for k, v in weights.items()}
    try:
        result = model.load_state_dict(weights, strict=False)
    except CheckpointError as error:  # of a model of ours, which says it all
        raise CheckpointError(f'{path} does not fit: {error}') from None
    except RuntimeError as error:
        faults = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            f'{path} does not fit {type(model).__name__}: {_some(faults)} '
            'Is it a checkpoint of the same config?'
        ) from None
    if result.missing_keys:
        raise CheckpointError(
            f'{path} does not fit {type(model).__name__}: it lacks '
            f'{_some(result.missing_keys)}; the model has no '
            f'{_some(result.unexpected_keys)}. Is it a checkpoint of the same '
            'config?'
        )
