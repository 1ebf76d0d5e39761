"""The fast path of blocks: equal to the equations, and when it runs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, vmap
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from torch.testing import assert_close

from mmefficientmod import EdgeViT, EfficientMod
from mmefficientmod.models.backbones import edgevit, efficientmod
from mmefficientmod.models.backbones.edgevit import Mlp
from mmefficientmod.models.backbones.efficientmod import (
    AttentionBlock,
    MBConvBlock,
    ModulationBlock,
)
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    MBCONV_ARCHS,
)
from mmefficientmod.models.layers import fast_path, matmul
from mmefficientmod.models.layers.depthwise import depthwise_conv
from mmefficientmod.models.layers.fast_path import FastPath
from mmefficientmod.models.layers.memory_efficient import (
    add_scaled,
    gelu_linear,
    multiply,
    norm_linear,
    product_linear,
)
from mmefficientmod.models.layers.reparam import ParallelBranches

# Variants with their own depths, ratios and blocks, but few channels.
NARROW = dict(dims=(8, 16, 24, 32))
VARIANTS = {
    **{
        arch: dict(arch={**settings, **NARROW, 'drop_path_rate': 0.0})
        for arch, settings in (ARCHS | MBCONV_ARCHS).items()
    },
    'xxs, reparam': dict(
        arch={**ARCHS['xxs'], **NARROW}, reparam=(5, 'identity')
    ),
    'xs, no layer scale': dict(
        arch={**ARCHS['xs'], **NARROW}, layer_scale_init_value=0
    ),
}
TINY = dict(
    dims=(4, 8),
    depths=(2, 1),
    attn_depths=(0, 1),
    attn_mlp_ratios=(2, 2),
    expand_ratios=(1, 2),
)
# PyTorch has no second derivatives of its attention kernel.
WITHOUT_ATTENTION = dict(TINY, attn_depths=(0, 0))


def modulation(expand_ratio=3, gamma=1.0, drop_path=0.0, branches=()):
    block = ModulationBlock(8, expand_ratio, drop_path, gamma)
    if branches:
        block.mlp.context.branches = ParallelBranches(8, branches)
    return block


BLOCKS = {
    'modulation, r=1': lambda: modulation(1),
    'modulation, r=3': modulation,
    'no layer scale': lambda: modulation(gamma=0),
    'drop path': lambda: modulation(drop_path=0.3),
    'branches': lambda: modulation(branches=(3, 'identity')),
    'mbconv': lambda: MBConvBlock(8, 1.3, 0.0, 1.0),
    'attention': lambda: AttentionBlock(8, 2, 0.0),
    'attention, drop path': lambda: AttentionBlock(8, 2, 0.3),
    'mlp of EdgeViT': lambda: Mlp(8),
}


@pytest.fixture(params=BLOCKS)
def block(request):
    torch.manual_seed(0)
    return randomise(BLOCKS[request.param]())


@pytest.fixture
def plain(monkeypatch):
    """Call a function while the fast path of every block is off.

    Each block then computes its equation by calling its modules.
    """

    def call(function, *args):
        with monkeypatch.context() as patch:
            for module in edgevit, efficientmod:
                patch.setattr(module, 'may_run', lambda *_: False)
            return function(*args)

    return call


@pytest.fixture
def fast_calls(monkeypatch):
    """The blocks whose fast path ran."""
    calls = []
    run = FastPath.__call__

    def record(self, block, x):
        calls.append(block)
        return run(self, block, x)

    monkeypatch.setattr(FastPath, '__call__', record)
    return calls


def gradients(model, image):
    """Outputs of a model, and gradients of all its weights and its input."""
    torch.manual_seed(0)  # of the drop path
    image = image.detach().requires_grad_()
    outs = model(image)
    outs = outs if isinstance(outs, tuple) else (outs,)
    loss = sum(x.float().square().mean() for x in outs)
    wanted = [image, *model.parameters()]
    return [*outs, *torch.autograd.grad(loss, wanted)]


def num_blocks(model):
    return sum(hasattr(type(m), 'fast_path') for m in model.modules())


# ------------------------------------------------------------- equal to plain


@pytest.mark.parametrize('variant', VARIANTS)
def test_variant_equals_its_equations(variant, plain, fast_calls):
    model = randomise(EfficientMod(**VARIANTS[variant])).double().train()
    # Small, as convolutions in float64 are slow.
    image = torch.randn(2, 3, 35, 22, dtype=torch.double)
    found = gradients(model, image)
    assert len(fast_calls) == num_blocks(model)
    expected = plain(gradients, model, image)
    assert len(fast_calls) == num_blocks(model)
    assert_close(found, expected, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        outs = model.eval()(image)
        assert len(fast_calls) == 2 * num_blocks(model)
        assert_close(outs, plain(model, image), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', [(64, 64), (33, 130), (7, 5)], ids=str)
def test_low_precision_is_as_exact_as_the_equations(dtype, size, plain):
    model = randomise(EfficientMod(TINY, out_indices=(0, 1)))
    image = torch.randn(2, 3, *size)
    exact = gradients(copy.deepcopy(model).double(), image.double())
    model, image = model.to(dtype), image.to(dtype)
    assert_as_exact(
        gradients(model, image), plain(gradients, model, image), exact, dtype
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_is_as_exact_as_the_equations(block, dtype, plain):
    if dtype == torch.float16 and torch.__version__ < '2.3':
        pytest.skip('torch 2.1 has no float16 autocast on a CPU')
    x = torch.randn(2, 5, 7, 8)
    exact = gradients(copy.deepcopy(block).double(), x.double())

    def run():
        with torch.autocast('cpu', dtype=dtype):
            return gradients(block, x)

    found = run()
    for a, p in zip(found[1:], [x, *block.parameters()], strict=True):
        assert a.dtype == p.dtype
    assert_as_exact(found, plain(run), exact, dtype)


def assert_as_exact(found, plain, exact, dtype):
    """The rounding errors are those of the equations, up to a factor of 3."""

    def errors(tensors):
        return torch.tensor(
            [
                ((a.double() - b).norm() / b.norm()).item()
                for a, b in zip(tensors, exact, strict=True)
                if b.norm() > 1e-6
            ]
        )

    # The bound is the dtype's resolution where the equations are exact.
    bound = 3 * errors(plain) + 4 * torch.finfo(dtype).eps
    assert (errors(found) <= bound).all()


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('autocast', [False, True])
def test_inference_leaves_input_and_weights_unchanged(
    block, mode, autocast, plain
):
    block.eval()
    x = torch.randn(2, 5, 7, 8)
    before = copy.deepcopy((x, block.state_dict()))
    with mode(), torch.autocast('cpu', enabled=autocast):
        found, expected = block(x), plain(block, x)
    tolerance = 2e-2 if autocast else 1e-5
    assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert_close((x, block.state_dict()), before, rtol=0, atol=0)


def test_drop_path_acts_in_training_mode_without_gradients(plain):
    block = randomise(modulation(drop_path=0.5)).train()
    x = torch.randn(8, 3, 3, 8)
    with torch.no_grad():
        torch.manual_seed(0)
        found = block(x)
        torch.manual_seed(0)
        assert_close(found, plain(block, x))
    dropped = (found == x).flatten(1).all(1)
    assert dropped.any()
    assert not dropped.all()


@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_of_the_whole_network(with_cp, plain):
    model = EfficientMod(
        TINY, out_indices=(0, 1), with_cp=with_cp, reparam=True
    )
    model = randomise(model).double().train()
    image = torch.randn(2, 3, 33, 30, dtype=torch.double)
    assert_close(gradients(model, image), plain(gradients, model, image))


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('deployed', [False, True])
def test_large_images_run_in_chunks(monkeypatch, deployed, autocast):
    """Outputs are equal, and the wide layer never sees all positions."""
    model = randomise(EfficientMod(TINY, out_indices=0)).eval()
    block = model.stages[0].blocks[1]
    if deployed:
        model.switch_to_deploy()
    x = torch.randn(2, 5, 7, 4)
    rows = []

    def linear_gelu(*args, linear_gelu=matmul.linear_gelu):
        rows.append(args[0].shape[:-1].numel())
        return linear_gelu(*args)

    monkeypatch.setattr(matmul, 'linear_gelu', linear_gelu)
    outs = []
    for chunk_bytes in fast_path.CHUNK_BYTES, 160:
        monkeypatch.setattr(fast_path, 'CHUNK_BYTES', chunk_bytes)
        with torch.no_grad(), torch.autocast('cpu', enabled=autocast):
            outs.append(block(x))
    assert rows[0] == 70
    assert len(rows) > 10
    assert sum(rows[1:]) == 70
    assert_close(*outs, rtol=1e-5, atol=1e-6)
    # A hook sees all positions at once.
    rows.clear()
    block.mlp.fc1.register_forward_hook(
        lambda layer, args, out: rows.append(out.shape[:-1].numel())
    )
    with torch.no_grad():
        assert_close(block(x), outs[0], rtol=0.02, atol=0.02)
    assert rows == [70]


# ------------------------------------------------------------- when it may run


@pytest.mark.parametrize('grad_mode', [True, False])
def test_every_hook_on_a_submodule_is_called(block, grad_mode, plain):
    x = torch.randn(1, 3, 2, 8)
    names = [name for name, _ in block.named_modules() if name]
    torch.manual_seed(0)
    expected = plain(block, x)
    for name in names:
        module = block.get_submodule(name)
        for register in (
            module.register_forward_hook,
            module.register_forward_pre_hook,
        ):
            seen = []
            handle = register(lambda *_, seen=seen: seen.append(1))
            torch.manual_seed(0)
            with torch.set_grad_enabled(grad_mode):
                out = block(x)
            assert len(seen) == (2 if is_shared(block, name) else 1), name
            assert_close(out, expected, rtol=1e-5, atol=1e-5)
            handle.remove()


def is_shared(block, name):
    """The two branches of an attention block share their drop path."""
    return name == 'drop_path' and isinstance(block, AttentionBlock)


def test_backward_hooks_are_called(block):
    x = torch.randn(2, 5, 7, 8, requires_grad=True)
    seen = []
    block.get_submodule(
        'fc2' if isinstance(block, Mlp) else 'mlp.fc2'
    ).register_full_backward_hook(lambda *_: seen.append(1))
    block.eval()(x).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize('grad_mode', [True, False])
def test_global_hooks_are_called(block, grad_mode):
    seen = []
    handle = register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        with torch.set_grad_enabled(grad_mode):
            block(torch.randn(2, 5, 7, 8))
    finally:
        handle.remove()
    assert set(seen) == {
        m for m in block.modules() if not isinstance(m, nn.Sequential)
    }


class Lora(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 0.1 * x.sum(-1, keepdim=True)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class TwoTimes(ModulationBlock.mlp_type):
    def forward(self, x):
        return 2 * super().forward(x)


def lora(block):
    layer = Lora(8, 24)
    layer.load_state_dict(block.mlp.fc1.state_dict())
    block.mlp.fc1 = layer


def patched(block):
    fc2 = block.mlp.fc2
    fc2.forward = lambda x: F.linear(x, fc2.weight) + 2


def parametrised(block):
    parametrize.register_parametrization(
        block.mlp.context.g, 'weight', Doubled()
    )


def without_norm(block):
    block.norm = nn.Identity()


def norm_without_weight(block):
    block.norm = nn.LayerNorm(8, elementwise_affine=False)


def subclass_of_mlp(block):
    block.mlp.__class__ = TwoTimes


CHANGES = [
    lora,
    patched,
    parametrised,
    without_norm,
    norm_without_weight,
    subclass_of_mlp,
]


@pytest.mark.parametrize('grad_mode', [True, False])
@pytest.mark.parametrize('change', CHANGES, ids=lambda x: x.__name__)
def test_changed_modules_are_called(change, grad_mode, plain, fast_calls):
    block = randomise(modulation())
    x = torch.randn(2, 5, 7, 8)
    before = plain(block, x)
    change(block)
    with torch.set_grad_enabled(grad_mode):
        out = block(x)
    assert not fast_calls
    assert_close(out, plain(block, x))
    assert (out - before).abs().max() > 1e-2


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(dilation=2, padding=6),
        dict(padding_mode='circular', padding=3),
        dict(groups=1, padding=3),
    ],
)
def test_another_convolution_in_the_block(kwargs, plain):
    block = modulation()
    kwargs = dict(groups=8) | kwargs
    block.mlp.context.conv = nn.Conv2d(8, 8, 7, **kwargs)
    randomise(block).double()
    x = torch.randn(2, 9, 8, 8, dtype=torch.double)
    assert_close(gradients(block, x), plain(gradients, block, x))


@pytest.mark.parametrize('frozen', ['norm', 'mlp.fc1', 'mlp.context.conv'])
def test_frozen_weights_are_left_to_pytorch(frozen, plain, fast_calls):
    block = randomise(modulation())
    block.get_submodule(frozen).requires_grad_(False)
    trained = [p for p in block.parameters() if p.requires_grad]
    x = torch.randn(2, 5, 7, 8, requires_grad=True)
    found = torch.autograd.grad(block(x).sum(), [x, *trained])
    assert not fast_calls
    expected = torch.autograd.grad(plain(block, x).sum(), [x, *trained])
    assert_close(found, expected)
    with torch.no_grad():
        block(x)
    assert fast_calls == [block]


# ------------------------------------------------ derivatives and transforms


def test_functional_transforms():
    """Gradients for each sample, second derivatives, dual numbers."""
    torch.manual_seed(0)
    model = EfficientMod(WITHOUT_ATTENTION, out_indices=(0, 1)).double()
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
        assert_close(b, a)
        assert_close(c.sum(0), a)

    small = images[:1, :, :5, :4]
    second = hessian(lambda x: loss(params, x))(small).reshape(60, 60)
    assert_close(second, second.T)
    direction = torch.randn_like(small)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(small, direction)
        slope = forward_ad.unpack_dual(loss(params, dual)).tangent
    start = small.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(params, start), start)
    assert_close(slope, (gradient * direction).sum())
    with torch.no_grad():  # where the fast path would overwrite tensors
        outs = vmap(lambda x: loss(params, x))(images.unsqueeze(1))
    assert_close(outs.sum(), loss(params, images).detach())


@pytest.mark.parametrize('arch', [dict(), dict(block='mbconv')], ids=str)
@pytest.mark.parametrize('reparam', [None, True])
def test_double_backward_equals_the_equations(arch, reparam, plain):
    if arch and reparam:
        pytest.skip('MBConv has no branches')
    model = EfficientMod(
        WITHOUT_ATTENTION | arch, out_indices=(0, 1), reparam=reparam
    )
    model = randomise(model).double().train()
    image = torch.randn(2, 3, 13, 9, dtype=torch.double)

    def penalty():
        """The gradients of a gradient penalty, the sum of their squares."""
        x = image.clone().requires_grad_()
        wanted = [x, *model.parameters()]
        loss = sum(y.square().mean() for y in model(x))
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return torch.autograd.grad(
            sum(g.square().sum() for g in first), wanted, allow_unused=True
        )

    assert_close(penalty(), plain(penalty), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('train', [False, True])
def test_compiled_network_equals_the_equations(train, plain):
    one_of_each = dict(TINY, depths=(0, 1), expand_ratios=(2,))
    model = EfficientMod(one_of_each, out_indices=1, reparam=(3,))
    model = randomise(model).train(train)
    image = torch.rand(2, 3, 33, 30)
    with torch.set_grad_enabled(train):
        expected = plain(copy.deepcopy(model), image)
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        assert_close(compiled(image), expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------- layers of the fast path

DIM, RATIO = 4, 3


class NormCase(nn.Module):
    """Two linear layers that read the same norm."""

    def __init__(self, bias=True):
        super().__init__()
        self.norm = nn.LayerNorm(DIM, bias=bias)
        self.a = nn.Linear(DIM, 5, bias=bias)
        self.b = nn.Linear(DIM, 2, bias=bias)
        self.inputs = (torch.randn(2, 3, DIM),)

    def forward(self, x):
        return torch.cat(norm_linear(x, self.norm, self.a, self.b), -1)

    def plain(self, x):
        x = self.norm(x)
        return torch.cat([self.a(x), self.b(x)], -1)


class GeluCase(nn.Module):
    """A linear layer after a GELU."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(DIM, 5)
        self.inputs = (torch.randn(2, 3, DIM),)

    def forward(self, x):
        return gelu_linear(x, self.a)

    def plain(self, x):
        return self.a(F.gelu(x))


