"""EdgeViT: numbers of the description, gradients, every option's effect."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY_EDGEVIT, load_pretrained, randomise
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from mmefficientmod import EdgeViT, EfficientMod
from mmefficientmod.analysis.complexity import measure
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.models.backbones.edgevit import (
    ARCHS,
    Block,
    LocalAggregation,
    SparseAttention,
)
from mmefficientmod.registry import MODELS

TINY = dict(TINY_EDGEVIT, depths=(1, 1, 4, 1))
# Of the authors' code: parameters of a classifier of 1000 classes, and of
# patch embedding and blocks of each stage; 1e9 multiply-adds at 224.
OFFICIAL = dict(
    xxs=(
        4_067_704,
        ((1836, 31716), (10584, 119592), (41904, 1401840), (166752, 2003904)),
        0.551,
    ),
    xs=(
        6_770_056,
        ((2448, 54960), (18720, 210144), (92880, 3857040), (369792, 1778304)),
        1.128,
    ),
    s=(
        13_108_168,
        ((2448, 54960), (18720, 420288), (92880, 6428400), (369792, 5334912)),
        1.911,
    ),
)


def scrambled(*args, **kwargs):
    """A model in which no branch is silent and no norm is the identity."""
    model = randomise(EdgeViT(*args, **kwargs))
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def count(*modules):
    return sum(p.numel() for m in modules for p in m.parameters())


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_and_multiply_adds(arch):
    params, by_stage, flops = OFFICIAL[arch]
    model = EdgeViT(arch, final_norm=True)
    head = nn.Linear(model.out_channels[-1], 1000)
    assert count(model, head) == params
    embeddings = [model.stem, *(s.downsample for s in model.stages[1:])]
    found = [
        (count(embedding), count(stage.blocks))
        for embedding, stage in zip(embeddings, model.stages, strict=True)
    ]
    assert tuple(found) == by_stage
    result = measure(model, (224, 224))
    kinds = ('conv', 'linear', 'attention', 'layer_norm', 'batch_norm')
    assert set(result.by_operator) == set(kinds)
    assert result.uncounted == {}
    products = sum(result.by_operator[k] for k in kinds[:3])
    products += head.weight.numel()
    assert products / 1e9 == pytest.approx(flops, rel=1e-3)
    # Norms, which count here, make up the rest.
    total = result.flops + head.weight.numel()
    assert total / 1e9 == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize('name', ['EdgeViT', 'mmefficientmod.EdgeViT'])
def test_registered(name):
    for registry in (ROOT_MODELS, MODELS):
        model = registry.build(dict(type=name, arch=TINY, out_indices=0))
        assert isinstance(model, EdgeViT)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('size', [(128, 160), (97, 130), (7, 5)])
def test_shapes_at_any_size(arch, size):
    model = EdgeViT(arch).eval()
    assert model.out_strides == (4, 8, 16, 32)
    assert model.out_channels == ARCHS[arch]['dims']
    with torch.no_grad():
        outs = model(torch.rand(1, 3, *size))
    assert isinstance(outs, tuple)
    for out, channels, stride in zip(
        outs, model.out_channels, model.out_strides, strict=True
    ):
        expected = (1, channels, *(math.ceil(x / stride) for x in size))
        assert tuple(out.shape) == expected
        assert out.is_contiguous()
        assert out.isfinite().all()


def softmax_attention(q, k, v):
    """Attention of one head, row by row; q, k and v are (L, d)."""
    rows = []
    for row in q:
        scores = torch.stack([row @ other for other in k]) / len(row) ** 0.5
        weights = scores.exp() / scores.exp().sum()
        rows.append((weights[:, None] * v).sum(0))
    return torch.stack(rows)


def naive_sparse_attention(attn, x, norm):
    """Sparse attention of an image x, (H, W, C), position by position."""
    height, width, dim = x.shape
    sr, d = attn.sr_ratio, attn.head_dim
    rows, columns = range(0, height, sr), range(0, width, sr)
    tokens = torch.stack([norm(x[i, j]) for i in rows for j in columns])
    q, k, v = (tokens @ attn.qkv.weight.T + attn.qkv.bias).split(dim, dim=1)
    heads = [
        softmax_attention(*(t[:, h : h + d] for t in (q, k, v)))
        for h in range(0, dim, d)
    ]
    tokens = torch.cat(heads, 1).reshape(len(rows), len(columns), dim)
    out = torch.empty_like(x)
    for i in range(height):
        for j in range(width):
            token = tokens[i // sr, j // sr]
            if sr > 1:
                kernel = attn.spread.weight[:, 0, i % sr, j % sr]
                token = attn.norm(token * kernel + attn.spread.bias)
            out[i, j] = attn.proj.weight @ token + attn.proj.bias
    return out


@pytest.mark.parametrize('sr_ratio', [1, 2, 4])
@pytest.mark.parametrize('size', [(8, 8), (7, 10), (3, 1)])
def test_sparse_attention_by_hand(sr_ratio, size):
    attn = randomise(SparseAttention(12, 4, sr_ratio)).double()
    norm = randomise(nn.LayerNorm(12, eps=1e-6), 1).double()
    torch.manual_seed(0)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = [naive_sparse_attention(attn, image, norm) for image in x]
        assert_close(attn(x, norm), torch.stack(expected))


def naive_local_aggregation(local, x):
    """For images (N, C, H, W), with 1x1 convolutions, in evaluation mode."""

    def pointwise(x, linear):
        return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)

    def normalise(x, norm):
        mean, var, weight, bias = (
            t[:, None, None]
            for t in (norm.running_mean, norm.running_var)
            + (norm.weight, norm.bias)
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = x + local.pos(x)
    y = pointwise(normalise(x, local.norm1), local.fc1)
    x = x + pointwise(local.conv(y), local.fc2)
    y = F.gelu(pointwise(normalise(x, local.norm2), local.mlp.fc1))
    return x + pointwise(y, local.mlp.fc2)


def test_local_aggregation_by_hand():
    model = scrambled(TINY).double().eval()
    local = model.stages[0].blocks[0].local
    assert isinstance(local, LocalAggregation)
    x = torch.randn(2, 8, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        out = local(x.permute(0, 2, 3, 1).contiguous())
        expected = naive_local_aggregation(local, x)
    assert_close(out.permute(0, 3, 1, 2), expected)
    # The last stage has attention alone, and all positions take part.
    last = model.stages[3].blocks[0]
    assert isinstance(last, Block)
    assert count(last.local) == 0
    assert last.attn.sr_ratio == 1


@pytest.mark.parametrize('size', [(64, 64), (97, 71), (33, 130)])
def test_float32_gradients_agree_with_float64(size):
    double = scrambled(TINY, final_norm=True).double().train()
    single = copy.deepcopy(double).float()
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    grads = [torch.randn(x.shape, dtype=torch.float64) for x in double(image)]
    torch.autograd.backward(double(image), grads)
    torch.autograd.backward(single(image.float()), [g.float() for g in grads])
    for (name, p), q in zip(
        single.named_parameters(), double.parameters(), strict=True
    ):
        # A batch norm undoes a shift of its input, so the gradient of a bias
        # before it is 0 but for rounding.
        scale = max(q.grad.abs().max().item(), 1.0)
        assert_close(
            p.grad.double(),
            q.grad,
            rtol=0,
            atol=1e-3 * scale,
            msg=lambda m, name=name: f'{name}: {m}',
        )


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), 0])
def test_every_parameter_gets_a_gradient(arch, out_indices):
    model = EdgeViT(arch, out_indices=out_indices).train()
    outs = model(torch.rand(2, 3, 64, 97))
    sum(x.square().mean() for x in outs).backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.any()
    ]
    assert not without


@pytest.mark.parametrize(
    ('out_indices', 'stages'),
    [(3, [3]), (-1, [3]), ((0, -1), [0, 3]), ((1, 2), [1, 2]), ([0], [0])],
)
def test_out_indices(out_indices, stages):
    image = torch.rand(1, 3, 64, 64)
    full = scrambled(TINY).eval()
    part = EdgeViT(TINY, out_indices=out_indices).eval()
    part.load_state_dict(full.state_dict(), strict=False)
    assert len(part.stages) == stages[-1] + 1
    assert part.out_channels == tuple(TINY['dims'][i] for i in stages)
    outs = full(image)
    for got, i in zip(part(image), stages, strict=True):
        assert_close(got, outs[i])


def test_final_norm():
    model = scrambled(TINY, final_norm=True).eval()
    plain = EdgeViT(TINY).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(2, 3, 64, 64)
    *_, third, last = plain(image)
    assert_close(model(image)[-1], model.norm(last))
    assert_close(model(image)[-2], third)


def test_drop_path_rises_linearly_and_acts():
    model = scrambled(TINY, drop_path_rate=0.6)
    blocks = [b for stage in model.stages for b in stage.blocks]
    for block, rate in zip(blocks, torch.linspace(0, 0.6, 7), strict=True):
        for part in (block, block.local):
            drop = getattr(part, 'drop_path', None)
            found = getattr(drop, 'drop_prob', 0.0)
            assert found == pytest.approx(0 if drop is None else rate.item())
    image = torch.rand(4, 3, 32, 32)
    model.train()
    assert not torch.equal(model(image)[-1], model(image)[-1])
    model.eval()
    assert_close(model(image)[-1], model(image)[-1])
    assert not any(
        hasattr(m, 'drop_prob') for m in EdgeViT('s').modules()
    )  # by default


def test_initialisation():
    torch.manual_seed(0)
    model = EdgeViT('xxs', final_norm=True)
    local = {
        linear
        for m in model.modules()
        if isinstance(m, LocalAggregation)
        for linear in m.modules()
    }
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    normal = torch.cat(
        [m.weight.detach().flatten() for m in linears if m not in local]
    )
    assert normal.std().item() == pytest.approx(0.02, rel=0.01)
    for linear in linears:
        if linear in local:  # PyTorch's: uniform in 1 / sqrt(fan in)
            bound = linear.in_features**-0.5
            most = linear.weight.abs().max().item()
            assert most == pytest.approx(bound, rel=0.01)
            assert linear.bias.any()
        else:
            assert not linear.bias.any()
    for name, p in model.named_parameters():
        if 'norm' in name:
            assert_close(p, torch.full_like(p, name.endswith('weight')))


def test_with_cp_changes_nothing_but_memory():
    image = torch.rand(2, 3, 64, 64)
    results, saved = [], []
    for with_cp in (False, True):
        model = scrambled(TINY, with_cp=with_cp).train()
        numel = 0

        def pack(x):
            nonlocal numel
            numel += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outs = model(image)
            loss = sum(x.square().mean() for x in outs)
        saved.append(numel)
        # Through a retained graph, blocks run for a third time.
        loss.backward(retain_graph=True)
        loss.backward()
        grads = [p.grad for p in model.parameters()]
        # Running statistics count a batch once, too.
        results.append((outs, grads, list(model.buffers())))
    assert_close(results[0], results[1])
    assert any(b.item() == 1 for b in results[1][2] if b.ndim == 0)
    assert saved[1] < 0.5 * saved[0]


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    model = EdgeViT(TINY, frozen_stages=frozen_stages, final_norm=True)
    assert model.train() is model
    parts = ('stem.', 'stages.0.', 'stages.1.', 'stages.2.', 'stages.3.')
    parts = parts[: frozen_stages + 1] + ('norm.',) * (frozen_stages == 4)
    for name, p in model.named_parameters():
        assert p.requires_grad != (bool(parts) and name.startswith(parts))
    before = copy.deepcopy(dict(model.named_buffers()))
    model(torch.rand(2, 3, 64, 64))
    for name, buffer in model.named_buffers():
        frozen = bool(parts) and name.startswith(parts)
        assert torch.equal(buffer, before[name]) == frozen, name
    assert model.eval() is model
    assert not model.training


@pytest.mark.parametrize('norm_eval', [False, True])
def test_norm_eval(norm_eval):
    model = EdgeViT(TINY, norm_eval=norm_eval, final_norm=True).train()
    assert model.training
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 2 * 6 + 1
    assert all(norm.training is not norm_eval for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)


def test_in_channels():
    model = EdgeViT(TINY, in_channels=4)
    assert model(torch.rand(1, 4, 32, 32))[0].shape == (1, 8, 8, 8)


@pytest.mark.parametrize('arch', ARCHS)
def test_layer_depth_grows_with_the_network(arch):
    model = EdgeViT(arch, final_norm=True)
    depths = [
        model.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in model.named_parameters()
    ]
    layers = [layer for layer, _ in depths]
    assert layers == sorted(layers)
    num_layers = 2 + 3 + math.ceil(ARCHS[arch]['depths'][2] / 3)
    assert {n for _, n in depths} == {num_layers}
    assert set(layers) == set(range(num_layers))
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (
        num_layers - 1,
        num_layers,
    )


def build(path, **kwargs):
    return load_pretrained(EdgeViT, path, TINY, **kwargs)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_pretrained_weights_load_completely(tmp_path, prefix):
    source = scrambled(TINY, final_norm=True).state_dict()
    weights = {prefix + k: v for k, v in source.items()}
    torch.save({'state_dict': weights}, tmp_path / 'c.pth')
    for kwargs in (dict(), dict(final_norm=True), dict(out_indices=(0, 2))):
        own = build(tmp_path / 'c.pth', **kwargs).state_dict()
        assert_close(dict(own), {k: source[k] for k in own}, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w.pop('stages.0.blocks.0.pos.weight'), 'lacks stages.0'),
        (lambda w: w.update(neck=torch.zeros(1)), 'model has no neck'),
        (lambda w: w.update({'stem.norm.bias': torch.zeros(9)}), 'shapes'),
    ],
)
def test_pretrained_weights_that_do_not_fit(tmp_path, change, message):
    weights = EdgeViT(TINY).state_dict()
    change(weights)
    torch.save(weights, tmp_path / 'c.pth')
    with pytest.raises(CheckpointError, match=f'fit EdgeViT.*{message}'):
        build(tmp_path / 'c.pth')


def test_weights_of_another_model_do_not_fit(tmp_path):
    torch.save(EfficientMod('xxs').state_dict(), tmp_path / 'c.pth')
    with pytest.raises(CheckpointError, match='does not fit EdgeViT'):
        build(tmp_path / 'c.pth')


@pytest.mark.slow
@pytest.mark.parametrize('train', [False, True])
def test_compiles_without_graph_breaks(train):
    model = scrambled(TINY).train(train)
    image = torch.rand(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.set_grad_enabled(train):
        assert_close(compiled(image), model(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='m'), r"EdgeViT has no arch 'm'.* xxs, xs, s, or give"),
        (dict(arch=dict(dims=(8,))), 'missing keys: depths, head_dim'),
        (dict(arch={**TINY, 'dim': 1}), 'unknown keys: dim'),
        (dict(arch={**TINY, 'depths': (1, 1)}), r'4 dims but 2 depths'),
        (dict(arch={**TINY, 'head_dim': 5}), 'heads of 5 channels'),
        (dict(out_indices=(0, 4)), r'\(0, 4\).*EdgeViT has 4 .*-4 to 3'),
        (dict(out_indices=(2, 1)), 'ascending'),
        (dict(out_indices=()), 'at least one'),
        (dict(frozen_stages=5), 'frozen_stages=5'),
        (dict(drop_path_rate=1.5), 'drop_path_rate=1.5'),
        (dict(out_indices=(0, 1), final_norm=True), 'final_norm'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EdgeViT(**kwargs)


def test_unknown_argument_is_refused():
    with pytest.raises(TypeError, match='drop_rate'):
        EdgeViT('s', drop_rate=0.1)
