"""Writing a graph for CoreML, by coremltools."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.onnx_files import IMAGE, require, silence
from mmefficientmod.deploy.rewriting import rewritten
from mmefficientmod.messages import shorten


def write_coreml(
    graph: nn.Module,
    image: Tensor,
    path: str | os.PathLike,
    outputs: Sequence[str],
    metadata: Mapping[str, str],
    half: bool = False,
) -> Any:
    """Record a graph and convert it to a program of CoreML.

    Args:
        graph: Takes an image, returns tensors; in evaluation mode.
        image: An example of the input, ``(N, 3, H, W)``.
        path: The ``.mlpackage`` to write, a folder.
        outputs: Names of the outputs.
        metadata: The description, text by name.
        half: Whether weights and activations are float16, for the neural
            engine. Default: False.

    Returns:
        The model of coremltools.

    Raises:
        ConfigError: If coremltools is not installed or cannot convert the
            graph.
    """
    require('coremltools', 'coreml')
    import coremltools
    from coremltools.converters.mil.frontend.torch import ops

    precision = coremltools.precision
    original = ops._cast

    def cast(context: Any, node: Any, dtype: type, name: str) -> None:
        original(context, node, _Int if dtype is int else dtype, name)

    try:
        with silence(), torch.no_grad(), rewritten():
            traced = torch.jit.trace(graph, image, check_trace=False)
        with silence(), mock.patch.object(ops, '_cast', cast):
            model = coremltools.convert(
                traced,
                inputs=[coremltools.TensorType(IMAGE, tuple(image.shape))],
                outputs=[coremltools.TensorType(name) for name in outputs],
                convert_to='mlprogram',
                minimum_deployment_target=coremltools.target.iOS16,
                compute_precision=(
                    precision.FLOAT16 if half else precision.FLOAT32
                ),
                skip_model_load=True,
            )
    except Exception as error:
        raise ConfigError(
            'the model cannot be converted for CoreML '
            f'({type(error).__name__}: {shorten(str(error))})'
        ) from error
    model.user_defined_metadata.update(metadata)
    model.save(os.fspath(Path(path)))
    return model


class _Int(int):
    """An int of an array with one element.

    coremltools 9 calls ``int`` on arrays ``(1,)``, which NumPy 2.4 refuses.
    """

    def __new__(cls, value: Any) -> int:  # type: ignore[misc]
        return int.__new__(int, np.asarray(value).item())


def count_operators(model: Any) -> dict[str, int]:
    """How often each operator is in a program of CoreML.

    Args:
        model: From :func:`write_coreml`.
    """
    counts: dict[str, int] = {}
    for operation in model._mil_program.functions['main'].operations:
        counts[operation.op_type] = counts.get(operation.op_type, 0) + 1
    return counts
