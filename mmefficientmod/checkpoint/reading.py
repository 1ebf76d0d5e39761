"""Reading checkpoints without running code that they may contain.

A PyTorch checkpoint is a pickle, which can run any code when it is read. No
other module of the package unpickles a file. Two libraries do, without this
protection: MMEngine for a test, for ``load_from`` and for a resumed run, and a
second time, after this module, for inferencers and for the backbones of the
toolboxes; and timm for the weights of its hub.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import torch
from mmengine.fileio import get_local_path
from torch import Tensor

from mmefficientmod.messages import list_some

# Names under which files keep their weights, plain or averaged (EMA).
PLAIN_KEYS = ('state_dict', 'model')
EMA_KEYS = ('state_dict_ema', 'model_ema')
# Names in the checkpoints of MMEngine's Runner besides those of the weights:
# Counter, in which a scheduler keeps its milestones and which only newer
# versions of PyTorch allow; the others are of the training log.
MMENGINE_STATE = (
    'collections.Counter',
    'mmengine.logging.history_buffer.HistoryBuffer',
    '_codecs.encode',
    *(
        f'numpy.{core}.multiarray.{name}'
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ),
    'numpy.ndarray',
    'numpy.dtype',
)
# How a pickle finds the methods that the training log refers to.
GETATTR = ('builtins.getattr', '__builtin__.getattr')


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit the model."""


def check_exists(path: str) -> None:
    """Raise if a checkpoint is neither a file nor a URL.

    Args:
        path: Its path or URL.

    Raises:
        CheckpointError: If it is neither.
    """
    if '://' in path or Path(path).is_file():
        return
    fault = 'is a folder' if Path(path).is_dir() else 'does not exist'
    raise CheckpointError(f'checkpoint {path} {fault}')


def read_checkpoint(path: str, map_location: str = 'cpu') -> Any:
    """Read a checkpoint without running code that it may contain.

    Allowed are tensors, plain containers, and ``argparse.Namespace``, which
    has the options of timm's training script in the authors' files. Objects
    of MMEngine's training log and schedulers are replaced by empty ones.

    Args:
        path: A file or URL; a name that ends in ``.safetensors`` is read as
            such.
        map_location: Device of the tensors. Default: ``'cpu'``.

    Returns:
        The content of the file, as a rule a dict.

    Raises:
        CheckpointError: If the file does not exist, contains other objects or
            is no checkpoint.
    """
    check_exists(path)
    try:
        with get_local_path(path) as local:
            if path.endswith('.safetensors'):
                return _load_safetensors(local, map_location)
            return _load_pickle(local, map_location)
    except pickle.UnpicklingError as error:
        found = re.search(r'(?:GLOBAL|class) ([\w.]+)', str(error))
        name = f' ({found[1]})' if found else ''
        file, download = path, ''
        if '://' in path:
            file = PurePosixPath(urlsplit(path).path).name
            download = 'download it and '
        raise CheckpointError(
            f'checkpoint {path} is not read: it contains more than weights'
            f'{name} or is no checkpoint, and reading it could run code. If '
            f'you trust the file, {download}write its weights to a new one: '
            'python -c "import '
            f"torch; c = torch.load('{file}', 'cpu', weights_only=False); "
            "torch.save(c.get('state_dict', c.get('model', c)), "
            "'weights.pth')\""
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f'{path} cannot be read as a checkpoint: {error}'
        ) from None


def _load_safetensors(path: str, map_location: str) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(
            'safetensors is not installed; run `pip install safetensors`'
        ) from None
    try:
        return load_file(path, map_location)
    except SafetensorError as error:
        raise ValueError(error) from None


def _load_pickle(path: str, map_location: str) -> Any:
    serialization = torch.serialization
    allow = getattr(serialization, 'safe_globals', nullcontext)
    try:
        with allow([argparse.Namespace]):
            return torch.load(
                path, map_location=map_location, weights_only=True
            )
    except pickle.UnpicklingError:
        return _load_allowed(path, map_location)


