"""What is run in a benchmark: the case, the settings and the function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MODES = (
    'infer', 'train', 'compile', 'compile-train', 'cuda-graph', 'onnxruntime',
    'openvino', 'ncnn',
)  # fmt: skip
# Those that run a file; it is folded.
EXPORTED = ('onnxruntime', 'openvino', 'ncnn')
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


@dataclass(frozen=True)
class BenchmarkCase:
    """What each model of a comparison runs.

    Attributes:
        mode: One of :data:`MODES`.
        batch: Images in a batch.
        height: Height of an image, in pixels.
        width: Width of an image, in pixels.
        dtype: A key of :data:`DTYPES`. Weights and images are fp32 in any
            case; the other types are those of autocast.
        threads: CPU threads that one operator may use.
    """

    mode: str
    batch: int
    height: int
    width: int
    dtype: str
    threads: int

    @property
    def training(self) -> bool:
        """Whether a backward pass is run."""
        return self.mode.endswith('train')

    @property
    def compiled(self) -> bool:
        """Whether ``torch.compile`` compiles the model."""
        return self.mode.startswith('compile')

    @property
    def exported(self) -> bool:
        """Whether another program than PyTorch runs the model."""
        return self.mode in EXPORTED

    @property
    def eager(self) -> BenchmarkCase:
        """The same case, of the model as it is: not compiled or exported."""
        mode = 'train' if self.training else 'infer'
        return dataclasses.replace(self, mode=mode)

    def __str__(self) -> str:
        size = f'{self.batch}x3x{self.height}x{self.width}'
        threads = f'{self.threads} thread{"s" * (self.threads > 1)}'
        return f'{self.mode}, {size}, {self.dtype}, {threads}'


@dataclass
class Workload:
    """A model that is ready to be run again and again.

    Attributes:
        run: Runs the model once; this is what is timed.
        outputs: Runs the model and returns its outputs, on the CPU in fp32.
        forward: Runs the forward pass up to the loss; None without training.
    """

    run: Callable[[], Any]
    outputs: Callable[[], list[Tensor]]
    forward: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Settings:
    """How the cases of one command are measured.

    Attributes:
        device: Where the models run: the CPU or a CUDA device.
        rounds: How often each model is timed.
        baselines: Names of the models that the others are compared with.
        deploy: Whether models are folded for inference first. Default:
            False.
        breakdown: Whether the kinds of blocks of EfficientMod are timed as
            well. Default: False.
        fast_linear: Whether all models choose the library of their linear
            layers and 1x1 convolutions. Default: False.
    """

    device: torch.device
    rounds: int
    baselines: Sequence[str]
    deploy: bool = False
    breakdown: bool = False
    fast_linear: bool = False