class ProductCase(nn.Module):
    """A linear layer of value times context, with all options or fewer."""

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

    def plain(self, value, context, residual=None):
        value = F.gelu(value) if self.activate else value
        x = self.a(multiply(value, context))
        return add_scaled(x, residual, self.scale)


class DepthwiseCase(nn.Module):
    """A depth-wise convolution, in the memory layout of the backbone."""

    def __init__(self, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=bias)
        x = torch.randn(2, 6, 4, 3)
        self.inputs = (x.permute(0, 3, 1, 2),)

    def forward(self, x):
        return depthwise_conv(x, self.conv)

    def plain(self, x):
        return self.conv(x)


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


def layer_gradients(case, function, out_grad):
    inputs = [x.detach().requires_grad_() for x in case.inputs]
    out = function(*inputs)
    wanted = [*inputs, *case.parameters()]
    grads = torch.autograd.grad(out, wanted, out_grad.to(out.dtype))
    return [out, *grads]


def test_derivatives_agree_with_finite_differences(case):
    """First and second derivatives, backward and batched."""
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
    torch.autograd.gradcheck(function, tensors, check_batched_grad=True)
    torch.autograd.gradgradcheck(function, tensors)


def test_layers_equal_the_modules(case):
    out_grad = torch.randn_like(case(*case.inputs))
    found = layer_gradients(case, case.forward, out_grad)
    expected = layer_gradients(case, case.plain, out_grad)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for copies in (
            [x.clone() for x in case.inputs],
            [x.mT.contiguous().mT for x in case.inputs],  # other strides
        ):
            assert_close(case(*copies), expected[0])


