"""What the models that run an exported file have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from mmefficientmod.deploy.files import ExportedFile, open_file

# Settings of data preprocessors that a file with raw images does itself.
NORMALISING = ('mean', 'std', 'to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')
PADDING = ('pad_size_divisor', 'size_divisor', 'size', 'test_cfg')


# Files that somebody holds.
_HELD: WeakValueDictionary[tuple, ExportedFile] = WeakValueDictionary()


def shared_file(path: str, threads: int | None = None) -> ExportedFile:
    """An exported file, opened once as long as somebody holds it.

    A config names the file after its description was read, and opening it
    takes seconds.

    Args:
        path: The file.
        threads: CPU threads. Default: the library's choice.

    Raises:
        ConfigError: If the file cannot be opened.
    """
    if not Path(path).is_file():
        return open_file(path, threads)  # says so
    state = Path(path).stat()
    key = Path(path).resolve(), state.st_mtime_ns, state.st_size, threads
    file = _HELD.get(key)
    if file is None:
        file = _HELD[key] = open_file(path, threads)
    return file


class FileModel:
    """Runs an exported file in batches.

    Args:
        path: The file.
        threads: CPU threads. Default: the library's choice.
    """

    def __init__(self, path: str, threads: int | None = None) -> None:
        self.file = shared_file(path, threads)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run the file on images of one size.

        Args:
            images: ``(N, 3, H, W)``, normalised; or RGB from 0 to 255, if the
                file takes raw images.

        Returns:
            The outputs by name, of all images; those of a detector of one
            image.

        Raises:
            ConfigError: If the file does not take images of this size.
        """
        array = images.cpu().numpy()
        if self.file.raw:
            array = array.transpose(0, 2, 3, 1).astype(np.uint8)
        array = np.ascontiguousarray(array)
        at_once = self.file.input_shape[0] or len(array)
        parts = []
        for first in range(0, len(array), at_once):
            part = array[first : first + at_once]
            rest = at_once - len(part)
            if rest:  # the last ones of a file for several images
                part = np.concatenate([part, part[-1:].repeat(rest, axis=0)])
            found = self.file.run(part)
            parts.append(
                {k: v[: at_once - rest] for k, v in found.items()}
                if rest
                else found
            )
        if len(parts) == 1:
            return {k: torch.from_numpy(v) for k, v in parts[0].items()}
        return {
            k: torch.from_numpy(np.concatenate([part[k] for part in parts]))
            for k in parts[0]
        }


def adapted_preprocessor(
    given: Mapping[str, Any] | None, raw: bool
) -> dict[str, Any] | None:
    """The data preprocessor of a config, for an exported file.

    Args:
        given: Its dict.
        raw: Whether the file takes raw RGB images. Then nothing is left to
            the data preprocessor but the order of the channels.
    """
    if given is None:
        return None
    if not raw:
        return dict(given)
    # The name in MMPretrain, or in the others.
    to_rgb = 'to_rgb' if 'to_rgb' in given else 'bgr_to_rgb'
    kept = {k: v for k, v in given.items() if k not in NORMALISING + PADDING}
    return {**kept, to_rgb: True}
