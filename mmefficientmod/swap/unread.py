"""Levels of a backbone that neither neck nor heads read.

Some backbones have a norm for each level that they give. For a level that
nobody reads it would get no gradient, which PyTorch's data parallelism
refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor

from mmefficientmod.config.nodes import walk
from mmefficientmod.rng import forked_rng
from mmefficientmod.swap.probe import Levels, option_of

SIZE = 128  # side of the image whose features are tried, in pixels


def levels_read(model: ConfigDict, levels: Levels) -> tuple[int, ...]:
    """Which levels of a backbone its neck or its heads read.

    Features are run through them: those with a gradient are read. A neck must
    give the same sizes and channels without the others.

    Args:
        model: A detector or segmentor with its old backbone. Not changed.
        levels: Levels of the old backbone.

    Returns:
        The indices of the levels that are read; of all levels where it cannot
        be found out.
    """
    every = tuple(range(len(levels.strides)))
    if not levels.channels:
        return every
    try:
        if model.get('neck'):
            return _read_by_neck(_first_neck(model), levels)
        read = _named_by_heads(model, len(every))
        if not 0 < len(read) < len(every):
            return every
        # A head may read more than it names.
        return tuple(sorted({*read, *_read_by_heads(model, levels)}))
    # Necks and heads may be any class of the user's.
    except Exception:
        return every


def leave_out(
    model: ConfigDict, levels: Levels, read: Sequence[int]
) -> Levels:
    """Have neck and heads count the levels that are left.

    Args:
        model: A detector or segmentor, changed in place.
        levels: Levels of its backbone.
        read: Indices of the levels that stay.

    Returns:
        The levels that stay.
    """
    if len(read) == len(levels.strides):
        return levels
    if model.get('neck'):
        _renumber_neck(_first_neck(model), len(levels.strides), read)
    else:
        for _, node in _choosing(model):
            index = node.get('in_index', -1)
            if isinstance(index, int):
                node.in_index = _renumbered(index, levels, read)
            else:
                node.in_index = [_renumbered(i, levels, read) for i in index]
    return _part(levels, read)


def _renumbered(index: int, levels: Levels, read: Sequence[int]) -> int:
    return read.index(range(len(levels.strides))[index])


def _part(levels: Levels, read: Sequence[int]) -> Levels:
    return Levels(
        strides=tuple(levels.strides[i] for i in read),
        channels=tuple(levels.channels[i] for i in read),
        has_batch_norm=levels.has_batch_norm,
    )


def _first_neck(model: ConfigDict) -> ConfigDict:
    """The neck that reads the backbone."""
    neck = model.neck
    return neck[0] if isinstance(neck, (list, tuple)) else neck


def _read_by_neck(neck: ConfigDict, levels: Levels) -> tuple[int, ...]:
    every = tuple(range(len(levels.strides)))
    outs, read = _run_neck(neck, levels)
    if not 0 < len(read) < len(every):
        return every
    other = copy.deepcopy(neck)
    _renumber_neck(other, len(every), read)
    part = _part(levels, read)
    same = _run_neck(other, part) == (outs, tuple(range(len(read))))
    return read if same else every


def _run_neck(
    neck: ConfigDict, levels: Levels
) -> tuple[list[torch.Size], tuple[int, ...]]:
    """Shapes of the outputs of a neck, and which inputs they depend on."""
    with forked_rng():
        module = MODELS.build(copy.deepcopy(neck))
    module.eval()
    feats = _features(levels)
    with torch.enable_grad():
        outs = list(module(feats))
    return [x.shape for x in outs], _with_gradient(outs, feats)


def _renumber_neck(neck: ConfigDict, count: int, read: Sequence[int]) -> None:
    """Leave inputs of a neck out.

    Args:
        neck: The neck, changed in place.
        count: Number of its inputs until now.
        read: Indices of those that stay.
    """
    channels = neck.get('in_channels')
    if isinstance(channels, (list, tuple)) and len(channels) == count:
        neck.in_channels = type(channels)(channels[i] for i in read)
    if neck.get('start_level'):
        neck.start_level = sum(i < neck.start_level for i in read)
    if neck.get('end_level', -1) >= 0:
        # FPN and others do not read the level at `end_level`, except where
        # it is the last one.
        neck.end_level = -1


def _choosing(
    model: ConfigDict,
) -> Iterator[tuple[ConfigDict, ConfigDict]]:
    """The heads and the dicts in them that choose levels by an index."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            inside = [node for node in walk(head) if 'in_index' in node]
            for node in inside or [head]:
                yield head, node


def _named_by_heads(model: ConfigDict, count: int) -> set[int]:
    """Indices of the levels that heads of MMSegmentation name.

    Args:
        model: A model without a neck.
        count: Number of levels.
    """
    named = set()
    for head, node in _choosing(model):
        index = option_of(node, 'in_index')
        if index is None:
            return set(range(count))
        indices = [index] if isinstance(index, int) else index
        named |= {range(count)[i] for i in indices}
        if any('c1_in_channels' in x for x in walk(head)):
            named.add(0)
    return named


def _read_by_heads(model: ConfigDict, levels: Levels) -> set[int]:
    """Indices of the levels on which the outputs of heads depend."""
    read: set[int] = set()
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        cascade = name == 'decode_head' and isinstance(heads, (list, tuple))
        before: list[Any] = []
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            with forked_rng():
                module = MODELS.build(copy.deepcopy(head))
            module.eval()
            feats = _features(levels)
            with torch.enable_grad():
                out = module(feats, *before)
            outs = out if isinstance(out, (list, tuple)) else [out]
            read.update(_with_gradient(outs, feats))
            before = [out] if cascade else []
    return read


def _features(levels: Levels) -> list[Tensor]:
    return [
        torch.zeros(
            1, channels, SIZE // stride, SIZE // stride, requires_grad=True
        )
        for channels, stride in zip(
            levels.channels, levels.strides, strict=True
        )
    ]


def _with_gradient(
    outs: Sequence[Tensor], feats: Sequence[Tensor]
) -> tuple[int, ...]:
    """Indices of the features that the outputs depend on."""
    loss = torch.stack([x.sum() for x in outs if x.requires_grad]).sum()
    grads = torch.autograd.grad(loss, feats, allow_unused=True)
    return tuple(i for i, grad in enumerate(grads) if grad is not None)