def _load_allowed(path: str, map_location: str) -> Any:
    """Read a file by :class:`_AllowListUnpickler`.

    PyTorch's own reader does not suffice: before PyTorch 2.5 its list of
    allowed names cannot be extended, and in no version can it replace an
    object by an empty one.
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
    """Placeholder for an object that is not unpickled."""

    def __new__(cls, *args: object) -> _Blank:
        return object.__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _blank_method(owner: object, name: str) -> _Blank:
    """Placeholder for a method of a class that is a placeholder.

    All else is refused: with ``getattr``, a file finds any function, and
    MMEngine reads some files after this module.
    """
    if owner is not _Blank or name.startswith('_'):
        raise pickle.UnpicklingError('Unsupported class builtins.getattr')
    return _Blank()


class _AllowListUnpickler(pickle.Unpickler):
    """Unpickles objects of an allow list, and refuses all others.

    Allowed are the names of PyTorch's weights-only reader and
    ``argparse.Namespace``. The other names of :data:`MMENGINE_STATE`, and
    methods of these classes, give placeholders.
    """

    def find_class(self, module: str, name: str) -> Any:
        from torch._weights_only_unpickler import _get_allowed_globals

        allowed = {
            **dict.fromkeys(MMENGINE_STATE, _Blank),
            **dict.fromkeys(GETATTR, _blank_method),
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
        checkpoint: Content of the file: weights, or a dict with weights under
            one of the usual names.
        path: Name of the file, for messages.
        use_ema: Take the averaged weights. Default: False, which takes the
            plain weights, and the averaged ones only if there are no others.

    Returns:
        The weights, and a phrase that says which they are.

    Raises:
        CheckpointError: If the file has no weights of that kind.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    plain = [k for k in PLAIN_KEYS if isinstance(content.get(k), Mapping)]
    ema = [k for k in EMA_KEYS if isinstance(content.get(k), Mapping)]
    if use_ema and not ema:
        raise CheckpointError(
            f'{path} has no EMA weights ({" or ".join(EMA_KEYS)}), but '
            f'{list_some(content)}. Leave use_ema out for the plain weights'
        )
    if use_ema or (ema and not plain):
        name, source = ema[0], f"'{ema[0]}', EMA weights"
    elif plain:
        name, source = plain[0], f"'{plain[0]}', plain weights"
    else:
        name, source = None, 'the keys of the file itself'
    weights = content[name] if name else content
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(
            f'{path} has no weights: neither tensors nor one of '
            f'{", ".join(PLAIN_KEYS + EMA_KEYS)}, but {list_some(content)}'
        )
    if plain and ema:
        other = ema[0] if name in plain else plain[0]
        source += f", the others are under '{other}'"
    return tensors, source


def strip_prefix(
    weights: Mapping[str, Tensor], path: str, prefix: str | None = None
) -> dict[str, Tensor]:
    """The weights whose keys begin with a prefix, without that prefix.

    Args:
        weights: The weights.
        path: Name of the file, for messages.
        prefix: Beginning of the keys to take. Default: ``module.``, which
            data-parallel wrappers add, is removed, and only ``backbone.`` of
            a whole detector, segmentor or classifier is taken.

    Returns:
        The weights under their shorter names.

    Raises:
        CheckpointError: If no key begins with the given prefix.
    """
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        part = weights_below(weights, prefix)
        if not part:
            raise CheckpointError(
                f'no key of {path} begins with {prefix!r}; its keys are '
                f'{list_some(weights)}'
            )
        return part
    for wrapper in ('module.', 'backbone.', 'module.'):
        weights = weights_below(weights, wrapper) or weights
    return dict(weights)


def weights_below(
    weights: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """The weights whose keys begin with a prefix, perhaps none."""
    return {
        key[len(prefix) :]: value
        for key, value in weights.items()
        if key.startswith(prefix)
    }
