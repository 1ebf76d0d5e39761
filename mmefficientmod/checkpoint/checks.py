"""What the content of a checkpoint must be, whichever way it was read."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mmefficientmod.messages import shorten

# Names under which files keep their weights, plain or averaged (EMA).
PLAIN_KEYS = ('state_dict', 'model')
EMA_KEYS = ('state_dict_ema', 'model_ema')
# That of MMEngine's EMAHook, which puts the average under `state_dict`.
OTHER_KEYS = ('ema_state_dict',)
# Bounds that no checkpoint reaches, but a file of a few hundred bytes can:
# a list of two lists of two lists ... has any number of values.
MOST_VALUES = 1_000_000
MOST_LEVELS = 100
MOST_SHARED = 16
SMALL = 1 << 26  # bytes that may be repeated as often as they like
_END = object()


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit the model."""


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (list, tuple, set)):
        return value
    if isinstance(value, argparse.Namespace):
        return vars(value).values()
    return ()


def check_extent(content: Any) -> None:
    """Refuse content whose values repeat without end or very often.

    Args:
        content: Content of a file.

    Raises:
        ValueError: If lists and dicts contain each other too often, or too
            many tensors share their values, which a copy would separate.
    """
    todo: list[Iterator[Any]] = [iter((content,))]
    count = nbytes = 0
    storages: dict[int, int] = {}
    while todo:
        value = next(todo[-1], _END)
        if value is _END:
            todo.pop()
            continue
        count += 1
        todo.append(iter(_children(value)))
        if isinstance(value, Tensor):
            nbytes += value.nbytes
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        if count > MOST_VALUES or len(todo) > MOST_LEVELS:
            raise ValueError('its values contain each other too often')
    if nbytes > MOST_SHARED * sum(storages.values()) + SMALL:
        raise ValueError('too many of its tensors have the same values')


def check_weights(content: Any, path: str) -> None:
    """Refuse weights from which no model can compute, and a wrong ``meta``.

    Checked are the weights of a file, plain and averaged, and not the state of
    an optimizer. An infinity is allowed in a mask, such as that of CLIP's text
    encoder, where it means that nothing is attended to.

    Args:
        content: Content of the file.
        path: Name of the file, for messages.

    Raises:
        CheckpointError: If a weight is not finite, complex, has whole numbers
            in place of others, or a name of a weight is no text; or if
            ``meta`` or its ``dataset_meta`` is no dict.
    """
    if not isinstance(content, Mapping):
        return
    meta = content.get('meta')
    dataset = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    for name, value in ('meta', meta), ('dataset_meta', dataset):
        if value is not None and not isinstance(value, Mapping):
            raise CheckpointError(
                f'{path} cannot be used: its {name} is a '
                f'{type(value).__name__} and should be a dict'
            )
    classes = (dataset or {}).get('classes')
    if classes is not None and not _all_of(classes, str):
        raise CheckpointError(
            f'{path} cannot be used: the classes in its meta are no names'
        )
    palette = (dataset or {}).get('palette')
    if not isinstance(palette, (str, type(None))) and not (
        _all_of(palette, (list, tuple))
        and all(len(c) == 3 and _all_of(c, int) for c in palette)
    ):
        raise CheckpointError(
            f'{path} cannot be used: the palette in its meta has no colours'
        )
    keys = (*PLAIN_KEYS, *EMA_KEYS, *OTHER_KEYS)
    for weights in (content, *map(content.get, keys)):
        if isinstance(weights, Mapping):
            for name, value in weights.items():
                if isinstance(value, Tensor):
                    fault = _fault_of_weight(name, value)
                    if fault:
                        raise CheckpointError(
                            f'{path} is damaged or of another kind of model: '
                            f'the tensor {shorten(str(name))} {fault}'
                        )


def _all_of(values: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(values, (list, tuple)) and all(
        isinstance(value, kinds) for value in values
    )


def _fault_of_weight(name: Any, weight: Tensor) -> str | None:
    if not isinstance(name, str):
        return 'has no text for a name'
    if weight.is_complex():
        return 'has complex values'
    if not weight.is_floating_point():
        if name.endswith(('.weight', '.bias')):
            return f'has values of type {str(weight.dtype).split(".")[-1]}'
        return None
    return (
        None if is_finite(name, weight) else 'has values that are not finite'
    )


def is_finite(name: str, weight: Tensor) -> bool:
    """Whether a weight is finite, or a mask without NaN.

    Args:
        name: Its name in the model.
        weight: Any floating-point tensor.
    """
    if weight.element_size() == 1:  # float8, which has few operations
        weight = weight.float()
    if torch.isfinite(weight).all():
        return True
    is_mask = 'mask' in name.rpartition('.')[2]
    return is_mask and not bool(torch.isnan(weight).any())
