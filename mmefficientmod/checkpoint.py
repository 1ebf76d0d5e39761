"""Weights of others into our backbones: read safely, load completely.

MMEngine loads ``init_cfg=dict(type='Pretrained', ...)`` non-strictly, so a
file that shares no name with the model would train from random weights with
no more than a warning. Here a file fits or is refused.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from torch import Tensor, nn

from mmefficientmod.config.nodes import kind_of

PLAIN_KEYS = ('state_dict', 'model')
EMA_KEYS = ('state_dict_ema', 'model_ema')
# What MMEngine's Runner saves of its log, next to the weights.
MMENGINE_LOG = (
    'mmengine.logging.history_buffer.HistoryBuffer',
    'builtins.getattr',
    '__builtin__.getattr',
    '_codecs.encode',
    *(
        f'numpy.{core}.multiarray.{name}'
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ),
    'numpy.ndarray',
    'numpy.dtype',
)
INIT_CFG_KEYS = ('type', 'checkpoint', 'prefix', 'use_ema', 'map_location')


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit the model."""


def pretrained_part(init_cfg: Any) -> Mapping[str, Any] | None:
    """The dict in MMEngine's ``init_cfg`` that asks for a checkpoint."""
    parts = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []
    kinds = ('Pretrained', PretrainedInit.__name__)
    return next((p for p in parts if kind_of(p) in kinds), None)


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


def read_checkpoint(path: str, map_location: str = 'cpu') -> Any:
    """Read a checkpoint without running code that it may carry.

    Tensors and plain containers are read, and ``argparse.Namespace``, in
    which timm's training script, and so the authors', keeps its options. Of
    MMEngine's own checkpoints the training log is left out.

    Args:
        path: A file or URL.
        map_location: Device of the tensors.

    Raises:
        CheckpointError: If there is none, it holds other objects or is no
            checkpoint.
    """
    try:
        with get_local_path(path) as local:
            if path.endswith('.safetensors'):
                return _load_safetensors(local, map_location)
            return _load_safely(local, map_location)
    except FileNotFoundError:
        raise CheckpointError(f'checkpoint {path} does not exist') from None
    except pickle.UnpicklingError as error:
        found = re.search(r'(?:GLOBAL|class) ([\w.]+)', str(error))
        reason = f' ({found[1]})' if found else ''
        raise CheckpointError(
            f'checkpoint {path} is not read, since it holds more than '
            f'weights{reason} or is none, and reading it could run code. If '
            'you trust the file, keep its weights alone: python -c "import '
            f"torch; c = torch.load('{path}', 'cpu', weights_only=False); "
            "torch.save(c.get('state_dict', c.get('model', c)), "
            "'weights.pth')\""
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f'{path} cannot be read as a PyTorch checkpoint: {error}'
        ) from None


def _load_safetensors(path: str, map_location: str) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError('pip install safetensors') from None
    try:
        return load_file(path, map_location)
    except SafetensorError as error:
        raise ValueError(error) from None


def _load_safely(path: str, map_location: str) -> Any:
    serialization = torch.serialization
    allow = getattr(serialization, 'safe_globals', nullcontext)
    try:
        with allow([argparse.Namespace]):
            return torch.load(
                path, map_location=map_location, weights_only=True
            )
    except pickle.UnpicklingError:
        return _load_listed(path, map_location)


def _load_listed(path: str, map_location: str) -> Any:
    """Read what torch's own list allows, and the little added to it.

    Before torch 2.5 that list cannot be extended, and in no version can it
    leave things out.
    """
    return torch.load(
        path,
        map_location=map_location,
        weights_only=False,
        pickle_module=SimpleNamespace(
            __name__='pickle',
            Unpickler=_AllowListUnpickler,
            load=lambda file, **kw: _AllowListUnpickler(file, **kw).load(),
        ),
    )


class _Blank:
    """Stands for an object that is not made."""

    def __new__(cls, *args: object) -> _Blank:
        return object.__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _AllowListUnpickler(pickle.Unpickler):
    """Finds what torch's own weights-only reader finds, and Namespace.

    What MMEngine puts beside the weights becomes a blank that does nothing.
    """

    def find_class(self, module: str, name: str) -> Any:
        from torch._weights_only_unpickler import _get_allowed_globals

        allowed = {
            **dict.fromkeys(MMENGINE_LOG, _Blank),
            'argparse.Namespace': argparse.Namespace,
            **_get_allowed_globals(),
        }
        if f'{module}.{name}' not in allowed:
            raise pickle.UnpicklingError(f'Unsupported class {module}.{name}')
        return allowed[f'{module}.{name}']


def select_weights(
    checkpoint: Any, path: str, use_ema: bool = False
) -> tuple[Mapping[str, Tensor], str]:
    """The plain or the averaged (EMA) weights of a checkpoint.

    Args:
        checkpoint: What the file holds: weights, or a dict with weights
            under one of the usual names.
        path: Name of the file, for messages.
        use_ema: Take the averaged ones. By default the plain ones are
            taken, and the averaged ones only where there are no others.

    Returns:
        The weights, and a phrase that says which they are.

    Raises:
        CheckpointError: If there are none of that kind.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    plain = [k for k in PLAIN_KEYS if isinstance(content.get(k), Mapping)]
    ema = [k for k in EMA_KEYS if isinstance(content.get(k), Mapping)]
    if use_ema and not ema:
        raise CheckpointError(
            f'{path} holds no EMA weights (looked for {", ".join(EMA_KEYS)}); '
            f'it holds {_some(content)}. Leave use_ema out for the plain ones'
        )
    if use_ema or (ema and not plain):
        name, kind = ema[0], 'EMA weights'
    elif plain:
        name, kind = plain[0], 'plain weights'
    else:
        name, kind = None, 'the file itself holds the weights'
    weights = content[name] if name else content
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(
            f'{path} holds no weights: neither tensors nor one of '
            f'{", ".join(PLAIN_KEYS + EMA_KEYS)}, but {_some(content)}'
        )
    source = f"'{name}', {kind}" if name else kind
    if plain and ema:
        other = ema[0] if name in plain else plain[0]
        source += f", the others are under '{other}'"
    return tensors, source


def strip_prefix(
    weights: Mapping[str, Tensor], path: str, prefix: str | None = None
) -> dict[str, Tensor]:
    """Take a model's part of the weights.

    Args:
        weights: The weights.
        path: Name of the file, for messages.
        prefix: Beginning of the keys to take. By default ``module.``, which
            data-parallel wrappers add, is dropped, and of a whole detector,
            segmentor or classifier ``backbone.`` is taken.

    Raises:
        CheckpointError: If no key begins with the prefix asked for.
    """
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        part = _below(weights, prefix)
        if not part:
            raise CheckpointError(
                f'no key of {path} begins with {prefix!r}; its keys are '
                f'{_some(weights)}'
            )
        return part
    for wrapper in ('module.', 'backbone.', 'module.'):
        weights = _below(weights, wrapper) or weights
    return dict(weights)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key[len(prefix) :]: value
        for key, value in weights.items()
        if key.startswith(prefix)
    }


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


def _some(names: Any, most: int = 4) -> str:
    names = [str(n) for n in names]
    if not names:
        return 'nothing'
    rest = len(names) - most
    return ', '.join(names[:most]) + (f' and {rest} more' if rest > 0 else '')
