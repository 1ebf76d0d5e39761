"""What is run of a model: inference, a training step, or an ONNX export."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmefficientmod.analysis.complexity import TensorForward
from mmefficientmod.benchmark.cases import DTYPES, BenchmarkCase, Workload
from mmefficientmod.benchmark.exported import RUNTIMES, best_form
from mmefficientmod.benchmark.inputs import random_annotations
from mmefficientmod.config.nodes import ConfigError


class SummedLoss(nn.Module):
    """The sum of the losses of a toolbox's model, for random annotations.

    Args:
        model: A detector, a segmentor or a classifier.
        case: Number and size of the images.
        device: Where the annotations are put.

    Raises:
        ConfigError: If the model is none of the three.
    """

    def __init__(
        self, model: BaseModel, case: BenchmarkCase, device: torch.device
    ) -> None:
        super().__init__()
        self.model = model
        self.data_samples = random_annotations(model, case, device)

    def forward(self, image: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to a scalar."""
        losses = self.model(image, self.data_samples, mode='loss')
        return self.model.parse_losses(losses)[0]


def prepare(
    model: nn.Module,
    case: BenchmarkCase,
    image: Tensor,
    layout: str | None = None,
) -> Workload:
    """Make a model ready to run a case.

    The loss of a toolbox's model is the sum of its losses; that of a backbone
    is the sum over its outputs of their mean squares.

    Args:
        model: On the device of the image. Its mode, train or eval, becomes
            that of the case.
        case: What is run.
        image: ``(N, 3, H, W)``, fp32.
        layout: Memory layout of EfficientMod in an exported model. Default:
            the best one for the program that runs it.

    Raises:
        ConfigError: If the case cannot be run here or with this model.
    """
    # Not chained: train() of OpenMMLab's modules returns None.
    model.train(case.training)
    height, width = image.shape[-2:]
    if case.exported:
        model = best_form(model, case, layout)
    network: nn.Module = TensorForward(model, (height, width), len(image))
    if case.exported:
        return RUNTIMES[case.mode](network, case, image)
    has_losses = case.training and isinstance(model, BaseModel)
    if has_losses:
        network = SummedLoss(model, case, image.device)
    call = torch.compile(network) if case.compiled else network
    record = _record_cuda_graph if case.mode == 'cuda-graph' else _unrecorded

    def forward() -> Any:
        with autocast(case, image.device):
            return call(image)

    def loss() -> Tensor:
        outs = forward()
        if has_losses:
            return outs
        return torch.stack([x.square().mean() for x in outs]).sum()

    def train() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    def outputs() -> list[Tensor]:
        # Recorded anew: a graph keeps the TF32 setting of its recording.
        run = record(forward, image.device)
        # Cloned: the next run of a CUDA graph overwrites its outputs.
        return [x.detach().float().cpu().clone() for x in run()]

    if case.training:
        return Workload(train, outputs, loss)
    no_grad = torch.no_grad()
    run = record(forward, image.device)
    return Workload(no_grad(run), no_grad(outputs))


def _unrecorded(
    forward: Callable[[], Any], device: torch.device
) -> Callable[[], Any]:
    return forward


def _record_cuda_graph(
    forward: Callable[[], Any], device: torch.device
) -> Callable[[], Any]:
    """A function that starts all kernels of a forward pass at once.

    The image is the same in each run, so it is not copied.
    """
    if device.type != 'cuda':
        raise ConfigError('the mode cuda-graph needs a GPU: --device cuda')
    with torch.no_grad(), torch.cuda.device(device):
        # Before a recording, libraries must have made their choices, on
        # another stream than the default one.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outs = forward()

    def replay() -> Any:
        graph.replay()
        return outs

    return replay


def autocast(
    case: BenchmarkCase, device: torch.device
) -> contextlib.AbstractContextManager:
    """Mixed precision in the case's dtype; nothing for fp32."""
    if case.dtype == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[case.dtype])
