"""Whole checkpoints of others in this project's layout.

The authors' files come in two kinds. A classifier, from timm's training
script, has the backbone's names bare and ``head.weight``. Detectors and
segmentors, from mmdet 2 and mmseg 0, have ``backbone.`` before them, and necks
and heads under the names that MMDetection 3 and MMSegmentation 1 still use.

In the layout written here a backbone alone has the names of our module, and a
whole model has them after ``backbone.``, the rest as its toolbox names it; a
classifier's head is ``head.fc``. That is MMPretrain's layout, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmefficientmod.atomic import atomic_write
from mmefficientmod.checkpoint.loading import load_strictly
from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    read_checkpoint,
    select_weights,
)
from mmefficientmod.models.backbones.efficientmod import (
    ARCHS,
    MBCONV_ARCHS,
    ContextBranch,
    EfficientMod,
)
from mmefficientmod.models.backbones.efficientmod_weights import (
    BRANCHES,
    rename_official_keys,
    reparam_of,
)
from mmefficientmod.models.layers.reparam import (
    ParallelBranches,
    parse_reparam,
)
from mmefficientmod.version import __version__

PARTS = ('model', 'backbone')
VARIANTS = ARCHS | MBCONV_ARCHS


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        weights: Tensors under their new names.
        names: New name of each tensor of the source, None where left out.
        kind: ``'classifier'``, ``'detector'``, ``'segmentor'`` or
            ``'backbone'``: what the source is.
        arch: Variant of the backbone, None for one that has no name.
        source: A phrase that says which weights of the source these are.
        meta: What the new file says of itself.
        reparam: Parallel branches that the weights have.
        merged: Parallel branches that were merged.
    """

    weights: dict[str, Tensor]
    names: dict[str, str | None]
    kind: str
    arch: str | None
    source: str
    meta: dict[str, Any]
    reparam: tuple[int | str, ...] = ()
    merged: tuple[int | str, ...] = ()


def convert_checkpoint(
    path: str,
    part: str = 'model',
    use_ema: bool = False,
    model: nn.Module | None = None,
    deploy: bool = False,
) -> Conversion:
    """Read a checkpoint and rename what it holds, all of it or nothing.

    Args:
        path: File of the authors, or one of this project.
        part: ``'model'`` for all of the file, ``'backbone'`` for that alone.
        use_ema: Take the averaged weights of a file that holds both.
        model: A detector, segmentor or classifier that the result must fit.
            Without it the backbone must be one of the variants and fit, and
            a classifier's head, too; other heads stay unchecked.
        deploy: Merge the parallel branches of a re-parameterised training, so
            that the result is a checkpoint of the plain variant. Those of the
            model are merged, too.

    Raises:
        CheckpointError: If the file cannot be read or does not fit.
    """
    if not Path(path).is_file():
        raise CheckpointError(f'checkpoint {path} does not exist')
    checkpoint = read_checkpoint(path)
    weights, source = select_weights(checkpoint, path, use_ema)
    kind, names = new_names(weights, path)
    if part == 'backbone':
        names = {
            old: _below_backbone(new, kind) if new else None
            for old, new in names.items()
        }
    converted = {
        # A copy of its own: of a view, the whole storage would be saved.
        new: weights[old].detach().clone(memory_format=torch.contiguous_format)
        for old, new in names.items()
        if new
    }
    merged: tuple[int | str, ...] = ()
    if deploy:
        merged = reparam_of(converted)
        converted = merge_branches(converted, path)
        names = {old: new and _merged_name(new) for old, new in names.items()}
        if model is not None and isinstance(model.backbone, EfficientMod):
            model.backbone.merge_branches()
    arch = recognise_arch(converted)
    if model is not None:
        fit_model(converted, model, part, path)
    elif arch is None:
        raise CheckpointError(
            f'{path} holds an EfficientMod with {_dims(converted)} channels, '
            f'which is none of {", ".join(VARIANTS)}; name its config with '
            '--config'
        )
    else:
        fit_arch(converted, arch, kind if part == 'model' else part, path)
    meta = describe(checkpoint, path, source)
    meta |= dict(kind=kind if part == 'model' else part, arch=arch)
    reparam = reparam_of(converted)
    return Conversion(
        converted, names, kind, arch, source, meta, reparam, merged
    )


