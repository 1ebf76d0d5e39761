"""What models are compared at: mode, input size, precision and threads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

MODES = ('infer', 'train', 'compile', 'compile-train', 'onnxruntime')
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


@dataclass(frozen=True)
class BenchmarkCase:
    """What models are compared at.

    Attributes:
        mode: One of :data:`MODES`.
        batch: Images at once.
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        dtype: A key of :data:`DTYPES`; other than fp32 means autocast.
        threads: Of the CPU, for one operator.
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
        """Whether ``torch.compile`` is at work."""
        return self.mode.startswith('compile')

    @property
    def eager(self) -> BenchmarkCase:
        """The same without compiling or exporting anything."""
        mode = 'train' if self.training else 'infer'
        return dataclasses.replace(self, mode=mode)

    def __str__(self) -> str:
        size = f'{self.batch}x3x{self.height}x{self.width}'
        threads = f'{self.threads} thread{"s" * (self.threads > 1)}'
        return f'{self.mode}, {size}, {self.dtype}, {threads}'
