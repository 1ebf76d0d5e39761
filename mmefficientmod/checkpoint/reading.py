"""Reading checkpoints without running code that they may contain.

A PyTorch checkpoint is a pickle, which can run any code when it is read. All
files that the tools read pass through :func:`read_checkpoint`, those that
MMEngine and timm read included, see :mod:`mmefficientmod.checkpoint.entry`.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import torch
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from torch import Tensor

from mmefficientmod.checkpoint.checks import (
    EMA_KEYS,
    PLAIN_KEYS,
    CheckpointError,
    check_extent,
    check_weights,
)
from mmefficientmod.checkpoint.container import fault_of, read_container
from mmefficientmod.checkpoint.names import ForbiddenError
from mmefficientmod.messages import list_some, shorten

SAFETENSORS = '.safetensors'
# PyTorch's reader, which runs code: the tools exchange `torch.load` while
# other libraries read files.
_load_by_torch = torch.load
_trusted: set[str] = set()  # by `trust_files`


def trust_files(paths: Iterable[str]) -> None:
    """Name the files of this process that may run code when they are read.

    Each call replaces the files of the call before.

    Args:
        paths: Paths or URLs.

    Raises:
        CheckpointError: If one is neither a file nor a URL.
    """
    _trusted.clear()
    for path in paths:
        check_exists(path)
        _trusted.add(_identity(path))


def _identity(path: str) -> str:
    return path if '://' in path else os.path.realpath(path)


def check_exists(path: str) -> None:
    """Raise if a checkpoint is neither a file with content nor a URL.

    Args:
        path: Its path or URL.

    Raises:
        CheckpointError: If it is neither.
    """
    fault = None if '://' in path else fault_of(Path(path))
    if fault:
        raise CheckpointError(f'checkpoint {path} {fault}')


def read_checkpoint(
    path: str | os.PathLike,
    map_location: str | torch.device = 'cpu',
    trust: bool = False,
) -> Any:
    """Read a checkpoint without running code that it may contain.

    Allowed are dense tensors, plain containers, NumPy's numbers and
    ``argparse.Namespace``, which has the options of timm's training script in
    the authors' files. MMEngine's training log is read as data. The checksums
    of a zip file are compared, sizes that a file claims are compared with
    those that it has, and weights are checked by :func:`check_weights`.

    Args:
        path: A file or URL; a name that ends in ``.safetensors`` is read as
            such.
        map_location: Device of the tensors. Default: ``'cpu'``.
        trust: Whether to read the file by PyTorch alone, which runs code in
            it and checks nothing. Default: only if :func:`trust_files` named
            it.

    Returns:
        The content of the file, as a rule a dict.

    Raises:
        CheckpointError: If the file does not exist, contains other objects,
            is damaged or is no checkpoint.
    """
    path = os.fspath(path)
    check_exists(path)
    name = urlsplit(path).path if '://' in path else path
    is_safetensors = name.endswith(SAFETENSORS)
    with _local_file(path) as local:
        if not is_safetensors and (trust or _identity(path) in _trusted):
            content = _read_trusted(local, path)
        elif is_safetensors:
            content = _checked(_read_safetensors, local, path)
        else:
            with open(local, 'rb') as file:
                content = read_stream(file, path)
    if torch.device(map_location) == torch.device('cpu'):
        return content
    return _move(content, torch.device(map_location))


def read_stream(file: BinaryIO, path: str) -> Any:
    """Read an opened file of PyTorch as :func:`read_checkpoint` does.

    Args:
        file: The file, opened to read bytes; it is read from its beginning.
        path: Its name, for messages.

    Raises:
        CheckpointError: As :func:`read_checkpoint` does.
    """
    return _checked(read_container, file, path)


def _checked(read: Any, source: Any, path: str) -> Any:
    """Read a file, and make a sentence of whatever it causes.

    A damaged or hostile pickle is a program with errors, so that exceptions
    of any type are its fault.
    """
    try:
        content = read(source)
        check_extent(content)
    except ForbiddenError as error:
        file, download = path, ''
        if '://' in path:
            file = PurePosixPath(urlsplit(path).path).name
            download = 'download it and '
        raise CheckpointError(
            f'checkpoint {path} is not read: it contains more than weights '
            f'({shorten(str(error))}), and reading it could run code. If you '
            f'trust the file, {download}name it by --trust {file}, or read it '
            'by read_checkpoint(path, trust=True)'
        ) from None
    except Exception as error:
        kind = type(error).__name__
        reason = shorten(str(error)) if str(error) else kind
        known = ValueError, OSError, EOFError, zipfile.BadZipFile
        if not isinstance(error, known):
            reason = f'{kind}: {reason}'
        raise CheckpointError(
            f'{path} cannot be read as a checkpoint: {reason.rstrip(".")}. '
            'Get the file again if it should be one'
        ) from None
    check_weights(content, path)
    return content


def _local_file(path: str) -> AbstractContextManager[str]:
    if '://' not in path:
        return nullcontext(path)
    return _Download(path)


class _Download(AbstractContextManager):
    """A temporary file with the content of a URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.file = get_local_path(url)

    def __enter__(self) -> str:
        try:
            return str(self.file.__enter__())
        # The type depends on the kind of URL and on what is installed.
        except Exception as error:
            raise CheckpointError(
                f'{self.url} cannot be fetched: {shorten(str(error))}. Give '
                'the path of a file instead'
            ) from error

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)


def _read_trusted(local: str, path: str) -> Any:
    print_log(
        f'{path} is trusted: code in it runs, and it is not checked', 'current'
    )
    try:
        return _load_by_torch(local, map_location='cpu', weights_only=False)
    except Exception as error:
        raise CheckpointError(
            f'{path} cannot be read as a checkpoint: {shorten(str(error))}'
        ) from error


def _read_safetensors(path: str) -> Any:
    """Weights; beside their ``meta`` if ``save_checkpoint`` wrote the file."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise ValueError(
            'safetensors is not installed; run `pip install safetensors`'
        ) from None
    with safe_open(path, framework='pt') as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = (file.metadata() or {}).get('meta')
    if meta is None:
        return weights
    return dict(meta=json.loads(meta), state_dict=weights)


def _move(content: Any, device: torch.device) -> Any:
    """Content of a file with its tensors on a device."""
    if isinstance(content, Tensor):
        return content.detach().to(device)
    if type(content) in (list, tuple):
        return type(content)(_move(value, device) for value in content)
    if isinstance(content, dict):
        for key, value in content.items():
            content[key] = _move(value, device)
    return content


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
