"""The other backbones: figures, levels, options, weights, and in our tasks."""

import copy
import gc
import math
import pickle

import pytest
import stock
import timm
import torch
from helpers import ROOT
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.registry import MODELS
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmefficientmod import swap_backbone
from mmefficientmod.analysis import complexity
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.files import load_config
from mmefficientmod.models import TimmPyramid
from mmefficientmod.models.backbones.timm_efficientformer import relative_bias
from mmefficientmod.models.layers.deploy import switch_to_deploy
from mmefficientmod.swap.names import resolve_backbone

# Channels, parameters (M) and multiply-adds (G, convolutions, matrix products
# and attention, at 224 x 224) of the pyramids, measured with timm 1.0.31 and
# onedl-mmpretrain 1.3.6 when the rivals were chosen, without the code tested
# here. Those of MobileViTv2 are at 256 x 256, to which 224 is padded.
FIGURES = {
    'mobilenetv2_100': ((24, 32, 96, 320), 1.812, 0.279),
    'mobilenetv2_140': ((32, 48, 136, 448), 3.509, 0.541),
    'mobilevit_xs': ((48, 64, 80, 384), 1.933, 0.772),
    'mobilevit_s': ((64, 96, 128, 640), 4.938, 1.521),
    'mobilevitv2_100': ((128, 256, 384, 512), 4.389, 1.812),
    'fasternet_t0': ((40, 80, 160, 320), 2.215, 0.334),
    'fasternet_t1': ((64, 128, 256, 512), 5.659, 0.849),
    'fasternet_t2': ((96, 192, 384, 768), 12.719, 1.902),
    'efficientformer_l1': ((48, 96, 224, 448), 11.391, 1.290),
    'efficientformerv2_s0': ((32, 48, 96, 176), 3.246, 0.396),
    'efficientformerv2_s1': ((32, 48, 120, 224), 5.735, 0.652),
    'efficientformerv2_s2': ((32, 64, 144, 288), 12.132, 1.246),
    'pvt_v2_b0': ((32, 64, 160, 256), 3.410, 0.566),
    'pvt_v2_b1': ((64, 128, 320, 512), 13.496, 2.108),
    'focalnet_tiny_lrf': ((96, 192, 384, 768), 27.877, 4.474),
    'repvit_m0_9': ((48, 96, 192, 384), 4.718, 0.817),
    'repvit_m1_0': ((56, 112, 224, 448), 6.403, 1.107),
    'repvit_m1_1': ((64, 128, 256, 512), 7.775, 1.338),
    'repvit_m1_5': ((64, 128, 256, 512), 13.616, 2.276),
    'poolformer_s12': ((64, 128, 320, 512), 11.403, 1.812),
    'poolformer_s24': ((64, 128, 320, 512), 20.877, 3.392),
    'van_tiny': ((32, 64, 160, 256), 3.849, 0.864),
    'van_small': ((64, 128, 320, 512), 13.349, 2.495),
    # torchvision's, without the classifier: 11,689,512 and 25,557,032 with it.
    'resnet18': ((64, 128, 256, 512), 11.177, 1.814),
    'resnet50': ((256, 512, 1024, 2048), 23.508, 4.087),
}
# The smallest of each family.
TIMM_FAMILIES = (
    'mobilenetv2_100', 'mobilevit_xs', 'mobilevitv2_100', 'fasternet_t0',
    'efficientformer_l1', 'efficientformerv2_s0', 'pvt_v2_b0',
    'focalnet_tiny_lrf', 'repvit_m0_9', 'resnet18',
)  # fmt: skip
FAMILIES = (*TIMM_FAMILIES, 'poolformer_s12', 'van_tiny')
EFFICIENTFORMERS = ('efficientformer_l1', 'efficientformerv2_s0')


# Other sizes are the same code.
SIZES = [
    pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow)
    for name in FIGURES
]
# FocalNet has no small size.
SMALL_ENOUGH = {*FAMILIES} - {'focalnet_tiny_lrf'}
SMALL = [
    pytest.param(name, marks=() if name in SMALL_ENOUGH else pytest.mark.slow)
    for name in TIMM_FAMILIES
]


