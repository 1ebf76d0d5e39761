"""Comparing an exported file with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config

from mmefficientmod.apis.export_options import ExportOptions
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import input_size
from mmefficientmod.deploy.checking import Difference, compare
from mmefficientmod.deploy.graph import (
    ExportGraph,
    RawImages,
    named_arrays,
)
from mmefficientmod.deploy.images import as_batch
from mmefficientmod.models.normalisation import ImageNormalisation

# Runs a file on images; see ExportedFile.run.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]
# The check of a detector varies its images by rounding, so often, if objects
# differ.
ROUNDING, VARIATIONS = 1e-6, 4


@dataclass(frozen=True)
class Check:
    """A comparison of the file with PyTorch.

    Attributes:
        shape: Images, height and width.
        difference: What differs.
    """

    shape: tuple[int, int, int]
    difference: Difference


def check_file(
    run: Run,
    graph: ExportGraph,
    normalisation: ImageNormalisation,
    images: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, int, int]],
    options: ExportOptions,
) -> Iterator[Check]:
    """Compare a file with PyTorch.

    Args:
        run: Runs the file on images, and returns its outputs by name.
        graph: The graph of the model as it was trained.
        normalisation: How its images are normalised.
        images: Each ``(H, W, 3)`` uint8 RGB.
        shapes: Number, height and width of the images of each comparison.
        options: What was exported, and how.

    Yields:
        The comparisons that are within the tolerance.

    Raises:
        ConfigError: If one is not.
    """
    raw = RawImages(graph, normalisation)
    for shape in shapes:
        batch = as_batch(images, *shape)
        image = raw.normalise(torch.from_numpy(batch)).numpy()
        expected = named_arrays(graph.reference, graph.outputs, image)
        found = run(batch if options.preprocess else image)
        difference = compare(found, expected)
        if not difference.within(options.allowed) and graph.task == 'det':
            rng = np.random.default_rng(0)
            others = [
                named_arrays(graph.reference, graph.outputs, varied)
                for varied in (
                    (
                        image * (1 + ROUNDING * rng.normal(size=image.shape))
                    ).astype(np.float32)
                    for _ in range(VARIATIONS)
                )
            ]
            difference = compare(found, expected, others)
        if not difference.within(options.allowed):
            number, height, width = shape
            remedy = (
                f'; export it for one size, such as --size {height}x{width}'
                if shape != shapes[0] and options.size is None
                else ''
            )
            raise ConfigError(
                f'the file differs from PyTorch for {number} images of '
                f'{height}x{width} pixels ({difference.text}), more than '
                f'--tolerance {options.allowed:g}, so it is not written'
                f'{remedy}'
            )
        yield Check(shape, difference)


def find_divisor(graph: ExportGraph) -> int:
    """What height and width must be multiples of: 1, or 32.

    Some models cannot add the levels of other sizes, and their configs pad
    the images before the model gets them.
    """
    image = np.zeros((1, 3, 65, 101), np.float32)
    try:
        named_arrays(graph.reference, graph.outputs, image)
    except RuntimeError:
        return 32
    return 1


def check_shapes(
    cfg: Config, options: ExportOptions, divisor: int = 1
) -> list[tuple[int, int, int]]:
    """Number, height and width of the images of each comparison.

    Where the size may differ, there are three other sizes, of any divisor;
    where the number may differ, another number.

    Args:
        cfg: The config of the model.
        options: What is exported.
        divisor: Heights and widths of other sizes are multiples of it.
            Default: 1.
    """
    height, width = options.size or input_size(cfg)
    batch = options.batch or 1
    shapes = [(batch, height, width)]
    if options.size is None:
        sizes = (
            (height * 3 // 4 + 1, width // 2 + 3),
            (height // 2 + 5, width),
            (height + 37, width + 18),
        )
        shapes += [
            (batch, -(-h // divisor) * divisor, -(-w // divisor) * divisor)
            for h, w in sizes
        ]
    if options.batch is None:
        shapes.append((3, *shapes[-1][1:]))
    return shapes
