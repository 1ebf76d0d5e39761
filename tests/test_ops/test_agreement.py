"""The stand-in on the cases of all ops: dtypes, layouts, devices, mmcv.

``test_agrees_with_compiled_mmcv`` runs each case with a compiled mmcv, too,
where one is installed in place of the plain one:

    python -m pytest tests/test_ops -k compiled_mmcv -rs
"""

import importlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CASES, Maker
from torch import Tensor
from torch.testing import assert_close

from mmefficientmod.ops import is_standin, kernels

CUDA = pytest.param(
    'cuda',
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(
            not torch.cuda.is_available(), reason='needs a GPU'
        ),
    ],
)
DEVICES = ['cpu', CUDA]
# Differences from a compiled mmcv, relative to the largest value of a tensor,
# in units in the last place.
TOLERANCE = 1e-5 / torch.finfo(torch.float32).eps
# How a compiled mmcv refuses an op without a kernel for a device or a dtype.
NOT_COMPILED = re.compile(
    r'implementation for device .* not found|expected scalar type'
    r'|not implemented for|not compiled with'
)
each_op = pytest.mark.parametrize('op', CASES)


def run_all(
    op: str, make: Maker, ops: Any = kernels
) -> list[dict[str, Tensor]]:
    """What each case of an op gives."""
    return [case(ops) for case in CASES[op](make)]


def pairs(
    first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of the same name of two runs."""
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        yield from zip(one.values(), two.values(), strict=True)


def test_every_op_has_a_case() -> None:
    called = set()

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            called.add(name)
            return getattr(kernels, name)

    for op in CASES:
        run_all(op, Maker(torch.Tensor.float), Recorder())
    reports = {'get_compiler_version', 'get_compiling_cuda_version'}
    assert called == {*kernels.__all__} - reports


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@each_op
def test_half_precision_is_float32_rounded(
    op: str, dtype: torch.dtype, device: str
) -> None:
    half = run_all(op, Maker(lambda t: t.to(device, dtype), device))
    full = run_all(op, Maker(lambda t: t.to(device, dtype).float(), device))
    for ours, exact in pairs(half, full):
        if exact.is_floating_point():
            assert ours.dtype == dtype
        assert_close(ours, exact.to(ours.dtype))


@each_op
def test_layout_in_memory_does_not_matter(op: str) -> None:
    def spread(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor + 7], -1)[..., 0]

    class SpreadOps:
        """The stand-in, with every tensor passed in another layout."""

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                tensors = [spread(t) for t in args]
                result = getattr(kernels, name)(*tensors, **options)
                for given, used in zip(args, tensors, strict=True):
                    given.copy_(used)
                return result

            return call

    assert not spread(torch.ones(2, 3)).is_contiguous()
    expected = run_all(op, Maker(torch.Tensor.double))
    found = run_all(op, Maker(torch.Tensor.double), SpreadOps())
    for ours, reference in pairs(found, expected):
        assert_close(ours, reference)


@pytest.mark.parametrize('device', [CUDA])
@each_op
def test_gpu_agrees_with_cpu(op: str, device: str) -> None:
    on_cpu = run_all(op, Maker(torch.Tensor.double, large=True))
    on_gpu = run_all(op, Maker(lambda t: t.to(device), device, large=True))
    for ours, reference in pairs(on_gpu, on_cpu):
        assert_close(ours.cpu(), reference)


@pytest.fixture
def compiled_mmcv() -> ModuleType:
    """The ops of a compiled mmcv."""
    if is_standin():
        pytest.skip('mmcv has no compiled ops here')
    return importlib.import_module('mmcv._ext')


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@each_op
def test_agrees_with_compiled_mmcv(
    op: str, dtype: torch.dtype, device: str, compiled_mmcv: ModuleType
) -> None:
    tolerance = TOLERANCE * torch.finfo(dtype).eps
    compared, reason = 0, ''
    make = Maker(lambda t: t.to(device, dtype), device, large=True)
    for case in CASES[op](make):
        try:
            expected = case(compiled_mmcv)
        except RuntimeError as error:
            if not NOT_COMPILED.search(str(error)):
                raise
            reason = str(error).splitlines()[0]
            continue
        compared += 1
        for ours, reference in pairs([case(kernels)], [expected]):
            atol = 0.0
            if reference.is_floating_point() and reference.numel():
                atol = tolerance * reference.abs().max().item()
            assert_close(ours, reference, rtol=0, atol=atol)
    if not compared:
        pytest.skip(f'mmcv did not compile it: {reason}')
