"""Models as files, run by other programs than PyTorch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmefficientmod.benchmark.cases import BenchmarkCase, Workload
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.files import load_ncnn
from mmefficientmod.deploy.layouts import best_layout, lay_out
from mmefficientmod.deploy.ncnn_files import write_ncnn
from mmefficientmod.deploy.onnx_files import (
    CPU,
    open_session,
    require,
    write_onnx,
)
from mmefficientmod.deploy.openvino_files import compile_model, convert_onnx
from mmefficientmod.models.layers.deploy import switch_to_deploy

# OpenVINO's names of the data types that it computes with.
OPENVINO_DTYPES = dict(fp32='f32', bf16='bf16')


def best_form(
    model: nn.Module, case: BenchmarkCase, layout: str | None
) -> nn.Module:
    """A copy of a model as it is written to a file.

    Args:
        model: The model.
        case: What is run.
        layout: Memory layout of EfficientMod. Default: the best one.
    """
    copied = copy.deepcopy(model)
    switch_to_deploy(copied)
    size = (case.height, case.width)
    return lay_out(copied, layout or best_layout(case.mode, size))


def prepare_onnxruntime(
    network: nn.Module, case: BenchmarkCase, image: Tensor
) -> Workload:
    """Load a network in ONNX Runtime, on the image's device.

    Raises:
        ConfigError: If that is not possible here, or not in this data type.
    """
    if case.dtype != 'fp32':
        raise ConfigError(
            f'onnxruntime runs the exported model in fp32, not {case.dtype}'
        )
    for module in ('onnx', 'onnxruntime'):
        require(module)
    import onnxruntime

    kind = image.device.type
    provider = dict(cpu=CPU, cuda='CUDAExecutionProvider')[kind]
    if provider not in onnxruntime.get_available_providers():
        raise ConfigError(
            f'this onnxruntime has no {provider}: pip install onnxruntime-gpu'
        )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, 'model.onnx'))
        write_onnx(network, image, path)
        session = open_session(path, case.threads, provider)
    # Input and outputs are bound once to memory on the device, so that no
    # copy between the devices is timed.
    binding = session.io_binding()
    binding.bind_ortvalue_input(
        session.get_inputs()[0].name,
        onnxruntime.OrtValue.ortvalue_from_numpy(
            image.cpu().numpy(), kind, image.device.index or 0
        ),
    )
    for out in session.get_outputs():
        binding.bind_output(out.name, kind, image.device.index or 0)

    def run() -> None:
        session.run_with_iobinding(binding)

    def outputs() -> list[Tensor]:
        run()
        return [torch.tensor(x) for x in binding.copy_outputs_to_cpu()]

    return Workload(run, outputs)


def prepare_openvino(
    network: nn.Module, case: BenchmarkCase, image: Tensor
) -> Workload:
    """Load a network in OpenVINO, on the CPU.

    Raises:
        ConfigError: If that is not possible here, or not in this data type.
    """
    _check_cpu(case, image)
    if case.dtype not in OPENVINO_DTYPES:
        raise ConfigError(
            f'openvino runs models in {" or ".join(OPENVINO_DTYPES)}, not in '
            f'{case.dtype}'
        )
    require('onnx')
    require('openvino', 'openvino')
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, 'model.onnx'))
        write_onnx(network, image, path)
        model = compile_model(
            convert_onnx(path), case.threads, OPENVINO_DTYPES[case.dtype]
        )
    request = model.create_infer_request()
    request.set_input_tensor(
        openvino.Tensor(np.ascontiguousarray(image.numpy()))
    )

    def outputs() -> list[Tensor]:
        request.infer()
        return [torch.tensor(x.data) for x in request.output_tensors]

    return Workload(request.infer, outputs)


def prepare_ncnn(
    network: nn.Module, case: BenchmarkCase, image: Tensor
) -> Workload:
    """Load a network in ncnn, on the CPU, for one image.

    Raises:
        ConfigError: If that is not possible here, in this data type or for
            more images.
    """
    _check_cpu(case, image)
    if case.dtype != 'fp32' or case.batch != 1:
        raise ConfigError(
            f'ncnn runs one image in fp32, not {case.batch} in {case.dtype}'
        )
    require('ncnn', 'ncnn')
    import ncnn

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.param')
        network.eval()
        write_ncnn(network, image, path, {})
        net = load_ncnn(path, case.threads)
    array = np.ascontiguousarray(image[0].numpy())
    given = ncnn.Mat(array).clone()
    names = net.output_names()

    def run() -> list[Any]:
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], given)
        return [extractor.extract(name)[1] for name in names]

    def outputs() -> list[Tensor]:
        return [torch.from_numpy(np.array(x)[None]) for x in run()]

    return Workload(run, outputs)


def _check_cpu(case: BenchmarkCase, image: Tensor) -> None:
    if image.device.type != 'cpu':
        raise ConfigError(f'{case.mode} runs models on the CPU here')


RUNTIMES: dict[str, Callable[[nn.Module, BenchmarkCase, Tensor], Workload]] = {
    'onnxruntime': prepare_onnxruntime,
    'openvino': prepare_openvino,
    'ncnn': prepare_ncnn,
}
