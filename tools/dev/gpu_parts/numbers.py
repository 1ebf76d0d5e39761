"""Part 1: outputs and gradients on the GPU against float64 on the CPU."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from mmefficientmod import EfficientMod
from mmefficientmod.benchmark.cases import DTYPES
from mmefficientmod.ops import kernels

from .job import Job, Row, Setup, checkout, full_float32

FEATURES = 'Features and gradients against float64 on the CPU'
OPS = "The ops that stand in for mmcv's, against the CPU"
VECTORS = "Outputs against those of the authors' code"
# Largest error in float32, relative to the norm of a tensor. The statistics
# of the branches' batch norms are sums over all positions, which round more.
TOLERANCE = 1e-5
TOLERANCE_OF_BRANCHES = 5e-5
# Ops whose output is a choice among boxes, which rounding can change.
CHOICES = ('nms', 'softnms', 'nms_match')


def jobs(setup: Setup) -> list[Job]:
    """All jobs, those of most worth first."""
    archs = setup.pick(('s', 's_conv', 'xxs', 'xs'), ('tiny',))
    # PyTorch 2.1 has no autocast to fp16 on a CPU.
    low = setup.pick(('fp16', 'bf16'), ('bf16',))
    found: list[Job] = []

    def add(name: str, function: Any, *args: Any) -> None:
        found.append(Job(name, functools.partial(function, setup, *args)))

    for arch in archs:
        add(f'{arch}, fp32', compare, arch, 'fp32')
    for arch in setup.pick(('s', 's_conv'), ('s',)):
        add(f'official vectors, {arch}', compare_with_vectors, arch)
    for arch in archs[:2]:
        for dtype in low:
            add(f'{arch}, {dtype}', compare, arch, dtype)
        add(f'{arch}, deployed', compare_deployed, arch, {})
    for op in checkout('tests/test_ops/cases.py').CASES:
        add(f'op {op}', compare_op, op)
    branches = dict(reparam=True)
    for arch in archs[:2]:
        add(f'{arch}, branches', compare, arch, 'fp32', branches)
        add(f'{arch}, merged', compare_deployed, arch, branches)
        add(f'{arch}, with_cp', compare, arch, 'fp32', dict(with_cp=True))
    for arch in archs[2:]:
        for dtype in low:
            add(f'{arch}, {dtype}', compare, arch, dtype)
        add(f'{arch}, deployed', compare_deployed, arch, {})
    return found


# ------------------------------------------------------------------- models


def build(arch: str, options: dict[str, Any]) -> nn.Module:
    """A variant without stochastic depth; its weights depend on nothing else.

    Args:
        arch: Name of a variant, or ``tiny`` for the tests' small one.
        options: Further arguments of EfficientMod.
    """
    helpers = checkout('tests/helpers.py')
    model = EfficientMod(
        helpers.TINY if arch == 'tiny' else arch,
        drop_path_rate=0.0,
        **options,
    )
    return helpers.randomise(model)


def image_sizes(setup: Setup) -> Sequence[tuple[int, int]]:
    """Height and width: even, and odd at each stride."""
    return setup.pick(((128, 128), (97, 131)), ((33, 47),))


def outputs(
    model: nn.Module, size: tuple[int, int], dtype: str = 'fp32'
) -> tuple[list[Tensor], list[Tensor]]:
    """Features, and the gradients of all parameters, on the CPU in float64.

    The gradients are those of a random weighted sum of all features; empty
    for a folded model.

    Args:
        model: In the mode and on the device in which it shall run.
        size: Height and width of the images.
        dtype: A key of ``DTYPES``; other types than fp32 are autocast's.
    """
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like)

    model.zero_grad(set_to_none=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    with (
        torch.set_grad_enabled(bool(trained)),
        torch.autocast(
            like.device.type,
            torch.bfloat16 if dtype == 'fp32' else DTYPES[dtype],
            enabled=dtype != 'fp32',
        ),
    ):
        features = list(model(draw(2, 3, *size)))
    if trained:
        weights = [draw(*x.shape).to(x.dtype) for x in features]
        torch.autograd.backward(features, weights)
    gradients = [p.grad for p in trained if p.grad is not None]
    return to_reference(features), to_reference(gradients)


def to_reference(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU in float64."""
    return [x.detach().cpu().double() for x in tensors]


