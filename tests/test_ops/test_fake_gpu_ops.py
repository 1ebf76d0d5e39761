"""The stand-in on a GPU that is not there: devices, dtypes and shapes."""

from types import SimpleNamespace

import pytest
import torch
from cases import CASES, Maker
from fake_gpu import NEEDS_FAKES, fake_gpu

from mmefficientmod.ops import kernels

# PyTorch's engine, which this one calls, needs a GPU.
OPS = SimpleNamespace(
    **{**vars(kernels), 'ms_deform_attn_backward': lambda *_, **__: None}
)
DTYPES = [
    torch.float16,
    pytest.param(torch.float32, marks=pytest.mark.slow),
    pytest.param(torch.bfloat16, marks=pytest.mark.slow),
]


@NEEDS_FAKES
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    'op',
    [
        # Reads each value, which takes fake tensors a second.
        pytest.param(op, marks=pytest.mark.slow if op == 'nms_match' else ())
        for op in CASES
    ],
)
def test_op_stays_on_the_gpu(op: str, dtype: torch.dtype) -> None:
    expected = [
        case(kernels) for case in CASES[op](Maker(lambda t: t.to(dtype)))
    ]
    with fake_gpu():
        make = Maker(lambda t: t.to('cuda', dtype), 'cuda')
        found = [case(OPS) for case in CASES[op](make)]
    for ours, reference in zip(found, expected, strict=True):
        for name, x in ours.items():
            if op != 'nms_match':  # returns numbers
                assert x.device.type == 'cuda'
            assert x.dtype == reference[name].dtype
            assert x.ndim == reference[name].ndim