def new_names(
    weights: Mapping[str, Tensor], path: str
) -> tuple[str, dict[str, str | None]]:
    """Recognise what a checkpoint holds and name it anew.

    Args:
        weights: Tensors of the source.
        path: Name of the file, for messages.

    Returns:
        The kind, as in :class:`Conversion`, and the new name of each tensor,
        all with ``backbone.`` unless there is only a backbone.

    Raises:
        CheckpointError: If there is no EfficientMod or a name comes twice.
    """
    bare = {key: key.removeprefix('module.') for key in weights}
    roots = {key.partition('.')[0] for key in bare.values()}
    whole = 'backbone' in roots
    others = roots - {'backbone', 'neck'} if whole else roots & {'head'}
    if 'decode_head' in others:
        kind = 'segmentor'
    elif 'head' in others:
        kind = 'classifier'
    elif others:
        kind = 'detector'
    else:
        kind = 'backbone'
    names: dict[str, str | None] = {}
    for old, key in bare.items():
        if whole and not key.startswith('backbone.'):
            names[old] = None if kind == 'backbone' else key
            continue
        if key in ('head.weight', 'head.bias'):
            names[old] = key.replace('head.', 'head.fc.')
            continue
        if not whole and key.startswith('head.'):
            names[old] = key
            continue
        key = key.removeprefix('backbone.').removeprefix('module.')
        (key,) = rename_official_keys({key: weights[old]})
        names[old] = key if kind == 'backbone' else f'backbone.{key}'
    stem = 'stem.proj.weight'
    given = [new for new in names.values() if new]
    if not {stem, f'backbone.{stem}'} & set(given):
        raise CheckpointError(
            f"{path} holds no EfficientMod, neither under the authors' names "
            f'(patch_embed.proj.weight) nor under ours ({stem}); its names '
            f'begin with {", ".join(sorted(roots)[:8])}'
        )
    twice = sorted({new for new in given if given.count(new) > 1})
    if twice:
        raise CheckpointError(
            f"{path} holds {twice[0]} twice, under the authors' name and "
            'under ours; which one counts?'
        )
    return kind, names


def merge_branches(
    weights: Mapping[str, Tensor], path: str
) -> dict[str, Tensor]:
    """The plain variant that does as one with parallel branches.

    Args:
        weights: Under our names; without branches, they stay as they are.
        path: Name of the file, for messages.

    Raises:
        CheckpointError: If there is but a part of the branches.
    """
    kinds = reparam_of(weights)
    merged = {k: v for k, v in weights.items() if BRANCHES not in k}
    last = '.context.conv.weight'
    for key in [k for k in merged if kinds and k.endswith(last)]:
        prefix = key.removesuffix('conv.weight')
        dim = len(weights[key])
        try:
            context = ContextBranch(dim)
            context.branches = ParallelBranches(dim, parse_reparam(kinds))
            # Its parts may differ in dtype.
            context.double().load_state_dict(_below(weights, prefix))
        except (RuntimeError, ValueError) as error:
            faults = [line.strip() for line in str(error).splitlines()]
            raise CheckpointError(
                f'{path} has parallel branches, reparam={kinds}, which cannot '
                f'be merged in {prefix.rstrip(".")}: {" ".join(faults)}'
            ) from None
        context.merge_branches()
        for name in ('conv.weight', 'conv.bias'):
            value = context.state_dict()[name]
            merged[prefix + name] = value.to(weights[prefix + name].dtype)
    return merged


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if key.startswith(prefix)
    }


def _merged_name(name: str) -> str:
    """Where a tensor goes when branches are merged."""
    block, branch, _ = name.partition(BRANCHES)
    return f'{block}.context.conv.weight' if branch else name


def _below_backbone(name: str, kind: str) -> str | None:
    if kind == 'backbone':
        return name
    below = name.removeprefix('backbone.')
    return below if below != name else None