def build(name, **options):
    return MODELS.build({**resolve_backbone(name), **options})


def perturb(model, seed=0):
    """Weights and statistics as after a training: nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in model.state_dict().items():
        noise = torch.rand(x.shape, generator=generator)
        if name.endswith(('running_var', 'attention_biases')):
            x.copy_(noise + 0.5)
        elif x.is_floating_point() and x.ndim < 2:
            x.add_(0.2 * noise)
    return model


def loss_of(outs):
    return sum(x.square().mean() for x in outs)


@pytest.mark.parametrize('name', SIZES)
def test_figures(name):
    _, params, macs = FIGURES[name]
    model = build(name)
    total = sum(p.numel() for p in model.parameters())
    assert total / 1e6 == pytest.approx(params, rel=0.01)
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False  # which the counter does not know
    size = 256 if name.startswith('mobilevitv2') else 224
    image = torch.zeros(1, 3, size, size, device='meta')
    with FlopCounterMode(display=False) as counter:
        model.eval()
        model.to('meta')(image)
    found = counter.get_total_flops() / 2e9
    assert found == pytest.approx(macs, rel=0.01)


# In MMEngine's way of counting norms count, too.
@pytest.mark.parametrize(
    ('name', 'flops'),
    [('mobilenetv2_100', 0.293), ('efficientformerv2_s0', 0.407)],
)
def test_get_flops_knows_all_operators(name, flops):
    model = build(name)
    found = complexity.measure(model, (224, 224)).flops
    assert found / 1e9 == pytest.approx(flops, rel=0.01)
    assert complexity.measure(model, (97, 130)).uncounted == {}


@pytest.mark.parametrize('name', SIZES)
def test_levels_and_gradients(name):
    model = build(name)
    channels = FIGURES[name][0]
    strides = (4, 8, 16, 32)
    if isinstance(model, TimmPyramid):
        assert model.train() is model
        assert model.out_channels == channels
        assert model.out_strides == strides
    for size in (128, 160), (97, 130):
        outs = model(torch.rand(2, 3, *size))
        assert isinstance(outs, tuple)
        # The stem of PoolFormer pads less than half its kernel.
        whole = [(x + 1) // 4 * 4 for x in size] if 'poolf' in name else size
        for out, c, stride in zip(outs, channels, strides, strict=True):
            expected = (2, c, *(math.ceil(x / stride) for x in whole))
            assert tuple(out.shape) == expected
            assert out.is_contiguous()
            assert out.isfinite().all()
    loss_of(outs).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key


@pytest.mark.parametrize('name', SMALL)
def test_with_cp_gives_the_same_gradients_for_less_memory(name):
    image = torch.rand(2, 3, 64, 64)
    grads, saved = [], []
    weights = None
    for with_cp in (False, True):
        model = build(name, with_cp=with_cp).train()
        weights = weights or copy.deepcopy(model.state_dict())
        model.load_state_dict(weights)
        numel = 0

        def pack(x):
            nonlocal numel
            numel += x.numel()
            return x

        torch.manual_seed(0)  # stochastic depth
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = loss_of(model(image))
        saved.append(numel)
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
    assert_close(grads[0], grads[1])
    assert saved[1] < 0.6 * saved[0]


@pytest.mark.parametrize('name', ['poolformer_s12', 'van_tiny'])
def test_with_cp_is_refused_where_there_is_none(name):
    with pytest.raises(TypeError, match='with_cp'):
        build(name, with_cp=True)


@pytest.mark.parametrize('name', SMALL)
def test_frozen_stages_are_what_their_level_needs(name):
    model = build(name)
    names = [key for key, _ in model.named_parameters()]
    model(torch.rand(2, 3, 64, 64))[1].mean().backward()
    needed = {k for k, p in model.named_parameters() if p.grad is not None}
    model = build(name, frozen_stages=2).train()
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert frozen == needed
    assert 0 < len(frozen) < len(names)
    for key, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters:
            still = not any(p.requires_grad for p in parameters)
            assert module.training != still, key
    # Nothing of the first two levels changes, and the others do.
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_of(model(torch.rand(2, 3, 64, 64))).backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        owner = key.rpartition('.')[0]
        if any(k.rpartition('.')[0] == owner for k in frozen):
            assert torch.equal(value, before[key]), key
    stem = build(name, frozen_stages=0)
    first = {k for k, p in stem.named_parameters() if not p.requires_grad}
    assert first
    assert first < frozen
    assert all(p.requires_grad for p in build(name).parameters())


@pytest.mark.parametrize(
    ('out_indices', 'levels'),
    [(-1, [3]), ((0, -1), [0, 3]), ((0, 1), [0, 1]), ([2], [2])],
)
@pytest.mark.parametrize('name', ['mobilevitv2_100', 'efficientformerv2_s0'])
def test_out_indices(name, out_indices, levels):
    image = torch.rand(1, 3, 64, 96)
    full = build(name).eval()
    part = build(name, out_indices=out_indices).eval()
    part.load_state_dict(full.state_dict(), strict=False)
    channels = FIGURES[name][0]
    assert part.out_channels == tuple(channels[i] for i in levels)
    assert part.out_strides == tuple(4 * 2**i for i in levels)
    outs = full(image)
    for got, i in zip(part(image), levels, strict=True):
        if part.pad_divisor == full.pad_divisor:
            assert_close(got, outs[i])
        assert got.shape == outs[i].shape
    loss_of(part(image)).backward()
    assert all(p.grad is not None for p in part.parameters())


def test_options():
    model = build('mobilenetv2-100', norm_eval=True, in_channels=4).train()
    assert model.training
    norms = [m for m in model.modules() if hasattr(m, 'running_mean')]
    assert norms
    assert not any(m.training for m in norms)
    assert model(torch.rand(1, 4, 32, 32))[0].shape == (1, 24, 8, 8)
    rates = [
        m.drop_prob
        for m in build('fasternet_t0', drop_path_rate=0.3).modules()
        if hasattr(m, 'drop_prob')
    ]
    assert max(rates) == pytest.approx(0.3)
    wide = build('pvt_v2_b0', timm_args=dict(embed_dims=(32, 64, 160, 320)))
    assert wide.out_channels[-1] == 320


@pytest.mark.parametrize('name', ['efficientformer_l1', 'focalnet_tiny_lrf'])
def test_final_norm(name):
    model = perturb(build(name, final_norm=True)).eval()
    plain = build(name).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        *_, third, last = plain(image)
        got = model(image)
    norm = model.timm_model.norm
    if name == 'efficientformer_l1':
        last = norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    else:
        last = norm(last)
    assert_close(got[-1], last)
    assert_close(got[-2], third)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(model_name='repvit_m9'), 'no model repvit_m9; did you mean rep'),
        (dict(model_name='vit_tiny_patch16_224'), 'gives no pyramid.* 16'),
        (dict(drop_path_rate=0.1), 'repvit_m0_9 of timm has no stochastic'),
        (dict(model_name='tnt_s_patch16_224'), 'no pyramid'),
        (dict(out_indices=(0, 4)), r'out_indices=\(0, 4\).*repvit_m0_9 has'),
        (dict(frozen_stages=5), 'frozen_stages=5'),
        (dict(out_indices=(0, 1), final_norm=True), 'final_norm'),
        (dict(model_name='levit_conv_128', with_cp=True), 'gives no pyramid'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TimmPyramid(**{'model_name': 'repvit_m0_9', **kwargs})


def test_input_that_is_no_batch_of_images_is_refused():
    model = TimmPyramid('mobilenetv2_100', out_indices=0, in_channels=1)
    for image in (torch.rand(1, 64, 64), torch.rand(1, 3, 64, 64)):
        with pytest.raises(
            ValueError, match=r'^mobilenetv2_100 expects .*\(N, 1, H, W\)'
        ):
            model(image)
    with pytest.raises(ValueError, match=r'torch.uint8: convert it'):
        model(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='drop_path'):
        TimmPyramid('repvit_m0_9', drop_path=0.1)
    with pytest.raises(TypeError, match='drop_path'):
        TimmPyramid('fasternet_t0', timm_args=dict(drop_path=0.1))


def test_any_timm_model_that_has_a_pyramid():
    """One that drops rows, and one that counts its features otherwise."""
    for name in 'convnext_atto', 'efficientnet_b0':
        model = TimmPyramid(name)
        for i, out in enumerate(model(torch.rand(2, 3, 50, 70))):
            size = (math.ceil(50 / 2 ** (i + 2)), math.ceil(70 / 2 ** (i + 2)))
            assert out.shape[2:] == size


def test_synchronised_batch_norms_still_activate():
    model = perturb(build('mobilenetv2_100')).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        for convert in convert_sync_batchnorm, revert_sync_batchnorm:
            model = convert(model).eval()
            assert_close(model(image), expected)


def test_init_weights_leaves_the_weights_of_timm():
    model = build('efficientformerv2_s0')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['repvit_m0_9', 'fasternet_t0'])
def test_switch_to_deploy(name):
    model = perturb(build(name)).eval()
    before = copy.deepcopy(model.state_dict())
    image = torch.rand(2, 3, 97, 64)
    with torch.no_grad():
        expected = model(image)
        names = switch_to_deploy(torch.nn.ModuleList([model]))
        assert names == (['0'] if name == 'repvit_m0_9' else [])
        for out, x in zip(model(image), expected, strict=True):
            assert (out - x).abs().max() <= 1e-5 * x.abs().max()
    assert model.switch_to_deploy() is model  # again changes nothing
    assert not model.training
    if name == 'fasternet_t0':
        assert not model.deployed
        model.train().load_state_dict(before)
        assert all(p.requires_grad for p in model.parameters())
        return
    assert not any('bn' in key for key in model.state_dict())
    params = sum(p.numel() for p in model.parameters())
    assert params / 1e6 == pytest.approx(4.68, rel=0.01)
    with pytest.raises(RuntimeError, match='cannot be trained any more'):
        model.train()
    with pytest.raises(RuntimeError, match='those of a training'):
        model.load_state_dict(before)
    model.load_state_dict(copy.deepcopy(model).state_dict())


def test_what_cannot_be_folded():
    class Lora(torch.nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv, self.weight, self.groups = conv, conv.weight, 1
            for key in 'stride', 'padding', 'dilation':
                setattr(self, key, getattr(conv, key))

        def forward(self, x):
            return 1.5 * self.conv(x)

    model = build('repvit_m0_9')
    norm = model.timm_model.stem.conv1
    norm.c = Lora(norm.c)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match='changes what this repvit_m0_9'):
        model.switch_to_deploy()
    assert not model.deployed
    model.train().load_state_dict(before)


# EfficientFormer at any size.


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', EFFICIENTFORMERS)
def test_efficientformer_is_timms_at_its_own_size(name, train):
    library = perturb(timm.create_model(name)).train(train)
    ours = build(name).train(train)
    weights = library.state_dict()
    for key, value in ours.timm_model.state_dict().items():
        assert value.shape == weights[key].shape, key
        value.copy_(weights[key])
    image = torch.rand(1, 3, 224, 224)
    expected = library.forward_intermediates(image, intermediates_only=True)
    outs = ours(image)
    for out, x in zip(outs, expected, strict=True):
        assert torch.equal(out, x)
    if not train:  # batch norms leave a bias before them no gradient then
        loss_of(expected).backward()
        loss_of(outs).backward()
        kept = dict(ours.timm_model.named_parameters())
        theirs = [p.grad for k, p in library.named_parameters() if k in kept]
        scale = max(grad.abs().max().item() for grad in theirs)
        assert_close(
            [p.grad for p in kept.values()],
            theirs,
            rtol=1e-3,
            atol=1e-6 * scale,  # a bias of the keys has none but noise
        )


@pytest.mark.parametrize('name', EFFICIENTFORMERS)
def test_efficientformer_at_another_size(name):
    model = perturb(build(name))
    outs = {}
    for dtype in torch.float32, torch.bfloat16:
        model.eval()
        with torch.autocast('cpu', torch.bfloat16, dtype == torch.bfloat16):
            torch.manual_seed(0)
            outs[dtype] = model(torch.rand(1, 3, 128, 160))
    for out, x in zip(*outs.values(), strict=True):
        scale = out.abs().max().item()
        assert_close(x.float(), out, rtol=0, atol=0.1 * scale)
    # The table matters, and learns, at every size.
    loss_of(outs[torch.float32]).backward()
    tables = [
        (key, p)
        for key, p in model.named_parameters()
        if key.endswith('attention_biases')
    ]
    assert len(tables) == (1 if name == 'efficientformer_l1' else 5)
    for key, p in tables:
        assert p.grad.abs().max() > 0, key
        p.data.mul_(2 * torch.rand_like(p))
    torch.manual_seed(0)
    again = model(torch.rand(1, 3, 128, 160))
    assert not torch.allclose(again[-1], outs[torch.float32][-1])


@pytest.mark.parametrize('size', [(7, 7), (4, 5), (16, 11), (1, 3)])
@pytest.mark.parametrize('stride', [1, 2])
def test_relative_bias(size, stride):
    table = torch.rand(2, 49, requires_grad=True)
    bias = relative_bias(table, (7, 7), size, stride)
    h, w = size
    rows, columns = math.ceil(h / stride), math.ceil(w / stride)
    assert bias.shape == (2, rows * columns, h * w)
    bias = bias.reshape(2, rows, columns, h, w)
    square = table.reshape(2, 7, 7)
    for i in range(rows):
        for j in range(columns):
            y, x = i * stride, j * stride
            # The bias of no distance stays, and only distance counts.
            assert_close(bias[:, i, j, y, x], square[:, 0, 0])
            assert_close(
                bias[:, i, j, y:, x:], bias[:, 0, 0, : h - y, : w - x]
            )
            assert_close(
                bias[:, i, j, : y + 1, : x + 1].flip(1, 2),
                bias[:, 0, 0, : y + 1, : x + 1],
            )
            if size == (7, 7):
                assert_close(
                    bias[:, i, j, y:, x:], square[:, : 7 - y, : 7 - x]
                )
    if h > 1:
        assert_close(bias[:, 0, 0, -1, -1], square[:, -1, -1])
    other = relative_bias(square.transpose(1, 2).flatten(1), (7, 7), (w, h))
    swapped = relative_bias(table, (7, 7), size)
    assert_close(
        other.reshape(2, w, h, w, h)
        .permute(0, 2, 1, 4, 3)
        .reshape_as(swapped),
        swapped,
    )
    bias.sum().backward()
    assert table.grad.sum() == pytest.approx(bias.numel(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', EFFICIENTFORMERS)
def test_efficientformer_compiles_and_copies(name):
    model = perturb(build(name)).eval()
    image = torch.rand(1, 3, 96, 64)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        expected = model(image)
        assert_close(compiled(image), expected, rtol=1e-3, atol=1e-4)
        assert_close(copy.deepcopy(model)(image), expected)
        assert_close(pickle.loads(pickle.dumps(model))(image), expected)


# Weights.


def load(name, path, **options):
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = TimmPyramid(name, init_cfg=init_cfg, **options)
    model.init_weights()
    return model.eval()


def assert_loaded(model, weights):
    """All that the model has is as timm's classifier has it."""
    for key, value in model.timm_model.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize('name', SMALL)
