"""Where other libraries read checkpoints: they use the reader of this package.

MMEngine reads the file of ``load_from``, of a resumed run, of a test and of a
prediction, and the weights of the toolboxes' backbones; timm reads those of
its hub. By themselves, MMEngine runs code in a file, and timm relies on the
check of the installed PyTorch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader, checkpoint

from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    read_checkpoint,
    read_stream,
    select_weights,
)
from mmefficientmod.messages import shorten

# MMEngine's loaders, and the beginnings of the names that they take.
LOADERS = {
    checkpoint.load_from_local: '',
    checkpoint.load_from_http: ('http://', 'https://'),
    checkpoint.load_from_pavi: 'pavi://',
    checkpoint.load_from_ceph: (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'),
    checkpoint.load_from_torchvision: ('modelzoo://', 'torchvision://'),
    checkpoint.load_from_openmmlab: ('open-mmlab://', 'openmmlab://'),
    checkpoint.load_from_mmcls: 'mmcls://',
}


def protect() -> None:
    """Have MMEngine read all checkpoints of this process safely.

    It may be called again.
    """
    for loader, prefixes in LOADERS.items():
        CheckpointLoader.register_scheme(prefixes, _safely(loader), force=True)


def _safely(loader: Callable[..., Any]) -> Callable[..., Any]:
    # With the name of the loader, which MMEngine logs.
    @functools.wraps(loader)
    def load(filename: str, map_location: Any = None) -> Any:
        """Read a checkpoint to the CPU; MMEngine moves what it loads."""
        if loader is checkpoint.load_from_local:
            filename = os.path.expanduser(filename)
            return for_run(read_checkpoint(filename), filename)
        try:
            with read_by_us():
                content = loader(filename, map_location='cpu')
        except CheckpointError:
            raise
        # The type depends on the kind of name and on what is installed.
        except Exception as error:
            raise CheckpointError(
                f'{filename} cannot be fetched: '
                f'{shorten(str(error) or type(error).__name__)}. Give the '
                'path of a file instead'
            ) from error
        return for_run(content, filename)

    return load


@contextmanager
def read_by_us() -> Iterator[None]:
    """Within a block, ``torch.load`` is the reader of this package."""
    before = torch.load

    def load(f: Any, map_location: Any = None, *_: Any, **__: Any) -> Any:
        if isinstance(f, (str, os.PathLike)):
            return read_checkpoint(f)
        return read_stream(f, getattr(f, 'name', 'the file'))

    torch.load = load
    try:
        yield
    finally:
        torch.load = before


def for_run(content: Any, path: str) -> Any:
    """Content of a file as MMEngine may use it.

    MMEngine runs the text under ``meta['config']``, which no version writes
    any more, when it resumes a run. It removes the file or folder that
    ``best_ckpt`` names when a better one comes. So the text is left out, and
    so are names of files that are not beside the checkpoint.

    Args:
        content: The content.
        path: Name of the file.

    Returns:
        The content, changed in place.

    Raises:
        CheckpointError: If it has no weights, or its parts have wrong types.
    """
    select_weights(content, path)  # raises if there are none
    for key in 'state_dict', 'ema_state_dict':
        weights = content.get(key, content)
        if not isinstance(weights, Mapping) or any(
            not isinstance(name, str) for name in weights
        ):
            raise CheckpointError(
                f'{path} cannot be used: its {key} is no dict of tensors with '
                'names'
            )
    if isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    hub = content.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    if isinstance(info, dict):
        for key in [k for k in info if str(k).startswith('best_ckpt')]:
            if not _is_best_of_run(info[key], path):
                del info[key]
        kept = info.get('keep_ckpt_ids')
        if not isinstance(kept, list) or any(type(i) is not int for i in kept):
            info.pop('keep_ckpt_ids', None)
    return content


def _is_best_of_run(name: Any, path: str) -> bool:
    """Whether a name is one of MMEngine's best checkpoint beside a file."""
    if type(name) is not str or '\0' in name:
        return False
    best = Path(name)
    return (
        best.name.startswith('best_')
        and best.suffix == '.pth'
        and best.parent.resolve() == Path(path).parent.resolve()
    )
