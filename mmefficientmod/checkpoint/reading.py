"""What a checkpoint holds, read without running code that it may carry."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.fileio import get_local_path
from torch import Tensor

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


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit the model."""


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


def _some(names: Any, most: int = 4) -> str:
    names = [str(n) for n in names]
    if not names:
        return 'nothing'
    rest = len(names) - most
    return ', '.join(names[:most]) + (f' and {rest} more' if rest > 0 else '')