def test_a_classifier_of_timm_loads_completely(name, tmp_path):
    library = perturb(timm.create_model(name)).eval()
    torch.save(library.state_dict(), tmp_path / 'c.pth')
    model = load(name, tmp_path / 'c.pth')
    assert_loaded(model, library.state_dict())
    if name not in EFFICIENTFORMERS:
        image = torch.rand(1, 3, 64, 128)
        with torch.no_grad():
            expected = library.forward_intermediates(
                image, intermediates_only=True
            )
            for out, x in zip(model(image), expected[-4:], strict=True):
                assert torch.equal(out, x)


@pytest.fixture(
    scope='module', params=['efficientnet_lite0', *EFFICIENTFORMERS]
)
def source(request):
    return request.param, perturb(timm.create_model(request.param))


@pytest.mark.parametrize('prefix', ['module.', 'backbone.', 'ours'])
def test_wrapped_weights(source, prefix, tmp_path):
    name, library = source
    weights = library.state_dict()
    if prefix == 'ours':  # a detector or segmentor of a run
        prefix = 'backbone.timm_model.'
    content = {f'{prefix}{k}': v for k, v in weights.items()}
    if prefix.startswith('backbone.'):
        content['neck.conv.weight'] = torch.ones(1)
    torch.save(dict(state_dict=content, meta={}), tmp_path / 'c.pth')
    for options in {}, dict(out_indices=(0, 1)), dict(final_norm=True):
        assert_loaded(load(name, tmp_path / 'c.pth', **options), weights)


