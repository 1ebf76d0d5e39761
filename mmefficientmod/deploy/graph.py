"""A model as one function from a batch of images to named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmefficientmod.models.normalisation import ImageNormalisation

# Names of dimensions that may differ from run to run.
BATCH, HEIGHT, WIDTH = 'batch', 'height', 'width'


class ExportGraph(nn.Module):
    """What is exported: images in, named tensors out.

    A subclass computes in :meth:`forward` what the file shall compute, and in
    :meth:`reference` what the toolbox computes for the same images.

    Args:
        model: The model, in evaluation mode.

    Attributes:
        task: ``'cls'``, ``'seg'``, ``'det'`` or ``'backbone'``.
        outputs: For each output, in order, the names of its dimensions that
            may differ from run to run, by their index.
        batched: Whether more than one image can be given at once.
    """

    task: str
    outputs: dict[str, dict[int, str]]
    batched = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(N, 3, H, W)``, normalised, to the tensors of ``outputs``."""
        raise NotImplementedError

    def reference(self, image: Tensor) -> tuple[Tensor, ...]:
        """The same by the functions of the toolbox. Default: ``forward``."""
        return self(image)


def named_arrays(
    function: Callable[[Tensor], Sequence[Tensor]],
    names: Iterable[str],
    image: np.ndarray,
) -> dict[str, np.ndarray]:
    """Outputs of a function of PyTorch, by name, as those of a file.

    Args:
        function: Takes an image, returns as many tensors as there are names.
        names: Names of its outputs.
        image: ``(N, 3, H, W)`` float32, or what else the function takes.
    """
    with torch.no_grad():
        values = function(torch.from_numpy(image))
    return {k: v.numpy() for k, v in zip(names, values, strict=True)}


class BackboneGraph(ExportGraph):
    """A backbone alone: outputs ``level_0``, ``level_1`` and so on.

    Args:
        model: A module that returns a tensor ``(N, C_i, H_i, W_i)`` for each
            level.
        levels: Number of levels.
    """

    task = 'backbone'

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__(model)
        self.outputs = level_outputs(levels)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to one ``(N, C_i, H_i, W_i)`` for each level."""
        return tuple(self.model(image))


def level_outputs(levels: int) -> dict[str, dict[int, str]]:
    """Names of levels, and of their dimensions that may differ."""
    return {
        f'level_{i}': {0: BATCH, 2: f'{HEIGHT}_{i}', 3: f'{WIDTH}_{i}'}
        for i in range(levels)
    }


def keep_levels(backbone: nn.Module) -> list[Tensor]:
    """Have a backbone keep the levels that it returns.

    Args:
        backbone: The backbone; a copy that is made later keeps them too.

    Returns:
        A list that has the levels after each forward pass.
    """
    levels: list[Tensor] = []

    def keep(module: nn.Module, given: Any, found: Any) -> None:
        levels[:] = found

    backbone.register_forward_hook(keep)
    return levels


class WithLevels(nn.Module):
    """A graph that also returns the levels of its backbone.

    Args:
        graph: The graph, or what calls it.
        levels: From :func:`keep_levels`, called before the graph was made.
    """

    def __init__(self, graph: nn.Module, levels: list[Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.levels = levels

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the graph, then the levels."""
        return (*self.graph(image), *self.levels)


class RawImages(nn.Module):
    """A graph that takes raw images and normalises them itself.

    Args:
        graph: The graph, which takes normalised images.
        normalisation: How its images are normalised.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, graph: nn.Module, normalisation: ImageNormalisation
    ) -> None:
        super().__init__()
        self.graph = graph
        self.rgb = normalisation.rgb
        mean, std = (
            torch.tensor(x, dtype=torch.float64).view(1, -1, 1, 1)
            for x in (normalisation.mean, normalisation.std)
        )
        self.register_buffer('scale', (1 / std).float())
        self.register_buffer('shift', (-mean / std).float())

    def normalise(self, image: Tensor) -> Tensor:
        """``(N, H, W, 3)`` uint8 RGB to ``(N, 3, H, W)`` float32."""
        x = image.permute(0, 3, 1, 2).float()
        if not self.rgb:
            x = x.flip(1)
        return x * self.scale + self.shift

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(N, H, W, 3)`` uint8 RGB to the outputs of the graph."""
        return self.graph(self.normalise(image))


def pad_to_multiple(image: Tensor, divisor: int, value: float) -> Tensor:
    """Pad images at the right and the bottom, as data preprocessors do.

    Args:
        image: ``(N, C, H, W)``.
        divisor: Height and width become multiples of it.
        value: The padding.
    """
    if divisor <= 1:
        return image
    height, width = image.shape[-2:]
    return F.pad(
        image, (0, -width % divisor, 0, -height % divisor), value=value
    )
