"""Converting a checkpoint of the authors to the layout of this project.

The authors' files come in two kinds. In a classifier, from timm's training
script, the names of the backbone have no prefix, and the head is
``head.weight`` and ``head.bias``. In detectors and segmentors, from mmdet 2
and mmseg 0, the names of the backbone begin with ``backbone.``, and necks and
heads have the names that MMDetection 3 and MMSegmentation 1 still use.

In the layout of this project, the file of a backbone has the names of our
module. The file of a whole model has the prefix ``backbone.`` before them, and
the names of its toolbox for the rest; the head of a classifier is ``head.fc``.
MMPretrain's layout is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmefficientmod.apis.class_names import dataset_meta
from mmefficientmod.atomic import atomic_write
from mmefficientmod.checkpoint.loading import load_strictly
from mmefficientmod.checkpoint.reading import (
    SAFETENSORS,
    CheckpointError,
    read_checkpoint,
    select_weights,
    weights_below,
)
from mmefficientmod.models.backbones.efficientmod import (
    ContextBranch,
    EfficientMod,
)
from mmefficientmod.models.backbones.efficientmod_variants import VARIANTS
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

# What a conversion writes: the whole model or its backbone.
PARTS = ('model', 'backbone')
# Parts of names that only the weights of a kind of block have.
BLOCKS = (('.context.f.proj.', 'phone'), ('.context.', 'modulation'))


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        weights: Tensors under their new names.
        names: New name of each tensor of the source; None if the conversion
            leaves it out.
        kind: Kind of model in the source: ``'classifier'``, ``'detector'``,
            ``'segmentor'`` or ``'backbone'``.
        arch: Variant of the backbone; None if its widths are of no variant.
        source: A phrase that says which weights of the source were taken.
        meta: The dict ``meta`` of the new file; see :func:`describe`.
        reparam: Parallel branches in the weights. Default: none.
        merged: Parallel branches that were merged. Default: none.
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
    """Read a checkpoint, rename its tensors, and check that they fit.

    Args:
        path: File of the authors, or a checkpoint of this project.
        part: ``'model'`` for all tensors of the file, ``'backbone'`` for those
            of the backbone. Default: ``'model'``.
        use_ema: Take the averaged weights of a file that has both. Default:
            False.
        model: A detector, segmentor or classifier that the result must fit.
            Default: None; then the backbone, and the head of a classifier,
            must fit one of the variants, and other heads are not checked.
        deploy: Merge the parallel branches of a training with ``reparam``, in
            the weights and in ``model``, so that the result is a checkpoint
            of the plain variant. Default: False.

    Returns:
        The converted tensors, and what was done.

    Raises:
        CheckpointError: If the file cannot be read or does not fit.
    """
    if '://' in path:
        raise CheckpointError(f'{path} is a URL; download the file first')
    checkpoint = read_checkpoint(path)
    weights, source = select_weights(checkpoint, path, use_ema)
    kind, names = new_names(weights, path)
    if part == 'backbone':
        names = {
            old: _below_backbone(new, kind) if new else None
            for old, new in names.items()
        }
    converted = {
        # Copied, because torch.save writes the whole storage of a view.
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
            f'{path} has an EfficientMod with {_dims(converted)} channels, '
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
    """Recognise the kind of model in a checkpoint, and rename its tensors.

    Args:
        weights: Tensors of the source.
        path: Name of the file, for messages.

    Returns:
        The kind, as in :class:`Conversion`, and the new name of each tensor.
        Names of the backbone begin with ``backbone.``, unless the file has
        only a backbone.

    Raises:
        CheckpointError: If the file has no EfficientMod, or two tensors get
            the same name.
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
            f"{path} has no EfficientMod, neither under the authors' names "
            f'(patch_embed.proj.weight) nor under ours ({stem}); its names '
            f'begin with {", ".join(sorted(roots)[:8])}'
        )
    twice = sorted({new for new in given if given.count(new) > 1})
    if twice:
        raise CheckpointError(
            f"{path} has {twice[0]} twice, under the authors' name and under "
            'ours, and only one of them can be taken; remove the other'
        )
    return kind, names


