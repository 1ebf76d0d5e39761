"""Layers with backward passes of their own: as PyTorch's, for less."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, vmap

from mmefficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod import ModulationBlock
from mmefficientmod.models.layers import fast_path
from mmefficientmod.models.layers.depthwise import depthwise_conv
from mmefficientmod.models.layers.memory_efficient import (
    gelu_linear,
    norm_linear,
    product_linear,
)

DIM, RATIO = 4, 3
# No attention, whose kernels PyTorch has no second derivatives of.
ARCH = dict(
    dims=(4, 8),
    depths=(2, 1),
    attn_depths=(0, 0),
    attn_mlp_ratios=(2, 2),
    expand_ratios=(1, 2),
)


class NormCase(nn.Module):
    """Two layers behind a norm."""

    def __init__(self, bias=True):
        super().__init__()
        self.norm = nn.LayerNorm(DIM, bias=bias)
        self.a = nn.Linear(DIM, 5, bias=bias)
        self.b = nn.Linear(DIM, 2, bias=bias)
        self.inputs = (torch.randn(2, 3, DIM),)

    def forward(self, x):
        return torch.cat(norm_linear(x, self.norm, self.a, self.b), -1)


class GeluCase(nn.Module):
    """A layer behind a GELU."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(DIM, 5)
        self.inputs = (torch.randn(2, 3, DIM),)

    def forward(self, x):
        return gelu_linear(x, self.a)


class ProductCase(nn.Module):
    """A layer behind value times context, with and without the rest."""

    def __init__(self, activate=True, scaled=True, added=True):
        super().__init__()
        self.a = nn.Linear(RATIO * DIM, 5)
        self.scale = nn.Parameter(torch.randn(5)) if scaled else None
        self.activate = activate
        self.inputs = torch.randn(2, 3, RATIO * DIM), torch.randn(2, 3, DIM)
        if added:
            self.inputs += (torch.randn(2, 3, 5),)

    def forward(self, value, context, residual=None):
        return product_linear(
            value, context, self.a, self.activate, self.scale, residual
        )


class DepthwiseCase(nn.Module):
    """A depth-wise convolution, in the layout that the backbone has."""

    def __init__(self, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=bias)
        x = torch.randn(2, 6, 4, 3)
        self.inputs = (x.permute(0, 3, 1, 2),)

    def forward(self, x):
        return depthwise_conv(x, self.conv)