@pytest.mark.parametrize('features_only', [True, False])
def test_weights_of_mmpretrains_wrapper(source, features_only, tmp_path):
    from mmpretrain.models.backbones import TIMMBackbone

    name, library = source
    wrapper = perturb(TIMMBackbone(name, features_only), seed=1)
    content = {f'backbone.{k}': v for k, v in wrapper.state_dict().items()}
    content['head.fc.weight'] = torch.ones(1)
    torch.save(dict(state_dict=content), tmp_path / 'c.pth')
    model = load(name, tmp_path / 'c.pth')
    assert len(content) >= len(model.state_dict())
    found = {k.replace('.', '_'): v for k, v in wrapper.state_dict().items()}
    for key, value in model.state_dict().items():
        flat = key.replace('.', '_')
        inner = flat.replace('timm_model_', 'timm_model_model_')
        assert torch.equal(value, found[flat if flat in found else inner])


def test_weights_of_a_hub(tmp_path):
    """timm takes them from a file here, as the network is not ours."""
    from safetensors.torch import save_file

    library = perturb(timm.create_model('mobilenetv2_100'))
    path = tmp_path / 'model.safetensors'
    save_file(library.state_dict(), path)
    assert_loaded(load('mobilenetv2_100', path), library.state_dict())
    overlay = dict(pretrained_cfg_overlay=dict(file=str(path)))
    for spelling in 'timm', 'timm:ra_in1k':
        model = load('mobilenetv2_100', spelling, timm_args=overlay)
        assert_loaded(model, library.state_dict())
    with pytest.raises(CheckpointError, match='tag .nope.* give the path'):
        load('mobilenetv2_100', 'timm:nope', timm_args=overlay)
    path.write_bytes(b'no such thing')
    with pytest.raises(CheckpointError, match='cannot be read'):
        load('mobilenetv2_100', path)


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / 'c.pth'
    weights = timm.create_model('repvit_m0_9').state_dict()
    for other in 'mobilenetv2_100', 'repvit_m1_0':
        torch.save(timm.create_model(other).state_dict(), path)
        with pytest.raises(CheckpointError, match='c.pth does not fit Timm'):
            load('repvit_m0_9', path)
    key = 'stages.1.blocks.0.channel_mixer.conv1.c.weight'
    torch.save({k: v for k, v in weights.items() if k != key}, path)
    with pytest.raises(CheckpointError, match=f'file lacks timm_model.{key}'):
        load('repvit_m0_9', path)
    torch.save({**weights, 'neck.weight': torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match='model has no neck.weight'):
        load('repvit_m0_9', path)


# In our tasks.

FPN = str(ROOT / 'configs/seg/fpn_efficientmod_s_ade20k.py')
MASK_RCNN = str(ROOT / 'configs/det/mask_rcnn_efficientmod_s_fpn_1x_coco.py')
CAFFE = 'mmdet::mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'


@pytest.fixture
def free_models():
    """Whole detectors refer to themselves, and would pile up."""
    yield
    gc.collect()


def swap(config, name, **kwargs):
    return swap_backbone(load_config(config), name, **kwargs)


# Of our own code, tested by themselves elsewhere.
OWN = ('edgevit_xxs', 'edgevit_xs', 'edgevit_s', 'mbconv_xs', 'mbconv_s')
# One task of a family has to do for a quick look.
DETECT = {
    'mobilevitv2_100', 'efficientformerv2_s0', 'repvit_m0_9', 'poolformer_s12',
    'mbconv_xs',
}  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'config'),
    [
        pytest.param(
            name,
            config,
            marks=() if name in fast else pytest.mark.slow,
            id=f'{task}-{name}',
        )
        for task, config, fast in (
            ('fpn', FPN, {*SMALL_ENOUGH, 'edgevit_xxs'} - DETECT),
            ('mask_rcnn', MASK_RCNN, DETECT),
        )
        for name in (*FIGURES, *OWN)
    ],
)
def test_trains_and_predicts(name, config, free_models):
    fewer = {
        'model.train_cfg.rpn_proposal.max_per_img': 50,
        'model.train_cfg.rcnn.sampler.num': 32,
        'model.test_cfg.rpn.max_per_img': 50,
    }
    logs, grads, predictions = stock.train_step_and_predict(
        config, name, fewer if config == MASK_RCNN else None
    )
    for key, value in logs.items():
        assert torch.isfinite(torch.as_tensor(value)).all(), key
    assert len(grads) > 40
    for key, grad in grads.items():
        assert grad is not None, key
        assert torch.isfinite(grad).all(), key
    assert len(predictions) == 2


