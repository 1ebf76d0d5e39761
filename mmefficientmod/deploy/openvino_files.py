"""Models of OpenVINO: converted from ONNX files, written and compiled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.onnx_files import require, silence
from mmefficientmod.messages import shorten

# The part of a file that has our description.
INFO = 'mmefficientmod'


def convert_onnx(source: str | os.PathLike) -> Any:
    """Convert an ONNX file to an ``openvino.Model``.

    Args:
        source: The ONNX file.

    Raises:
        ConfigError: If OpenVINO is not installed or cannot convert the file.
    """
    require('openvino', 'openvino')
    import openvino

    try:
        with silence():
            return openvino.convert_model(os.fspath(source))
    except Exception as error:
        raise ConfigError(
            f'OpenVINO cannot convert the model ({shorten(str(error))})'
        ) from error


def write_openvino(
    model: Any,
    path: str | os.PathLike,
    metadata: Mapping[str, str],
    half: bool = False,
) -> list[Path]:
    """Write a model of OpenVINO.

    Args:
        model: From :func:`convert_onnx`.
        path: The ``.xml`` file to write; the weights are beside it.
        metadata: The description, text by name.
        half: Whether the weights are stored as float16. Default: False.

    Returns:
        The files, that of the weights first.
    """
    import openvino

    for name, value in metadata.items():
        model.set_rt_info(value, [INFO, name])
    openvino.save_model(model, os.fspath(path), compress_to_fp16=half)
    return [Path(path).with_suffix('.bin'), Path(path)]


def compile_model(
    model: Any,
    threads: int | None = None,
    precision: str = 'f32',
    **settings: Any,
) -> Any:
    """Compile a model for the CPU.

    Args:
        model: An ``openvino.Model``.
        threads: CPU threads. Default: OpenVINO's choice.
        precision: With which it computes what the model has as float32:
            ``'f32'`` or ``'bf16'``. Left alone, OpenVINO takes bf16 where the
            CPU has it. Default: ``'f32'``.
        **settings: Further properties of OpenVINO.

    Returns:
        The ``openvino.CompiledModel``.
    """
    import openvino

    config = dict(
        PERFORMANCE_HINT='LATENCY', INFERENCE_PRECISION_HINT=precision
    )
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    return openvino.compile_model(model, 'CPU', config | settings)
