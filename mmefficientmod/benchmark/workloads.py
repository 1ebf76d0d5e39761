"""What of a model is run: a forward pass, a training step, an exported one."""

from __future__ import annotations

import contextlib
import inspect
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmefficientmod.analysis.complexity import Network
from mmefficientmod.benchmark.cases import DTYPES, BenchmarkCase
from mmefficientmod.benchmark.inputs import annotations
from mmefficientmod.config.nodes import ConfigError


class Loss(nn.Module):
    """The sum of a toolbox's model's losses, for made-up annotations.

    Args:
        model: A detector, a segmentor or a classifier.
        case: What it is run on.
        device: Where the annotations go.
    """

    def __init__(
        self, model: BaseModel, case: BenchmarkCase, device: torch.device
    ) -> None:
        super().__init__()
        self.model = model
        self.data_samples = annotations(model, case, device)

    def forward(self, image: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to a scalar."""
        losses = self.model(image, self.data_samples, mode='loss')
        return self.model.parse_losses(losses)[0]


@dataclass
class Workload:
    """A model that is ready to be run again and again.

    Attributes:
        run: Runs it once, as it is timed.
        outputs: What comes out, on the CPU in fp32.
        forward: The way up to the loss; None where none goes back from it.
    """

    run: Callable[[], Any]
    outputs: Callable[[], list[Tensor]]
    forward: Callable[[], Tensor] | None = None


def prepare(model: nn.Module, case: BenchmarkCase, image: Tensor) -> Workload:
    """Make a model ready for a case.

    Args:
        model: On the device of the image. Its mode becomes that of the case.
        case: What is to be run.
        image: ``(N, 3, H, W)``, fp32.

    Raises:
        ConfigError: If that is not possible here.
    """
    model.train(case.training)  # by itself: it may not return the model
    network: nn.Module = Network(model, image.shape[-2:], len(image))
    if case.mode == 'onnxruntime':
        return _exported(network, case, image)
    whole = isinstance(model, BaseModel)
    if case.training and whole:
        network = Loss(model, case, image.device)
    call = torch.compile(network) if case.compiled else network

    def infer() -> Any:
        with autocast(case, image.device):
            return call(image)

    def loss() -> Tensor:
        outs = infer()
        return outs if whole else sum(x.square().mean() for x in outs)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    def outputs() -> list[Tensor]:
        # A copy: CUDA graphs use their memory again.
        return [x.detach().float().cpu().clone() for x in infer()]

    if case.training:
        return Workload(train, outputs, loss)
    no_grad = torch.no_grad()
    return Workload(no_grad(infer), no_grad(outputs))


def autocast(
    case: BenchmarkCase, device: torch.device
) -> contextlib.AbstractContextManager:
    """Mixed precision as the case wants it; none for fp32."""
    if case.dtype == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[case.dtype])


def _exported(
    network: nn.Module, case: BenchmarkCase, image: Tensor
) -> Workload:
    """An exported network in ONNX Runtime, on the device of the image."""
    if case.dtype != 'fp32':
        raise ConfigError(
            f'onnxruntime runs the exported model in fp32, not {case.dtype}'
        )
    try:
        import onnx  # noqa: F401 PyTorch's exporter imports it, too late
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f'the mode onnxruntime needs {error.name}, which is not '
            "installed: pip install 'mmefficientmod[export]'"
        ) from None
    kind = image.device.type
    provider = dict(cpu='CPUExecutionProvider', cuda='CUDAExecutionProvider')[
        kind
    ]
    if provider not in onnxruntime.get_available_providers():
        raise ConfigError(
            f'this onnxruntime has no {provider}: pip install onnxruntime-gpu'
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors alone
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, 'model.onnx'))
        _export(network, image, path)
        session = onnxruntime.InferenceSession(
            path, options, providers=[provider]
        )
    # Bound once, so that no copy between the devices is timed.
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


def _export(network: nn.Module, image: Tensor, path: str) -> None:
    """Write a network as ONNX.

    By the exporter that traces: it is the one that both stacks have, takes
    seconds where the one behind ``dynamo=True`` takes tens of them, and the
    models run equally fast. Opset 17 is the last that PyTorch 2.1 knows.
    """
    arguments: dict[str, Any] = dict(opset_version=17)
    # Older PyTorch has that exporter alone, and no such argument.
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        arguments['dynamo'] = False
    # The mode that it puts back at its end; what is folded has no other.
    network.eval()
    with _silence(), torch.no_grad():
        torch.onnx.export(network, (image,), path, **arguments)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter('ignore')
        yield