@pytest.mark.parametrize('name', ['focalnet_tiny_lrf', 'poolformer_s12'])
def test_classifies(name, free_models):
    cfg = swap(RESNET, name)
    assert cfg.model.head.in_channels == FIGURES[name][0][-1]
    logs, grads, predictions = stock.train_step_and_predict(RESNET, name)
    assert logs['loss'].isfinite()
    for key, grad in grads.items():
        assert grad is not None, key
    assert len(predictions) == 2
    normed = any(key.startswith('backbone.timm_model.norm') for key in grads)
    assert normed == (name == 'focalnet_tiny_lrf')


def test_images_are_as_the_weights_expect():
    for config in CAFFE, MASK_RCNN:
        inputs = swap(config, 'mobilevit-s').model.data_preprocessor
        assert (inputs.mean, inputs.std) == ([0.0] * 3, [255.0] * 3)
        assert inputs.bgr_to_rgb is True
    inputs = swap(RESNET, 'mobilevit_s').data_preprocessor
    assert inputs.std == [255.0] * 3
    ours = load_config(MASK_RCNN).model.data_preprocessor
    for name in 'repvit_m1_1', 'van_tiny':
        inputs = swap(CAFFE, name).model.data_preprocessor
        assert (inputs.mean, inputs.std) == (ours.mean, ours.std)
        assert inputs.bgr_to_rgb is True


def test_what_a_backbone_was_told(tmp_path):
    """Weights of timm, and what makes sense with them."""
    library = perturb(timm.create_model('repvit_m0_9'))
    torch.save(library.state_dict(), tmp_path / 'c.pth')
    stock_config = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    cfg = swap(stock_config, 'repvit_m0_9', pretrained=tmp_path / 'c.pth')
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.model.backbone.norm_eval is True
    model = stock.build(cfg).train()
    assert_loaded(model.backbone, library.state_dict())
    assert not model.backbone.timm_model.stages[0].training
    assert model.backbone.timm_model.stages[1].training
    # VAN counts its stages otherwise.
    torch.save(build('van_tiny').state_dict(), tmp_path / 'c.pth')
    cfg = swap(stock_config, 'van_tiny', pretrained=tmp_path / 'c.pth')
    assert 'frozen_stages' not in cfg.model.backbone
    assert cfg.model.backbone.norm_eval is True
    (tmp_path / 'c.pth').write_bytes(b'')
    cfg = swap(stock_config, 'repvit_m0_9', pretrained=tmp_path / 'c.pth')
    with pytest.raises(CheckpointError, match='cannot be read'):
        stock.build(cfg)
