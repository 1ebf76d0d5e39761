"""Running an exported file, by ONNX Runtime, OpenVINO or ncnn."""

from __future__ import annotations

import abc
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.onnx_files import open_session, require
from mmefficientmod.deploy.openvino_files import INFO, compile_model
from mmefficientmod.messages import shorten

ONNX, OPENVINO, NCNN = '.onnx', '.xml', '.param'
SUFFIXES = (ONNX, OPENVINO, NCNN)


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a path is that of an exported file, by its suffix."""
    return str(path).lower().endswith(SUFFIXES)


class ExportedFile(abc.ABC):
    """A file that takes images and returns named arrays.

    Args:
        path: The file.

    Attributes:
        metadata: The description in the file, text by name; empty for a file
            that another program wrote.
        input_shape: Shape of the input; None for each dimension that may
            differ.
        raw: Whether the input is ``(N, H, W, 3)`` uint8 RGB; else it is
            ``(N, 3, H, W)`` float32, normalised.
    """

    metadata: dict[str, str]
    input_shape: tuple[int | None, ...]
    raw: bool

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    @abc.abstractmethod
    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs, by name.

        Args:
            image: As ``input_shape`` and ``raw`` say.

        Raises:
            ConfigError: If the file cannot be run on this image.
        """

    def __deepcopy__(self, memo: dict) -> ExportedFile:
        """The file itself: it has no state, and cannot be copied.

        A hook that averages weights copies the model that it is given.
        """
        return self

    def described(self, name: str, default: Any = None) -> Any:
        """A value of the description, which is JSON.

        The description of another program may have the name, but no JSON.
        """
        try:
            return json.loads(self.metadata[name])
        except (KeyError, ValueError):
            return default

    def _only_input(self, inputs: Sequence[Any]) -> Any:
        """The one input of a file.

        Raises:
            ConfigError: If it has another number of them.
        """
        if len(inputs) != 1:
            raise ConfigError(
                f'{self.path} has {len(inputs)} inputs, and a file of '
                'tools/export.py has one, the images'
            )
        return inputs[0]

    def _failed(self, image: np.ndarray, error: Exception) -> ConfigError:
        return ConfigError(
            f'{self.path} cannot be run on an image {image.shape}; it takes '
            f'{_shape_text(self.input_shape)} ({shorten(str(error))})'
        )


def open_file(
    path: str | os.PathLike,
    threads: int | None = None,
    precision: str = 'f32',
) -> ExportedFile:
    """Open an exported file.

    Args:
        path: A file of ONNX, the ``.xml`` of OpenVINO or the ``.param`` of
            ncnn.
        threads: CPU threads. Default: the library's choice.
        precision: With which OpenVINO computes what the file has as float32:
            ``'f32'`` or ``'bf16'``. Left alone, it takes bf16 where the CPU
            has it. Default: ``'f32'``.

    Raises:
        ConfigError: If the file does not exist, is of another kind or cannot
            be read, or the library for it is not installed.
    """
    if not Path(path).is_file():
        raise ConfigError(f'{path} does not exist')
    suffix = Path(path).suffix.lower()
    if suffix == ONNX:
        return _OnnxFile(path, threads)
    if suffix == OPENVINO:
        return _OpenVinoFile(path, threads, precision)
    if suffix == NCNN:
        return _NcnnFile(path, threads)
    raise ConfigError(
        f'{path} cannot be run: files that end in {" or ".join(SUFFIXES)} can'
    )


class _OnnxFile(ExportedFile):
    def __init__(self, path: str | os.PathLike, threads: int | None) -> None:
        super().__init__(path)
        try:
            self._session = open_session(path, threads)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f'{path} cannot be read by ONNX Runtime '
                f'({shorten(str(error))})'
            ) from error
        given = self._only_input(self._session.get_inputs())
        self._input = given.name
        self.input_shape = tuple(
            n if isinstance(n, int) else None for n in given.shape
        )
        self.raw = given.type == 'tensor(uint8)'
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self._outputs = [x.name for x in self._session.get_outputs()]

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        try:
            found = self._session.run(None, {self._input: image})
        except Exception as error:
            raise self._failed(image, error) from error
        return dict(zip(self._outputs, found, strict=True))


class _OpenVinoFile(ExportedFile):
    def __init__(
        self, path: str | os.PathLike, threads: int | None, precision: str
    ) -> None:
        super().__init__(path)
        require('openvino', 'openvino')
        import openvino

        try:
            model = openvino.Core().read_model(os.fspath(path))
            self._model = compile_model(model, threads, precision)
        except Exception as error:
            raise ConfigError(
                f'{path} cannot be read by OpenVINO ({shorten(str(error))})'
            ) from error
        given = self._only_input(model.inputs)
        self.input_shape = tuple(
            None if n.is_dynamic else n.get_length()
            for n in given.partial_shape
        )
        self.raw = given.element_type == openvino.Type.u8
        info = model.rt_info
        self.metadata = (
            {k: v.value for k, v in info[INFO].items()} if INFO in info else {}
        )

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        try:
            found = self._model(image)
        except Exception as error:
            raise self._failed(image, error) from error
        return {port.get_any_name(): value for port, value in found.items()}


class _NcnnFile(ExportedFile):
    raw = False

    def __init__(self, path: str | os.PathLike, threads: int | None) -> None:
        super().__init__(path)
        # The description is in a file beside it.
        beside = self.path.with_suffix('.json')
        if not beside.is_file():
            raise ConfigError(
                f'{path} cannot be run without {beside}, its description by '
                'tools/export.py'
            )
        try:
            self.metadata = json.loads(beside.read_text())
            height, width = self.described('size')
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f'{beside} is not the description that tools/export.py '
                f'writes ({shorten(str(error))})'
            ) from error
        self.input_shape = (1, 3, height, width)
        self._net = load_ncnn(self.path, threads)

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        import ncnn

        if image.shape != self.input_shape:
            raise self._failed(image, ValueError('another shape'))
        extractor = self._net.create_extractor()
        # A variable, since ncnn keeps no reference to the array.
        array = np.ascontiguousarray(image[0])
        given = ncnn.Mat(array).clone()
        extractor.input(self._net.input_names()[0], given)
        found = {}
        names = self._net.output_names()
        for name, inner in zip(self.described('outputs'), names, strict=True):
            code, value = extractor.extract(inner)
            if code:
                raise self._failed(image, ValueError(f'code {code}'))
            found[name] = np.array(value)[None]
        return found


def load_ncnn(path: Path, threads: int | None = None) -> Any:
    """The network in files of ncnn, to be run in float32.

    Args:
        path: The ``.param`` file; the weights are in the ``.bin`` beside it.
        threads: CPU threads. Default: ncnn's choice.

    Raises:
        ConfigError: If ncnn is not installed or cannot read the files.
    """
    require('ncnn', 'ncnn')
    import ncnn

    net = ncnn.Net()
    if threads:
        net.opt.num_threads = threads
    for name in (
        'use_fp16_packed', 'use_fp16_storage', 'use_fp16_arithmetic',
        'use_bf16_storage',
    ):  # fmt: skip
        setattr(net.opt, name, False)
    if net.load_param(os.fspath(path)) or net.load_model(
        os.fspath(path.with_suffix('.bin'))
    ):
        raise ConfigError(f'{path} cannot be read by ncnn')
    return net


def description(values: Mapping[str, Any]) -> dict[str, str]:
    """A description for a file: each value as JSON."""
    return {k: json.dumps(v) for k, v in values.items()}


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return f'({", ".join("any" if n is None else str(n) for n in shape)})'
