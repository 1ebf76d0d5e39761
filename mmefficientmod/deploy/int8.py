"""Static quantisation of an exported file to 8 bits.

Weights are signed, one scale for each output channel; activations are
unsigned, with the range that they have on calibration images. What is
sensitive or gains nothing stays in float: attention's products and softmax,
depth-wise convolutions of 7x7 and more, the first convolution, LayerNorm,
GELU, and all that follows after the last layer, such as non-maximum
suppression.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.onnx_files import IMAGE, OPSET, require, silence
from mmefficientmod.messages import shorten

# With fewer operators, GELU is several ones, which are slow between int8.
LEAST_OPSET = 20
# Images that the ranges are measured on.
CALIBRATION_IMAGES = 64
LAYERS = ('Conv', 'Gemm', 'MatMul')
# Behind a layer they become a part of it: its output then has the range that
# is left after them.
ACTIVATIONS = ('Relu', 'Clip')
# Depth-wise kernels from this size on stay in float.
LARGE_KERNEL = 7
IMAGE_CHANNELS = 3


def check_int8() -> None:
    """Check that the installed PyTorch writes files that int8 can use.

    Raises:
        ConfigError: If it does not.
    """
    if OPSET < LEAST_OPSET:
        raise ConfigError(
            f'--int8 needs opset {LEAST_OPSET} of ONNX, and the installed '
            f'PyTorch writes opset {OPSET}: use the default stack, with a '
            'newer PyTorch'
        )


def quantize_onnx(
    source: str | os.PathLike,
    path: str | os.PathLike,
    images: Iterable[np.ndarray],
) -> None:
    """Quantise an ONNX file, for ONNX Runtime.

    Args:
        source: The file, in float32.
        path: The file to write.
        images: Inputs of the file, to measure activations on.

    Raises:
        ConfigError: If onnxruntime is not installed or cannot quantise the
            file.
    """
    require('onnxruntime')
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        """The images, one after the other."""

        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {IMAGE: image}

    model = onnx.load(os.fspath(source))
    chosen = int8_layers(model.graph)
    excluded = [
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS and node.name not in chosen
    ]
    with failing('ONNX Runtime'):
        quantize_static(
            os.fspath(source),
            os.fspath(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
            nodes_to_exclude=excluded,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def int8_layers(graph: Any) -> dict[str, Any]:
    """The nodes of an ONNX graph that are quantised, by name.

    Args:
        graph: An ``onnx.GraphProto``, in float32.
    """
    weights = {x.name: list(x.dims) for x in graph.initializer}
    chosen = {}
    for node in graph.node:
        if node.op_type not in LAYERS or node.input[1] not in weights:
            continue
        shape = weights[node.input[1]]
        if node.op_type == 'Conv':
            groups = next(
                (x.i for x in node.attribute if x.name == 'group'), 1
            )
            if stays_float(shape[1] * groups, groups, shape[2:]):
                continue
        chosen[node.name] = node
    return chosen


def stays_float(channels: int, groups: int, kernel: Sequence[int]) -> bool:
    """Whether a convolution stays in float.

    Args:
        channels: Input channels.
        groups: Groups of channels that are convolved each by itself.
        kernel: Size of the kernel, in pixels.
    """
    if channels == IMAGE_CHANNELS:
        return True
    return groups == channels and max(kernel, default=1) >= LARGE_KERNEL


def quantize_openvino(model: Any, images: Sequence[np.ndarray]) -> Any:
    """Quantise a model of OpenVINO, by NNCF.

    Args:
        model: An ``openvino.Model``, in float32; changed in place.
        images: Inputs of the model, to measure activations on.

    Returns:
        The quantised model.

    Raises:
        ConfigError: If nncf is not installed or cannot quantise the model.
    """
    require('nncf', 'openvino')
    import nncf

    with failing('NNCF'):
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(
                names=_float_names(model), validate=False
            ),
        )


def _float_names(model: Any) -> list[str]:
    """Names of the nodes of OpenVINO that stay in float.

    All but the layers: what NNCF would quantise besides, such as sums and
    products, is in detectors the geometry of boxes, too.
    """
    kept = int8_nodes(model)
    return [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() not in ('Parameter', 'Constant', 'Result')
        and node.get_friendly_name() not in kept
    ]


def int8_nodes(model: Any) -> set[str]:
    """Names of the nodes of OpenVINO that are quantised.

    Args:
        model: An ``openvino.Model``, in float32.
    """
    layers = ('Convolution', 'GroupConvolution', 'MatMul')
    return {
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() in layers
        and _is_int8(node, node.get_type_name())
    }


def _is_int8(node: Any, kind: str) -> bool:
    weight = node.input_value(1).get_node()
    while weight.get_type_name() in ('Convert', 'Reshape', 'Transpose'):
        weight = weight.input_value(0).get_node()
    if weight.get_type_name() != 'Constant':
        return False
    if kind == 'MatMul':
        return True
    shape = list(node.input_value(1).get_shape())
    if kind == 'Convolution':  # (C_out, C_in, height, width)
        return not stays_float(shape[1], 1, shape[2:])
    # (groups, C_out / groups, C_in / groups, height, width)
    return not stays_float(shape[0] * shape[2], shape[0], shape[3:])


@contextlib.contextmanager
def failing(library: str) -> Iterator[None]:
    """Say in one sentence that a library failed; drop what it prints.

    Raises:
        ConfigError: If the block raises.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with silence():
            yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'{library} cannot quantise the model ({type(error).__name__}: '
            f'{shorten(str(error))})'
        ) from error
    finally:
        logging.disable(level)
