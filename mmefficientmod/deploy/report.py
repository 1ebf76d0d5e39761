"""Which layers of a file in 8 bits are slow, and which are noisy."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmefficientmod.deploy.int8 import int8_layers, int8_nodes
from mmefficientmod.deploy.noise import decibels
from mmefficientmod.deploy.onnx_files import IMAGE, open_session
from mmefficientmod.deploy.openvino_files import compile_model

RUNS = 10
# What the quantiser adds to the name of a tensor that it made float again.
FLOAT_SUFFIX = '_DequantizeLinear_Output'


@dataclass(frozen=True)
class LayerTime:
    """How long a layer takes.

    Attributes:
        name: The layer.
        kind: Its operator in the library that runs it.
        milliseconds: Median of several runs.
        share: Of the time of all layers.
    """

    name: str
    kind: str
    milliseconds: float
    share: float


@dataclass
class Int8Report:
    """What is slow and what is noisy in a file.

    Attributes:
        outputs: Ratio of signal to quantisation noise of each level of the
            backbone and of each output, in dB, over the images of the check.
        slowest: The layers, the slowest first.
        worst: The quantised layers and the ratio of their outputs on one
            image, in dB, the noisiest first.
    """

    outputs: dict[str, float] = field(default_factory=dict)
    slowest: list[LayerTime] = field(default_factory=list)
    worst: list[tuple[str, float]] = field(default_factory=list)


def time_onnx(path: str | os.PathLike, image: np.ndarray) -> list[LayerTime]:
    """Time the layers of an ONNX file by ONNX Runtime's profiler.

    Args:
        path: The file.
        image: Its input.

    Returns:
        The layers, the slowest first.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            path,
            enable_profiling=True,
            profile_file_prefix=str(Path(folder, 'profile')),
        )
        for _ in range(RUNS):
            session.run(None, {IMAGE: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    times = []
    for event in events:
        if event['cat'] == 'Node' and event['name'].endswith('_kernel_time'):
            name = event['name'].removesuffix('_kernel_time')
            times.append((name, event['args']['op_name'], event['dur'] / 1e3))
    return _medians(times)


def time_openvino(
    path: str | os.PathLike, image: np.ndarray
) -> list[LayerTime]:
    """Time the layers of a model of OpenVINO by its own counters.

    Args:
        path: The ``.xml`` file.
        image: Its input.

    Returns:
        The layers, the slowest first.
    """
    import openvino

    model = compile_model(
        openvino.Core().read_model(os.fspath(path)), PERF_COUNT=True
    )
    request = model.create_infer_request()
    times = []
    for _ in range(RUNS):
        request.infer(image)
        times += [
            (x.node_name, x.node_type, x.real_time.total_seconds() * 1e3)
            for x in request.profiling_info
        ]
    return _medians(times)


def short_name(name: str) -> str:
    """A layer's name without the modules that all layers are in."""
    parts = name.strip('/').split('/')
    while len(parts) > 1 and parts[0] in ('graph', 'model', 'recorded'):
        parts.pop(0)
    return '/'.join(parts)


def _medians(times: Iterable[tuple[str, str, float]]) -> list[LayerTime]:
    """Median times from those of each run."""
    by_layer: dict[tuple[str, str], list[float]] = {}
    for name, kind, time in times:
        by_layer.setdefault((name, kind), []).append(time)
    medians = {k: statistics.median(v) for k, v in by_layer.items()}
    total = sum(medians.values()) or 1.0
    return sorted(
        (
            LayerTime(short_name(name), kind, time, time / total)
            for (name, kind), time in medians.items()
        ),
        key=lambda layer: -layer.milliseconds,
    )


def noise_onnx(
    source: str | os.PathLike, path: str | os.PathLike, image: np.ndarray
) -> list[tuple[str, float]]:
    """Measure the noise of the quantised layers of an ONNX file.

    It is that of the output of each layer, with the noise of all layers
    before it.

    Args:
        source: The file in float32.
        path: The file in 8 bits.
        image: The input of both.

    Returns:
        The layers and their ratio of signal to noise, in dB, the noisiest
        first.
    """
    import onnx

    float_model = onnx.load(os.fspath(source))
    model = onnx.load(os.fspath(path))
    tensors = {x for node in model.graph.node for x in node.output}
    float_names, names = {}, {}
    for name, node in int8_layers(float_model.graph).items():
        output = node.output[0]
        float_names[name] = output
        # The value as the next layers read it.
        read = output + FLOAT_SUFFIX
        names[name] = read if read in tensors else output
    expected = _run_onnx(float_model, float_names, image)
    return _noisiest(_run_onnx(model, names, image), expected)


def _run_onnx(
    model: Any, tensors: Mapping[str, str], image: np.ndarray
) -> dict[str, np.ndarray]:
    """Values inside an ONNX model, by the names of their layers."""
    import onnx

    known = {x.name for x in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, None)
        for x in {*tensors.values()} - known
    )
    session = open_session(model.SerializeToString())
    order = list(tensors)
    found = session.run([tensors[x] for x in order], {IMAGE: image})
    return dict(zip(order, found, strict=True))


def noise_openvino(
    source: Any, path: str | os.PathLike, image: np.ndarray
) -> list[tuple[str, float]]:
    """Measure the noise of the quantised layers of a model of OpenVINO.

    Args:
        source: The ``openvino.Model`` in float32.
        path: The ``.xml`` file in 8 bits.
        image: The input of both.

    Returns:
        As that of :func:`noise_onnx`.
    """
    import openvino

    layers = int8_nodes(source)
    quantised = openvino.Core().read_model(os.fspath(path))
    found, expected = (
        _run_openvino(model, layers, image) for model in (quantised, source)
    )
    return _noisiest(found, expected)


def _run_openvino(
    model: Any, layers: Iterable[str], image: np.ndarray
) -> dict[str, np.ndarray]:
    """Outputs of layers inside a model of OpenVINO, by their names."""
    model = model.clone()
    nodes = {x.get_friendly_name(): x for x in model.get_ops()}
    names = [x for x in layers if x in nodes]
    first = len(model.outputs)
    model.add_outputs([nodes[x].output(0) for x in names])
    compiled = compile_model(model)
    values = list(compiled(image).values())[first:]
    return dict(zip(names, values, strict=True))


def _noisiest(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> list[tuple[str, float]]:
    ratios = []
    for name, value in expected.items():
        # Of other proposals, a detector computes something else.
        if name not in found or found[name].shape != value.shape:
            continue
        error = found[name].astype(np.float64) - value
        signal = float((value.astype(np.float64) ** 2).sum())
        ratios.append(
            (short_name(name), decibels(signal, float((error**2).sum())))
        )
    return sorted(ratios, key=lambda pair: pair[1])
