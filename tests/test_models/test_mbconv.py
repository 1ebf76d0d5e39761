"""MBConv in the place of the modulation: figures, gradients, folding."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch.testing import assert_close

from mmefficientmod import EfficientMod
from mmefficientmod.analysis.complexity import measure
from mmefficientmod.models.backbones.efficientmod import (
    AttentionBlock,
    MBConvBlock,
    ModulationBlock,
)
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    MBCONV_ARCHS,
)

TINY = dict(
    dims=(8, 16, 24, 32),
    depths=(2, 2, 1, 1),
    attn_depths=(0, 0, 0, 0),
    expand_ratios=(1.3, 3),
    attn_mlp_ratios=(2, 2, 2, 2),
    block='mbconv',
)
# The paper's study of the block, 1e6 parameters and 1e9 multiply-adds at
# 224: MBConv, then modulation.
STUDY = dict(
    mbconv_xs=((6.4, 0.7), (6.4, 0.7)), mbconv_s=((12.9, 1.6), (12.9, 1.5))
)  # fmt: skip


def figures(arch):
    model = EfficientMod(arch, final_norm=True)
    result = measure(model, (224, 224))
    assert result.uncounted == {}
    head = model.out_channels[-1] * 1000
    return (result.params + head + 1000) / 1e6, (result.flops + head) / 1e9


@pytest.mark.parametrize('name', STUDY)
def test_published_figures(name):
    mbconv, modulation = STUDY[name]
    assert figures(name) == pytest.approx(mbconv, rel=0.02)
    # With modulation blocks and the ratios of s, the same widths and depths
    # have the published figures of modulation.
    counterpart = dict(
        MBCONV_ARCHS[name], block='modulation', expand_ratios=(1, 6)
    )
    found = figures(counterpart)
    assert (round(found[0], 1), round(found[1], 1)) == modulation


def test_relation_to_the_other_variants():
    for name, hybrid in dict(mbconv_xs='xs', mbconv_s='s').items():
        arch, other = MBCONV_ARCHS[name], ARCHS[hybrid]
        # Each attention block of the hybrid is an MBConv block here.
        both = zip(other['depths'], other['attn_depths'], strict=True)
        assert arch['depths'] == tuple(map(sum, both))
        assert arch['drop_path_rate'] == other['drop_path_rate']
        assert arch['block'] == 'mbconv'
    s_conv = dict(ARCHS['s_conv'], block='mbconv', expand_ratios=(1.3, 7.1))
    assert MBCONV_ARCHS['mbconv_s'] == s_conv
    # The arch alone decides which block is built.
    for arch, kind in ((TINY, MBConvBlock), ('s_conv', ModulationBlock)):
        blocks = EfficientMod(arch).stages[2].blocks
        assert {type(b) for b in blocks} == {kind}
    mixed = EfficientMod({**TINY, 'attn_depths': (0, 0, 1, 1)})
    kinds = [type(b) for b in mixed.stages[2].blocks]
    assert kinds == [MBConvBlock, AttentionBlock]


@pytest.mark.parametrize('dim', [8, 40])
@pytest.mark.parametrize('gamma', [0, 0.5])
def test_block_by_hand(dim, gamma):
    block = MBConvBlock(dim, 1.3, 0.0, gamma).double()
    randomise(block)
    mlp = block.mlp
    hidden = {8: 8, 40: 48}[dim]  # 10.4 and 52, rounded
    assert mlp.conv.weight.shape == (hidden, 1, 7, 7)
    torch.manual_seed(0)
    x = torch.randn(2, dim, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        mean, var = x.mean(1, keepdim=True), x.var(1, False, keepdim=True)
        y = (x - mean) / (var + 1e-5).sqrt()
        y = y * block.norm.weight[:, None, None]
        y = y + block.norm.bias[:, None, None]
        y = F.conv2d(y, mlp.fc1.weight[:, :, None, None], mlp.fc1.bias)
        y = F.gelu(mlp.conv(F.gelu(y)))
        y = F.conv2d(y, mlp.fc2.weight[:, :, None, None], mlp.fc2.bias)
        if gamma:
            y = y * block.gamma[:, None, None]
        expected = (x + y).permute(0, 2, 3, 1)
    image = x.permute(0, 2, 3, 1).contiguous()
    assert_close(block(image), expected)
    with torch.no_grad():  # where activations are overwritten
        assert_close(block(image), expected)


@pytest.mark.parametrize('arch', MBCONV_ARCHS)
def test_shapes_and_gradients_at_any_size(arch):
    model = EfficientMod(arch, layer_scale_init_value=1.0).train()
    outs = model(torch.rand(2, 3, 97, 130))
    for out, channels, stride in zip(
        outs, model.out_channels, model.out_strides, strict=True
    ):
        size = (math.ceil(97 / stride), math.ceil(130 / stride))
        assert tuple(out.shape) == (2, channels, *size)
        assert out.is_contiguous()
    sum(x.square().mean() for x in outs).backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.any()
    ]
    assert not without


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('size', [(64, 64), (97, 71)])
def test_float32_gradients_agree_with_float64(size, frozen):
    double = randomise(EfficientMod(TINY)).double()
    if frozen:  # PyTorch's own backward pass of the convolution
        for name, p in double.named_parameters():
            p.requires_grad_('mlp.conv' not in name)
    single = copy.deepcopy(double).float()
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    grads = [torch.randn(x.shape, dtype=torch.float64) for x in double(image)]
    torch.autograd.backward(double(image), grads)
    torch.autograd.backward(single(image.float()), [g.float() for g in grads])
    for (name, p), q in zip(
        single.named_parameters(), double.parameters(), strict=True
    ):
        if not p.requires_grad:
            continue
        scale = q.grad.abs().max().item()
        assert scale > 0, name
        assert_close(
            p.grad.double(),
            q.grad,
            rtol=0,
            atol=1e-4 * scale,
            msg=lambda m, name=name: f'{name}: {m}',
        )


def test_float64_gradients_agree_with_finite_differences():
    model = randomise(EfficientMod(TINY, out_indices=(0, 1))).double()
    torch.manual_seed(0)
    image = torch.randn(1, 3, 24, 17, dtype=torch.float64)

    def loss(step=0.0):
        shifted = {
            name: p + step * directions[name]
            for name, p in model.named_parameters()
        }
        outs = torch.func.functional_call(model, shifted, (image,))
        return sum(x.square().sum() for x in outs)

    directions = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    sum(x.square().sum() for x in model(image)).backward()
    slope = sum(
        (p.grad * directions[n]).sum() for n, p in model.named_parameters()
    )
    step = 1e-6
    with torch.no_grad():
        difference = (loss(step) - loss(-step)) / (2 * step)
    assert_close(slope, difference, rtol=1e-6, atol=0)


def test_with_cp_gives_the_same_gradients():
    image = torch.rand(2, 3, 64, 64)
    grads = []
    for with_cp in (False, True):
        model = randomise(EfficientMod(TINY, with_cp=with_cp)).train()
        sum(x.square().mean() for x in model(image)).backward()
        grads.append([p.grad for p in model.parameters()])
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize('arch', [*MBCONV_ARCHS, 'tiny'])
def test_folded_for_inference(arch):
    settings = TINY if arch == 'tiny' else arch
    gamma = 0 if arch == 'tiny' else 1e-4  # a model without layer scale
    model = EfficientMod(settings, layer_scale_init_value=gamma)
    randomise(model, 1).eval()
    weights = copy.deepcopy(model.state_dict())
    image = torch.rand(2, 3, 70, 64)
    with torch.no_grad():
        expected = model(image)
        folded = model.switch_to_deploy()
        assert folded is model
        for out, x in zip(folded(image), expected, strict=True):
            assert (out - x).abs().max() <= 1e-5 * x.abs().max()
    left = {k for k in model.state_dict() if '.blocks.' in k}
    parts = ('fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias')
    parts += ('conv.weight', 'conv.bias')
    assert {k.split('mlp.')[-1] for k in left} == set(parts)
    with pytest.raises(RuntimeError, match='cannot be trained any more'):
        model.train()
    with pytest.raises(RuntimeError, match='cannot load weights from'):
        model.load_state_dict(weights)


@pytest.mark.parametrize('arch', MBCONV_ARCHS)
def test_layer_depth_grows_with_the_network(arch):
    model = EfficientMod(arch.replace('_', '-'), final_norm=True)
    depths = [
        model.get_layer_depth(name) for name, _ in model.named_parameters()
    ]
    layers = [layer for layer, _ in depths]
    assert layers == sorted(layers)
    assert set(layers) == set(range(depths[0][1]))


def test_unknown_block_is_named():
    with pytest.raises(ValueError, match="'mb'; there are modulation, mbconv"):
        EfficientMod({**TINY, 'block': 'mb'})
    with pytest.raises(ValueError, match='xxs_phone, mbconv_xs, mbconv_s'):
        EfficientMod('mbconv')
