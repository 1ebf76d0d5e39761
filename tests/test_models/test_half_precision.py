"""Hand-written backward passes with the largest and smallest float16."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmefficientmod.models.layers import memory_efficient
from mmefficientmod.models.layers.depthwise import depthwise_conv

# The largest finite float16 is 65504, the smallest above 0 5.96e-8.
SCALES = (6e4, 1.0, 6e-8)
DIM, RATIO = 8, 3


class Layers(nn.Module):
    """The layers of a block; no weight amplifies its input."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.f = nn.Linear(DIM, DIM)
        self.fc1 = nn.Linear(DIM, RATIO * DIM)
        self.fc2 = nn.Linear(RATIO * DIM, DIM)
        self.conv = nn.Conv2d(DIM, DIM, 7, padding=3, groups=DIM)
        self.scale = nn.Parameter(torch.rand(DIM))
        for p in self.parameters():
            if p.ndim > 1:
                p.data /= p.data.flatten(1).abs().sum(1).amax()


def norm_linear(m, x, fast):
    if fast:
        return memory_efficient.norm_linear(x, m.norm, m.f, m.fc1)
    x = m.norm(x)
    return m.f(x), m.fc1(x)


def linear(m, x, fast):
    return (memory_efficient.linear(x, m.f) if fast else m.f(x),)


def mlp(m, x, fast):
    if fast:
        return (memory_efficient.gelu_mlp(x, m.fc1, m.fc2),)
    return (m.fc2(F.gelu(m.fc1(x))),)


def product_linear(m, x, fast):
    value, context = m.fc1(x), m.f(x)
    if fast:
        return (
            memory_efficient.product_linear(
                value, context, m.fc2, True, m.scale, x
            ),
        )
    value = F.gelu(value).unflatten(-1, (RATIO, -1))
    return (x + m.scale * m.fc2((value * context.unsqueeze(-2)).flatten(-2)),)


def depthwise(m, x, fast):
    x = x.permute(0, 3, 1, 2)
    return (depthwise_conv(x, m.conv) if fast else m.conv(x),)


def gradients(function, layers, x, grads, fast, dtype=None):
    """Gradients of the input and of all weights, in float64."""
    x = x.detach().requires_grad_()
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        outs = function(layers, x, fast)
    given = [
        grad[..., : out.numel()].view(out.shape).to(out.dtype)
        for grad, out in zip(grads, outs, strict=False)
    ]
    found = torch.autograd.grad(
        outs, [x, *layers.parameters()], given, allow_unused=True
    )
    return [g.double() for g in found if g is not None]


@pytest.mark.parametrize('autocast', [True, False])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'function', [norm_linear, linear, mlp, product_linear, depthwise]
)
def test_gradients_overflow_only_where_those_of_pytorch_do(
    function, dtype, autocast
):
    if dtype == torch.float16 and torch.__version__ < '2.3':
        pytest.skip('torch 2.1 has few float16 operations on a CPU')
    torch.manual_seed(0)
    layers = Layers()
    signs = torch.rand(2, 9, 9, DIM) - 0.5
    numbers = 1 - 0.5 * torch.rand(2, 9, 9, DIM)  # from 0.5 to 1
    grads = [1 - 0.5 * torch.rand(2 * 81 * RATIO * DIM) for _ in range(2)]
    for of_input, of_gradient in itertools.product(SCALES, repeat=2):
        x = of_input * numbers * signs.sign()
        given = [of_gradient * g for g in grads]
        exact = gradients(
            function,
            copy.deepcopy(layers).double(),
            x.double(),
            [g.double() for g in given],
            False,
        )
        if autocast:
            args = function, layers, x, given
            own, found = (
                gradients(*args, fast, dtype) for fast in (False, True)
            )
        else:
            low = copy.deepcopy(layers).to(dtype)
            args = function, low, x.to(dtype), given
            own, found = (gradients(*args, fast) for fast in (False, True))
        where = f'inputs near {of_input}, gradients near {of_gradient}'
        for ours, theirs, reference in zip(found, own, exact, strict=True):
            finite = theirs.isfinite()
            assert ours[finite].isfinite().all(), where
            ours, theirs, reference = (
                g[finite] for g in (ours, theirs, reference)
            )
            error, allowed = ((g - reference).norm() for g in (ours, theirs))
            bound = 4 * torch.finfo(dtype).eps * reference.norm()
            assert error <= 3 * allowed + bound, where