def error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Norm of the difference, relative to that of the tensor; the largest."""
    return max(
        ((x - y).norm() / y.norm().clamp_min(1e-30)).item()
        for x, y in zip(found, expected, strict=True)
    )


@contextlib.contextmanager
def pytorch_layers() -> Iterator[None]:
    """Let no block take its fast path, so that PyTorch's own layers run.

    A hook that all modules have to call keeps the fast path from running.
    """
    handle = register_module_forward_hook(lambda *args: None)
    try:
        yield
    finally:
        handle.remove()


# --------------------------------------------------------------------- jobs


def compare(
    setup: Setup, arch: str, dtype: str, options: dict[str, Any] | None = None
) -> list[Row]:
    """Features and gradients of a variant in training mode.

    In a lower precision the error may be twice that of PyTorch's own layers,
    plus the rounding of the format.
    """
    options = options or {}
    model = build(arch, options).train()
    double = copy.deepcopy(model).double()
    model.to(setup.device)
    rows = []
    for size in image_sizes(setup):
        expected = outputs(double, size)
        with full_float32():
            found = outputs(model, size, dtype)
            if dtype == 'fp32':
                plain = None
            else:
                with pytorch_layers():
                    plain = outputs(model, size, dtype)
        for number, kind in enumerate(('features', 'gradients')):
            bound = (
                TOLERANCE_OF_BRANCHES if 'reparam' in options else TOLERANCE
            )
            own = None
            if plain is not None:
                own = error(plain[number], expected[number])
                bound = 2 * own + torch.finfo(DTYPES[dtype]).eps
            rows.append(
                make_row(
                    ', '.join([arch, *options]),
                    dtype,
                    size,
                    kind,
                    error(found[number], expected[number]),
                    bound,
                    own,
                )
            )
    return rows


def compare_deployed(
    setup: Setup, arch: str, options: dict[str, Any]
) -> list[Row]:
    """Features of a folded variant against those before it was folded."""
    model: Any = build(arch, options).eval()
    double = copy.deepcopy(model).double()
    model.to(setup.device).switch_to_deploy()
    rows = []
    for size in image_sizes(setup):
        expected, _ = outputs(double, size)
        with full_float32():
            found, _ = outputs(model, size)
        name = ', '.join([arch, *options, 'deployed'])
        rows.append(
            make_row(
                name,
                'fp32',
                size,
                'features',
                error(found, expected),
                TOLERANCE,
            )
        )
    return rows


def make_row(
    model: str,
    dtype: str,
    size: tuple[int, int],
    kind: str,
    difference: float,
    bound: float,
    own: float | None = None,
) -> Row:
    """A row of :data:`FEATURES`, which fails above the bound."""
    values = {
        'model': model,
        'dtype': dtype,
        'image': f'2x{size[0]}x{size[1]}',
        'what': kind,
        'error': difference,
        "PyTorch's layers": own,
        'bound': bound,
    }
    failed = None
    if not difference <= bound:  # also true of NaN
        failed = (
            f'{model}, {dtype}, {kind}: error {difference:.1e}, bound '
            f'{bound:.1e}'
        )
    return Row(FEATURES, values, failed)


def compare_with_vectors(setup: Setup, arch: str) -> list[Row]:
    """Features against the samples that the authors' code gave."""
    helpers = checkout('tests/helpers.py')
    vectors = helpers.OFFICIAL[arch]
    image = np.random.default_rng(0).standard_normal(vectors['input_shape'])
    model = helpers.official_model(arch, torch.float32).to(setup.device)
    with full_float32(), torch.no_grad():
        features = model(torch.from_numpy(image).float().to(setup.device))
    failed = None
    try:
        for feature, vector in zip(features, vectors['features'], strict=True):
            helpers.assert_matches(feature.cpu(), vector, TOLERANCE)
    except AssertionError as difference:
        failed = f'{arch}: {" ".join(str(difference).split())[:150]}'
    agree = 'no' if failed else 'yes'
    return [Row(VECTORS, {'model': arch, 'agrees within 1e-5': agree}, failed)]


def compare_op(setup: Setup, op: str) -> list[Row]:
    """An op, forward and backward, in float64 and float32."""
    cases = checkout('tests/test_ops/cases.py')
    rows = []
    for dtype in (torch.float64, torch.float32):
        if dtype == torch.float32 and op in CHOICES:
            continue
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        worst = 0.0
        with full_float32():
            on_cpu, on_device = (
                [
                    case(kernels)
                    for case in cases.CASES[op](
                        cases.Maker(
                            functools.partial(cast, device, dtype),
                            device,
                            large=not setup.dry,
                        )
                    )
                ]
                for device in (torch.device('cpu'), setup.device)
            )
        for one, two in zip(on_device, on_cpu, strict=True):
            for found, expected in zip(
                one.values(), two.values(), strict=True
            ):
                worst = max(worst, largest_difference(found, expected))
        name = str(dtype).removeprefix('torch.')
        values = {'op': op, 'dtype': name, 'cases': len(on_cpu)}
        failed = None
        if not worst <= tolerance:
            failed = f'{op}, {name}: differs by {worst:.1e} of the largest'
        rows.append(Row(OPS, values | {'differs': worst}, failed))
    return rows


def cast(device: torch.device, dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """The tensor on a device and in a dtype."""
    return tensor.to(device, dtype)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value; inf for shapes."""
    if found.shape != expected.shape:
        return float('inf')
    if not expected.numel():
        return 0.0
    one, two = found.cpu().double(), expected.double()
    return ((one - two).abs().max() / two.abs().max().clamp_min(1)).item()