def _dims(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Channels of the stages that are there."""
    names = ['stem.proj.weight']
    names += [f'stages.{i}.downsample.proj.weight' for i in range(1, 4)]
    found = [weights.get(n, weights.get(f'backbone.{n}')) for n in names]
    return tuple(w.shape[0] for w in found if w is not None)


def recognise_arch(weights: Mapping[str, Tensor]) -> str | None:
    """The variant with the channels and blocks of some weights, or None."""
    modulation = any('.context.' in name for name in weights)
    wanted = _dims(weights), 'modulation' if modulation else 'mbconv'
    return next(
        (k for k, v in VARIANTS.items() if (v['dims'], v['block']) == wanted),
        None,
    )


def fit_arch(
    weights: Mapping[str, Tensor], arch: str, kind: str, path: str
) -> None:
    """Load a backbone, and a classifier's head, which must fit.

    Raises:
        CheckpointError: If they do not.
    """
    backbone = EfficientMod(
        arch,
        final_norm=kind in ('classifier', 'backbone'),
        reparam=reparam_of(weights),
    )
    body = {
        key.removeprefix('backbone.'): value
        for key, value in weights.items()
        if kind == 'backbone' or key.startswith('backbone.')
    }
    # A backbone may come from a classifier or from a dense model.
    optional = ('norm.',) if kind == 'backbone' else ()
    load_strictly(backbone, body, path, optional)
    if kind == 'classifier':
        head = {k: v for k, v in weights.items() if k.startswith('head.')}
        shapes = {k: tuple(v.shape) for k, v in head.items()}
        classes = next((s[0] for s in shapes.values() if s), 0)
        dim = VARIANTS[arch]['dims'][-1]
        wanted = {'head.fc.weight': (classes, dim), 'head.fc.bias': (classes,)}
        if shapes != wanted:
            raise CheckpointError(
                f'{path} has the backbone of a classifier, but its head is '
                f'{shapes} and should be {wanted}'
            )


def fit_model(
    weights: Mapping[str, Tensor], model: nn.Module, part: str, path: str
) -> None:
    """Load a whole model or its backbone, which must fit.

    Raises:
        CheckpointError: If it does not.
    """
    module, prefix, optional = model, 'backbone.', ()
    if part != 'model':
        module, prefix, optional = model.backbone, '', ('norm.',)
    if isinstance(model.backbone, EfficientMod):
        try:
            silent = model.backbone.silent_branches(weights, prefix)
        except CheckpointError as error:
            raise CheckpointError(f'{path} does not fit: {error}') from None
        weights = {**weights, **silent}
    load_strictly(module, weights, path, optional)


def describe(checkpoint: Any, path: str, source: str) -> dict[str, Any]:
    """What a converted file says of where it comes from.

    A file that was converted before keeps its first source.
    """
    old = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    old = old if isinstance(old, Mapping) else {}
    meta: dict[str, Any] = {}
    # mmcv 1 wrote the classes beside the rest; MMEngine's inferencers look
    # for them in `dataset_meta`.
    dataset = old.get('dataset_meta') or {
        name: old[name.upper()]
        for name in ('classes', 'palette')
        if old.get(name.upper())
    }
    if dataset and _is_plain(dataset):
        meta['dataset_meta'] = dataset
    first = ('source', 'source_sha256', 'source_weights', 'mmefficientmod')
    if all(key in old for key in first):
        return meta | {key: old[key] for key in first}
    return meta | dict(
        source=Path(path).name,
        source_sha256=sha256(path),
        source_weights=source,
        mmefficientmod=__version__,
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(
            _is_plain(k) and _is_plain(v) for k, v in value.items()
        )
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def sha256(path: str) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_checkpoint(conversion: Conversion, path: str) -> None:
    """Write a conversion to a file, complete or not at all.

    The file holds tensors and plain values alone, so that
    ``torch.load(path, weights_only=True)`` reads it.

    Raises:
        CheckpointError: If it cannot be written.
    """
    content = dict(meta=conversion.meta, state_dict=conversion.weights)
    try:
        # Opened here: where torch opens the file, it raises different errors
        # for a full disk and a missing folder.
        with atomic_write(path) as draft, open(draft, 'xb') as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'{path} cannot be written: {error}') from None
