"""Converting an ONNX file for OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.files import INFO
from mmefficientmod.deploy.onnx_files import require, silence
from mmefficientmod.messages import shorten


def write_openvino(
    source: str | os.PathLike,
    path: str | os.PathLike,
    metadata: Mapping[str, str],
    half: bool = False,
) -> list[Path]:
    """Convert an ONNX file.

    Args:
        source: The ONNX file.
        path: The ``.xml`` file to write; the weights are beside it.
        metadata: The description, text by name.
        half: Whether the weights are stored as float16. Default: False.

    Returns:
        The files, that of the weights first.

    Raises:
        ConfigError: If OpenVINO is not installed or cannot convert the file.
    """
    require('openvino', 'openvino')
    import openvino

    try:
        with silence():
            model = openvino.convert_model(os.fspath(source))
    except Exception as error:
        raise ConfigError(
            f'OpenVINO cannot convert the model ({shorten(str(error))})'
        ) from error
    for name, value in metadata.items():
        model.set_rt_info(value, [INFO, name])
    openvino.save_model(model, os.fspath(path), compress_to_fp16=half)
    return [Path(path).with_suffix('.bin'), Path(path)]
