"""Loading weights into a model, where they must fit.

MMEngine loads ``init_cfg=dict(type='Pretrained', ...)`` non-strictly: a file
that has no name in common with the model causes a warning, and the training
starts from random weights. Here a file fits or is refused.
"""

from __future__ import annotations

import re
from collections.abc import (
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from torch import Tensor, nn

from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    read_checkpoint,
    select_weights,
    strip_prefix,
)
from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.messages import list_some, shorten

INIT_CFG_KEYS = ('type', 'checkpoint', 'prefix', 'use_ema', 'map_location')
# The number of batches that a batch norm has seen in training. Its output
# does not depend on it with the usual momentum, and weights that come from
# TensorFlow or Caffe have none.
BATCH_COUNTER = 'num_batches_tracked'


def pretrained_part(init_cfg: Any) -> Mapping[str, Any] | None:
    """The dict in MMEngine's ``init_cfg`` that names a checkpoint.

    Args:
        init_cfg: A dict, a list of dicts, or None.

    Returns:
        The first dict of type ``Pretrained``; None without one.
    """
    parts = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []
    names = ('Pretrained', PretrainedInit.__name__)
    return next((p for p in parts if type_name(p) in names), None)


def load_pretrained(
    module: nn.Module,
    init_cfg: Mapping[str, Any],
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    optional: Sequence[str] = (),
    read: Callable[[str, str], Any] = read_checkpoint,
) -> None:
    """Load the checkpoint of ``dict(type='Pretrained', ...)`` strictly.

    Keys of ``init_cfg`` besides ``type``:

    - ``checkpoint``: path or URL of the file.
    - ``prefix``: beginning of the keys to take, such as ``'backbone.'``.
      Default: found in the file, see :func:`strip_prefix`.
    - ``use_ema``: whether to take the averaged weights of a file that has
      both. Default: False.
    - ``map_location``: device on which the file is read. Default: ``'cpu'``.

    Args:
        module: The backbone.
        init_cfg: The dict.
        convert: Renames the keys of the file to those of the backbone. It may
            add tensors, and raise a ``CheckpointError``.
        optional: Beginnings of keys that may be missing in the file or in the
            backbone.
        read: Reads a checkpoint, given its path and the device. Default:
            :func:`read_checkpoint`.

    Raises:
        CheckpointError: If the file is missing, unsafe or does not fit.
        ConfigError: If ``init_cfg`` has an unknown key or names no file.
    """
    unknown = sorted(set(init_cfg) - set(INIT_CFG_KEYS))
    if unknown or not init_cfg.get('checkpoint'):
        raise ConfigError(
            f'init_cfg={dict(init_cfg)} of {type(module).__name__} '
            + (f'has unknown keys {unknown}' if unknown else 'names no file')
            + f'; the keys are {", ".join(INIT_CFG_KEYS)}'
        )
    path = str(init_cfg['checkpoint'])
    checkpoint = read(path, init_cfg.get('map_location', 'cpu'))
    weights, source = select_weights(
        checkpoint, path, init_cfg.get('use_ema', False)
    )
    given = strip_prefix(weights, path, init_cfg.get('prefix'))
    try:
        converted = convert(given)
    except CheckpointError as error:
        raise CheckpointError(f'{path} does not fit: {error}') from None
    surplus, missing = load_strictly(module, converted, path, optional)
    print_log(
        f'{type(module).__name__}: {len(given) - len(surplus)} tensors '
        f'from {path} ({source})'
        + (f'; not used: {", ".join(surplus)}' if surplus else '')
        + (f'; not in the file, new: {", ".join(missing)}' if missing else ''),
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
    """Load weights that must have every tensor of a model, and no other.

    The counters of batch norms (``num_batches_tracked``) are an exception:
    they may be missing on both sides.

    Args:
        module: The model.
        weights: Tensors under the names that they have in the model.
        path: Name of the file, for messages.
        optional: Beginnings of keys that may be missing in the file or in the
            model.

    Returns:
        The optional keys that only the file has, and those that only the
        model has.

    Raises:
        CheckpointError: If any other key is missing on one side or a shape
            differs; the message shows both sides.
    """
    own = module.state_dict()
    names = without_counters(own)
    surplus = [k for k in without_counters(weights) if k not in own]
    lacking = [k for k in names if k not in weights]
    unexpected = [k for k in surplus if not k.startswith(tuple(optional))]
    missing = [k for k in lacking if not k.startswith(tuple(optional))]
    shapes = [
        f'{k} is {tuple(weights[k].shape)} in the file and '
        f'{tuple(own[k].shape)} in the model'
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    matched = len(names) - len(lacking)
    if unexpected or missing or shapes or not matched:
        faults = [f'{matched} of the {len(names)} keys of the model match']
        if missing:
            faults.append(f'the file lacks {list_some(missing)}')
        if unexpected:
            faults.append(f'the model has no {list_some(unexpected)}')
        if shapes:
            faults.append(f'shapes differ: {list_some(shapes)}')
        raise _misfit(path, module, faults, 'architecture')
    module.load_state_dict(weights, strict=False)
    return surplus, lacking


def drop_classes(
    model: nn.Module, weights: MutableMapping[str, Tensor]
) -> list[str]:
    """Remove the layers that predict classes, for a model of other classes.

    Such a layer has another number of outputs, the first dimension of its
    weight and bias, and otherwise the same shape. Layers of the backbone and
    of the neck predict no classes.

    Args:
        model: The model.
        weights: Its weights in a file, changed in place.

    Returns:
        Names of the tensors that were removed, such as
        ``bbox_head.fc_cls.weight``.
    """
    own = model.state_dict()
    removed = []
    for key in list(weights):
        name = _without_wrapper(key)
        if name not in own or {'backbone', 'neck'} & {*name.split('.')}:
            continue
        before, now = weights[key].shape, own[name].shape
        if before != now and len(before) > 0 and before[1:] == now[1:]:
            removed.append(name)
            del weights[key]
    return removed


def load_whole(
    model: nn.Module,
    checkpoint: Mapping,
    path: str,
    may_lack: Sequence[str] = (),
) -> None:
    """Load a whole detector, segmentor or classifier, which must fit.

    A model that adapts older checkpoints when it loads them does so here, too.
    Tensors that only the file has are ignored. The counters of batch norms
    (``num_batches_tracked``) may be missing in the file.

    Args:
        model: The model.
        checkpoint: Content of the file: the weights, or a dict that has them
            under ``state_dict``.
        path: Name of the file, for messages.
        may_lack: Names of tensors that the file need not have.

    Raises:
        CheckpointError: If a tensor is missing in the file or a shape
            differs.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    # A new dict has no `_metadata`, the versions of the layers. PyTorch takes
    # it for an old one, in which batch norms had no counters.
    weights = {_without_wrapper(k): v for k, v in weights.items()}
    try:
        result = model.load_state_dict(weights, strict=False)
    except CheckpointError as error:  # raised by one of our models
        raise CheckpointError(f'{path} does not fit: {error}') from None
    except RuntimeError as error:
        # PyTorch's text is a title, then a line for each fault.
        lines = [line.strip(' \t.') for line in str(error).splitlines()]
        faults = lines[1:] or [shorten(str(error))]
        raise _misfit(path, model, [list_some(faults)]) from None
    missing = [key for key in result.missing_keys if key not in may_lack]
    if missing:
        faults = [f'the file lacks {list_some(missing)}']
        if result.unexpected_keys:
            surplus = list_some(result.unexpected_keys)
            faults.append(f'the model has no {surplus}')
        raise _misfit(path, model, faults)


def _without_wrapper(name: str) -> str:
    """Name of a tensor, without the prefix of PyTorch's data parallelism."""
    return re.sub(r'^module\.', '', name)


def _misfit(
    path: str, model: nn.Module, faults: Iterable[str], same: str = 'config'
) -> CheckpointError:
    return CheckpointError(
        f'{path} does not fit {type(model).__name__}: {"; ".join(faults)}. Is '
        f'it a checkpoint of the same {same}?'
    )


def without_counters(names: Iterable[str]) -> list[str]:
    """Names of tensors, without those of the counters of batch norms."""
    return [k for k in names if k.rpartition('.')[2] != BATCH_COUNTER]
