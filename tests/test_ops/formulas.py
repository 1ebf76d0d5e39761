"""Formulas of mmcv's ops, written as loops over single numbers."""

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

EMPTY = torch.empty(0)  # for arguments that the stand-in does not use


def uniform(*size: int, low: float = 0, high: float = 1) -> Tensor:
    return torch.rand(*size, dtype=torch.float64) * (high - low) + low


def random_boxes(count: int) -> Tensor:
    corner = uniform(count, 2, high=20)
    return torch.cat([corner, corner + uniform(count, 2, low=2, high=15)], 1)


def between_pixels(*size: int) -> Tensor:
    """Offsets off the pixel grid, where interpolation has a derivative."""
    whole = torch.randint(-2, 2, size)
    return whole + uniform(*size, low=0.2, high=0.8)


def area(box: list[float], offset: int) -> float:
    return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)


def common_area(a: list[float], b: list[float], offset: int) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    return max(width, 0) * max(height, 0)


def iou(a: list[float], b: list[float], offset: int) -> float:
    common = common_area(a, b, offset)
    return common / (area(a, offset) + area(b, offset) - common)


def pixel(image: list[list[float]], y: int, x: int) -> float:
    inside = 0 <= y < len(image) and 0 <= x < len(image[0])
    return image[y][x] if inside else 0.0


def bilinear(image: list[list[float]], y: float, x: float) -> float:
    """Interpolated value at a point; 0 outside of the image."""
    top, left = math.floor(y), math.floor(x)
    return sum(
        pixel(image, top + dy, left + dx)
        * (1 - abs(y - top - dy))
        * (1 - abs(x - left - dx))
        for dy, dx in product((0, 1), (0, 1))
    )


def clamped_bilinear(image: list[list[float]], y: float, x: float) -> float:
    """Interpolated value; up to a pixel outside that of the border, then 0."""
    height, width = len(image), len(image[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    return bilinear(image, y, x)


def indices(*size: int) -> Iterator[tuple[int, ...]]:
    """All indices of a tensor of a size."""
    return product(*map(range, size))