CASES = {
    'depthwise': DepthwiseCase,
    'depthwise, no bias': lambda: DepthwiseCase(bias=False),
    'norm': NormCase,
    'norm, no bias': lambda: NormCase(bias=False),
    'gelu': GeluCase,
    'product': ProductCase,
    'product, no gelu': lambda: ProductCase(activate=False),
    'product, no scale': lambda: ProductCase(scaled=False),
    'product, not added': lambda: ProductCase(added=False),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    module = CASES[request.param]()
    for p in module.parameters():
        nn.init.normal_(p)
    return module


def call_modules(model):
    """Have each layer called as a module, which a hook makes necessary."""
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
            m.register_forward_hook(lambda *_: None)
    return model


def gradients(model, inputs, out_grad):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = model(*inputs)
    wanted = [*inputs, *model.parameters()]
    return out, torch.autograd.grad(out, wanted, out_grad)


def test_derivatives(case):
    """First and second, backward and forward, against differences."""
    case.double()
    params = dict(case.named_parameters())

    def function(*tensors):
        inputs = tensors[: len(case.inputs)]
        given = dict(zip(params, tensors[len(inputs) :], strict=True))
        return functional_call(case, given, inputs)

    tensors = [
        x.detach().double().requires_grad_()
        for x in (*case.inputs, *params.values())
    ]
    torch.autograd.gradcheck(
        function, tensors, check_forward_ad=True, check_batched_grad=True
    )
    torch.autograd.gradgradcheck(function, tensors)


def test_equals_the_modules(case):
    out_grad = torch.randn_like(case(*case.inputs))
    out, found = gradients(case, case.inputs, out_grad)
    plain, expected = gradients(call_modules(case), case.inputs, out_grad)
    torch.testing.assert_close(out, plain)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        copies = [x.clone() for x in case.inputs]
        torch.testing.assert_close(case(*copies), plain)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(case, dtype):
    """As exact as the modules are, one after another, under autocast."""
    if dtype == torch.float16 and torch.__version__ < '2.3':
        pytest.skip('torch 2.1 has no float16 autocast on a CPU')
    out_grad = torch.randn_like(case(*case.inputs))
    _, exact = gradients(case, case.inputs, out_grad)

    def error(model):
        with torch.autocast('cpu', dtype=dtype):
            inputs = [x.detach().requires_grad_() for x in case.inputs]
            out = model(*inputs)
        wanted = [*inputs, *model.parameters()]
        found = torch.autograd.grad(out, wanted, out_grad.to(out.dtype))
        assert [x.dtype for x in found] == [x.dtype for x in wanted]
        return torch.tensor(
            [
                (a - b).norm() / b.norm()
                for a, b in zip(found, exact, strict=True)
            ]
        )

    ours, plain = error(case), error(call_modules(case))
    # The bound is the resolution of the type where the modules are exact.
    assert (ours <= 1.5 * plain + torch.finfo(dtype).eps).all()


def test_keeps_its_operands_alone(case):
    kept = set()

    def pack(x):
        kept.add(x.untyped_storage().data_ptr())
        return x

    inputs = [x.clone().requires_grad_() for x in case.inputs]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = case(*inputs)
    own = {
        x.untyped_storage().data_ptr() for x in (*inputs, *(case.parameters()))
    }
    assert kept <= own
    assert out.requires_grad


def test_layers_that_are_more_than_weights_are_called():
    class Lora(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    x = torch.randn(2, DIM)
    norm, plain, lora = nn.LayerNorm(DIM), nn.Linear(DIM, 3), Lora(DIM, 3)
    lora.load_state_dict(plain.state_dict())
    (expected,) = norm_linear(x, norm, plain)
    (found,) = norm_linear(x, norm, lora)
    torch.testing.assert_close(found, expected + 1)
    patched = nn.Linear(DIM, 3)
    patched.forward = lambda x: plain(x) + 2
    (found,) = norm_linear(x, norm, patched)
    torch.testing.assert_close(found, expected + 2)
    seen = []
    plain.register_full_backward_hook(lambda *_: seen.append(1))
    gelu_linear(x.requires_grad_(), plain).sum().backward()
    assert seen


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('deployed', [False, True])
def test_large_images_go_in_parts(monkeypatch, deployed, autocast):
    """No tensor as wide as the value of all pixels, and the same numbers."""
    torch.manual_seed(0)
    block = ModulationBlock(8, 3, 0.0, 1.0).eval()
    x = torch.randn(2, 5, 7, 8)
    if deployed:
        with torch.no_grad():
            block.fold()
    rows = []

    def linear(x, weight, bias=None, linear=F.linear):
        if len(weight) == 24:
            rows.append(x.shape[:-1].numel())
        return linear(x, weight, bias)

    monkeypatch.setattr(F, 'linear', linear)
    outs = []
    for part_bytes in fast_path.PART_BYTES, 500:
        monkeypatch.setattr(fast_path, 'PART_BYTES', part_bytes)
        with torch.no_grad(), torch.autocast('cpu', enabled=autocast):
            outs.append(block(x))
    assert rows[0] == 70
    assert len(rows) > 10
    assert sum(rows[1:]) == 70
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-6)
    # Whoever looks at a layer sees it once, with all pixels.
    rows.clear()
    block.mlp.fc1.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        torch.testing.assert_close(block(x), outs[0], rtol=0.02, atol=0.02)
    assert rows == [70]


def test_large_batches_in_bfloat16():
    """The gradient of the kernel is summed over the images in float32."""
    case = DepthwiseCase()
    x = torch.randn(64, 3, 6, 4)
    out_grad = torch.randn_like(x)
    _, exact = gradients(case, (x,), out_grad)

    def error(model):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = model(x)
        (found,) = torch.autograd.grad(
            out, [model.conv.weight], out_grad.to(out.dtype)
        )
        return (found - exact[1]).norm() / exact[1].norm()

    own = error(case)
    assert own <= 1.5 * error(call_modules(case)) + 1e-3


def test_frozen_weights_leave_it_to_pytorch():
    case = ProductCase().requires_grad_(False)
    inputs = [x.clone().requires_grad_() for x in case.inputs]
    assert 'ProductLinear' not in type(case(*inputs).grad_fn).__name__
    assert 'ProductLinear' in type(ProductCase()(*inputs).grad_fn).__name__


def test_value_and_context_of_two_types():
    case = ProductCase(added=False)
    value, context = (x.clone().requires_grad_() for x in case.inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        case(value.bfloat16(), context).sum().backward()
    assert value.grad.isfinite().all()
    assert context.grad.isfinite().all()


def test_functional_transforms():
    """Gradients for each sample, second derivatives, dual numbers."""
    torch.manual_seed(0)
    model = EfficientMod(ARCH, out_indices=(0, 1)).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    params = dict(model.named_parameters())
    images = torch.randn(2, 3, 9, 8, dtype=torch.double)

    def loss(params, x):
        return sum(y.square().sum() for y in functional_call(model, params, x))

    expected = torch.autograd.grad(loss(params, images), [*params.values()])
    whole = grad(loss)(params, images)
    each = vmap(grad(loss), (None, 0))(params, images.unsqueeze(1))
    for a, b, c in zip(expected, whole.values(), each.values(), strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c.sum(0), a)

    small = images[:1, :, :5, :4]
    second = hessian(lambda x: loss(params, x))(small).reshape(60, 60)
    torch.testing.assert_close(second, second.T)
    direction = torch.randn_like(small)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(small, direction)
        slope = forward_ad.unpack_dual(loss(params, dual)).tangent
    start = small.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(params, start), start)
    torch.testing.assert_close(slope, (gradient * direction).sum())


def test_bytes_of_a_block():
    """What a block of the paper's expansion by 6 keeps, in channels.

    Its input, the input and output of the convolution, the context and the
    six times wider value.
    """
    model = EfficientMod(
        dict(ARCH, depths=(1, 1), expand_ratios=(6,)), out_indices=0
    )
    block = model.stages[0].blocks[0]
    x = torch.randn(1, 5, 7, 4, requires_grad=True)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = block(x)
    for p in model.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) == (1 + 1 + 1 + 1 + 6) * x.nbytes
    assert out.shape == x.shape