def merge_branches(
    weights: Mapping[str, Tensor], path: str
) -> dict[str, Tensor]:
    """Weights of the plain variant with the same outputs.

    Args:
        weights: Weights under our names, with parallel branches or without.
        path: Name of the file, for messages.

    Returns:
        The weights, in which each 7x7 convolution includes its branches.

    Raises:
        CheckpointError: If some tensors of the branches are missing.
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
            # In float64, as the tensors of a file may differ in dtype.
            context.double().load_state_dict(weights_below(weights, prefix))
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


def _merged_name(name: str) -> str:
    """Name of the tensor that a tensor of a branch is merged into."""
    block, branch, _ = name.partition(BRANCHES)
    return f'{block}.context.conv.weight' if branch else name


def _below_backbone(name: str, kind: str) -> str | None:
    """The name within the backbone; None for a tensor of neck or head."""
    if kind == 'backbone':
        return name
    below = name.removeprefix('backbone.')
    return below if below != name else None


def _dims(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Channels of the stages that the weights have."""
    names = ['stem.proj.weight']
    names += [f'stages.{i}.downsample.proj.weight' for i in range(1, 4)]
    found = [weights.get(n, weights.get(f'backbone.{n}')) for n in names]
    return tuple(w.shape[0] for w in found if w is not None)


def recognise_arch(weights: Mapping[str, Tensor]) -> str | None:
    """The variant with the channels and blocks of weights.

    Args:
        weights: Weights of a backbone or a whole model, under our names.

    Returns:
        Name of the variant; None if no variant has these channels and blocks.
    """
    block = next(
        (b for part, b in BLOCKS if any(part in name for name in weights)),
        'mbconv',
    )
    wanted = _dims(weights), block
    return next(
        (k for k, v in VARIANTS.items() if (v['dims'], v['block']) == wanted),
        None,
    )


def fit_arch(
    weights: Mapping[str, Tensor], arch: str, kind: str, path: str
) -> None:
    """Check that backbone and classifier's head fit a variant.

    Args:
        weights: Converted weights.
        arch: Name of the variant.
        kind: Kind of model that the weights are of, as in
            :class:`Conversion`.
        path: Name of the file, for messages.

    Raises:
        CheckpointError: If they do not fit.
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
    """Check that weights fit a model by loading them into it.

    Args:
        weights: Converted weights.
        model: A detector, segmentor or classifier.
        part: ``'model'`` if the weights are those of the whole model,
            ``'backbone'`` if they are those of its backbone.
        path: Name of the file, for messages.

    Raises:
        CheckpointError: If they do not fit.
    """
    backbone = model.get_submodule('backbone')
    module, prefix = model, 'backbone.'
    optional: tuple[str, ...] = ()
    if part != 'model':
        module, prefix, optional = backbone, '', ('norm.',)
    if isinstance(backbone, EfficientMod):
        try:
            branches = backbone.zero_branches(weights, prefix)
        except CheckpointError as error:
            raise CheckpointError(f'{path} does not fit: {error}') from None
        weights = {**weights, **branches}
    load_strictly(module, weights, path, optional)


def describe(checkpoint: Any, path: str, source: str) -> dict[str, Any]:
    """The source of a converted file, for its ``meta``.

    If the file was converted before, its first source is kept.

    Args:
        checkpoint: Content of the source.
        path: The source.
        source: A phrase that says which weights of the source were taken.

    Returns:
        ``source``, the name of the file, ``source_sha256``,
        ``source_weights``, ``mmefficientmod``, the version that converted it,
        and, if the source has it, ``dataset_meta``.
    """
    old = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    old = old if isinstance(old, Mapping) else {}
    meta: dict[str, Any] = {}
    # Where MMEngine's inferencers read names of classes.
    dataset = dataset_meta(checkpoint)
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
    """Whether a value consists of plain Python objects."""
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


def _to_safetensors(conversion: Conversion) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise CheckpointError(
            'safetensors is not installed; run `pip install safetensors`'
        ) from None
    header = dict(format='pt', meta=json.dumps(conversion.meta))
    return save(conversion.weights, header)


def save_checkpoint(conversion: Conversion, path: str) -> None:
    """Write a conversion to a file, whole or not at all.

    The file contains only tensors and plain values, so that
    ``torch.load(path, weights_only=True)`` reads it. A name that ends in
    ``.safetensors`` is written in that format, with ``meta`` as JSON in its
    header.

    Args:
        conversion: The conversion.
        path: The file; its folder is made if it does not exist.

    Raises:
        CheckpointError: If it cannot be written.
    """
    content = dict(meta=conversion.meta, state_dict=conversion.weights)
    try:
        # Opened here: if torch opens the file itself, it raises other errors
        # for a full disk and a missing folder.
        with atomic_write(path) as draft, open(draft, 'xb') as file:
            if path.endswith(SAFETENSORS):
                file.write(_to_safetensors(conversion))
            else:
                torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'{path} cannot be written: {error}') from None