def test_layers_save_their_operands_alone(case):
    saved = set()

    def pack(x):
        saved.add(x.untyped_storage().data_ptr())
        return x

    inputs = [x.clone().requires_grad_() for x in case.inputs]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = case(*inputs)
    own = {
        x.untyped_storage().data_ptr() for x in (*inputs, *case.parameters())
    }
    assert saved <= own
    assert out.requires_grad


def test_kernel_gradient_is_summed_over_images_in_float32():
    case = DepthwiseCase()
    x = torch.randn(64, 3, 6, 4)
    out_grad = torch.randn_like(x)
    exact = torch.autograd.grad(case.conv(x), case.conv.weight, out_grad)[0]

    def error(function):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = function(x)
        (found,) = torch.autograd.grad(
            out, [case.conv.weight], out_grad.to(out.dtype)
        )
        return (found - exact).norm() / exact.norm()

    assert error(case.forward) <= 1.5 * error(case.plain) + 1e-3


def test_saved_bytes_of_a_block():
    """A block saves five tensors for its backward pass.

    They are its input, the input and the output of the convolution, the
    context and the value, which is six times as wide as the others.
    """
    block = ModulationBlock(4, 6, 0.0, 1.0)
    x = torch.randn(1, 5, 7, 4, requires_grad=True)
    saved = {}

    def pack(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = block(x)
    for p in block.parameters():
        saved.pop(p.untyped_storage().data_ptr(), None)
    assert sum(saved.values()) == (1 + 1 + 1 + 1 + 6) * x.nbytes
    assert out.shape == x.shape


def test_edgevit_equals_its_equations(plain, fast_calls):
    model = EdgeViT('xxs', out_indices=(0, 1))
    model = randomise(model).double().train()
    image = torch.randn(2, 3, 33, 30, dtype=torch.double)
    found = gradients(model, image)
    assert len(fast_calls) == num_blocks(model)
    assert_close(found, plain(gradients, model, image))
