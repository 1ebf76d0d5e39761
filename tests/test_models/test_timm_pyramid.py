"""Backbones of timm as pyramids: levels, options, deploying and weights."""

import copy
import math

import pytest
import timm
import torch
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from rivals import (
    EFFICIENTFORMERS,
    FIGURES,
    SIZES,
    SMALL,
    assert_loaded,
    build,
    loss_of,
    perturb,
)
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmefficientmod.analysis import complexity
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.models import TimmPyramid
from mmefficientmod.models.layers.deploy import switch_to_deploy


@pytest.mark.parametrize('name', SIZES)
def test_parameters_and_multiply_adds(name):
    _, params, macs = FIGURES[name]
    model = build(name)
    total = sum(p.numel() for p in model.parameters())
    assert total / 1e6 == pytest.approx(params, rel=0.01)
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False  # the counter ignores fused attention
    size = 256 if name.startswith('mobilevitv2') else 224
    image = torch.zeros(1, 3, size, size, device='meta')
    with FlopCounterMode(display=False) as counter:
        model.eval()
        model.to('meta')(image)
    found = counter.get_total_flops() / 2e9
    assert found == pytest.approx(macs, rel=0.01)


# MMEngine's counter counts norms as well.
@pytest.mark.parametrize(
    ('name', 'flops'),
    [('mobilenetv2_100', 0.293), ('efficientformerv2_s0', 0.407)],
)
def test_get_flops_counts_all_operators(name, flops):
    model = build(name)
    found = complexity.measure(model, (224, 224)).flops
    assert found / 1e9 == pytest.approx(flops, rel=0.01)
    assert complexity.measure(model, (97, 130)).uncounted == {}


@pytest.mark.parametrize('name', SIZES)
def test_levels_have_their_shapes_and_all_weights_gradients(name):
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
        # The stem of PoolFormer pads less than half of its kernel.
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
def test_with_cp_is_refused_by_backbones_without_it(name):
    with pytest.raises(TypeError, match='with_cp'):
        build(name, with_cp=True)


@pytest.mark.parametrize('name', SMALL)
def test_frozen_stages_are_the_layers_that_their_level_reads(name):
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
    # A training step changes no tensor of the first two levels.
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
def test_out_indices_select_levels(name, out_indices, levels):
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


def test_options_reach_the_network():
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
def test_final_norm_is_applied_to_the_last_level(name):
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


def test_other_timm_models_with_a_pyramid():
    """ConvNeXt drops rows of odd images; EfficientNet begins at stride 2."""
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


def test_init_weights_keeps_the_weights_of_timm():
    model = build('efficientformerv2_s0')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['repvit_m0_9', 'fasternet_t0'])
def test_switch_to_deploy_keeps_the_outputs(name):
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
    with pytest.raises(RuntimeError, match='cannot load weights from'):
        model.load_state_dict(before)
    model.load_state_dict(copy.deepcopy(model).state_dict())


def test_changed_layers_are_not_folded():
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
    with pytest.raises(
        RuntimeError, match='changes the outputs of this repvit_m0_9'
    ):
        model.switch_to_deploy()
    assert not model.deployed
    model.train().load_state_dict(before)


# ------------------------------------------------------------------ weights


def load(name, path, **options):
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = TimmPyramid(name, init_cfg=init_cfg, **options)
    model.init_weights()
    return model.eval()


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
def test_weights_with_a_prefix_load(source, prefix, tmp_path):
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
def test_weights_of_mmpretrains_wrapper_load(source, features_only, tmp_path):
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


def test_weights_of_the_hub_load(tmp_path):
    """timm reads them from a file here: tests use no network."""
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


def test_weights_that_do_not_fit_are_refused(tmp_path):
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
