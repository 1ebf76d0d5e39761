"""The backbone: numbers, gradients, shapes and every option's effect."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import (
    OFFICIAL,
    TINY,
    assert_matches,
    official_model,
    official_weights,
    randomise,
)
from mmengine.runner.checkpoint import load_state_dict
from torch.testing import assert_close

from mmefficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod import (
    AttentionBlock,
    ModulationBlock,
)
from mmefficientmod.models.backbones.efficientmod_variants import ARCHS
from mmefficientmod.models.backbones.efficientmod_weights import (
    rename_official_keys,
)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-7)]
)
@pytest.mark.parametrize('grad', [True, False], ids=['grad', 'no_grad'])
@pytest.mark.parametrize('arch', ['s', 's_conv'])
def test_same_numbers_as_the_authors(arch, grad, dtype, tolerance):
    vectors = OFFICIAL[arch]
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.standard_normal(vectors['input_shape']))
    image = image.to(dtype)
    with torch.set_grad_enabled(grad):
        features = official_model(arch, dtype)(image)
        last = official_model(arch, dtype, out_indices=3, final_norm=True)
        head = torch.nn.Linear(last.norm.weight.numel(), 1000).to(dtype)
        weights = official_weights(arch)
        head.load_state_dict(
            {k: weights[f'head.{k}'] for k in ('weight', 'bias')}
        )
        logits = head(last(image)[0].mean((2, 3)))
    assert len(features) == 4
    for feature, vector in zip(features, vectors['features'], strict=True):
        assert_matches(feature.detach(), vector, tolerance)
    assert_matches(logits.detach(), vectors['logits'], tolerance)


@pytest.mark.parametrize('arch', ARCHS)
def test_keys_and_shapes_map_one_to_one(arch):
    official = official_weights(arch)
    renamed = rename_official_keys(official)
    assert len(renamed) == len(official)
    model = EfficientMod(arch, final_norm=True)
    head = {'head.weight', 'head.bias'}
    own = {k: v.shape for k, v in model.state_dict().items()}
    assert own == {k: v.shape for k, v in renamed.items() if k not in head}
    assert rename_official_keys(renamed).keys() == renamed.keys()
    params = sum(p.numel() for p in model.parameters())
    params += sum(renamed[k].numel() for k in head)
    assert params == OFFICIAL[arch]['params']


@pytest.mark.parametrize('size', [(64, 64), (97, 71), (33, 130)])
@pytest.mark.parametrize('arch', ARCHS)
def test_float32_gradients_agree_with_float64(arch, size):
    double = official_model(arch).train()
    for module in double.modules():
        if hasattr(module, 'drop_prob'):
            module.drop_prob = 0.0
    single = copy.deepcopy(double).float()
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    grads = [torch.randn(x.shape, dtype=torch.float64) for x in double(image)]
    torch.autograd.backward(double(image), grads)
    torch.autograd.backward(single(image.float()), [g.float() for g in grads])
    for (name, p), q in zip(
        single.named_parameters(), double.parameters(), strict=True
    ):
        scale = q.grad.abs().max().item()
        assert scale > 0, name
        assert_close(
            p.grad.double(),
            q.grad,
            rtol=0,
            atol=1e-4 * scale,
            msg=lambda m, name=name: f'{name}: {m}',
        )


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('size', [(32, 32), (97, 130), (100, 31), (7, 5)])
def test_shapes_at_any_size(arch, size):
    model = EfficientMod(arch)
    outs = model(torch.rand(2, 3, *size))
    assert isinstance(outs, tuple)
    assert model.out_strides == (4, 8, 16, 32)
    for out, channels, stride in zip(
        outs, model.out_channels, model.out_strides, strict=True
    ):
        h, w = size
        # A convolution of stride 2 and 3x3 kernel, and a stem of stride 4
        # and 7x7 kernel, round up.
        expected = (2, channels, math.ceil(h / stride), math.ceil(w / stride))
        assert tuple(out.shape) == expected
        assert out.is_contiguous()
        assert out.isfinite().all()


@pytest.mark.parametrize(
    ('out_indices', 'stages'),
    [(3, [3]), (-1, [3]), ((0, -1), [0, 3]), ((1, 2), [1, 2]), ([0], [0])],
)
def test_out_indices(out_indices, stages):
    image = torch.rand(1, 3, 64, 64)
    full = EfficientMod(TINY)
    part = EfficientMod(TINY, out_indices=out_indices)
    part.load_state_dict(full.state_dict(), strict=False)
    assert part.out_channels == tuple(TINY['dims'][i] for i in stages)
    outs = full(image)
    for got, i in zip(part(image), stages, strict=True):
        assert_close(got, outs[i])
    # Nothing is built that no output depends on.
    sum(out.mean() for out in part(image)).backward()
    assert all(p.grad is not None for p in part.parameters())


def test_variants_are_those_of_the_paper():
    blocks = {
        arch: [
            [type(b) for b in stage.blocks]
            for stage in EfficientMod(arch).stages
        ]
        for arch in ARCHS
    }
    m, a = ModulationBlock, AttentionBlock
    assert blocks['s'] == [[m] * 4, [m] * 4, [m] * 8 + [a] * 4, [m, a] * 0
                           + [m] * 4 + [a] * 4]  # fmt: skip
    assert blocks['s_conv'] == [[m] * 4, [m] * 4, [m] * 12, [m] * 8]
    ratios = [b.mlp.expand_ratio for b in EfficientMod('xs').stages[1].blocks]
    assert ratios == [1, 4, 1]
    assert EfficientMod('s').stages[3].blocks[-1].mlp.fc1.out_features == 1560


def test_drop_path_rises_linearly_and_acts():
    model = EfficientMod(TINY, drop_path_rate=0.7)
    rates = []
    for block in (b for s in model.stages for b in s.blocks):
        rates.append(getattr(block.drop_path, 'drop_prob', 0.0))
    assert rates == pytest.approx(np.linspace(0, 0.7, 8).tolist())
    randomise(model)
    image = torch.rand(4, 3, 32, 32)
    model.train()
    assert not torch.equal(model(image)[-1], model(image)[-1])
    model.eval()
    assert_close(model(image)[-1], model(image)[-1])
    for arch, rate in dict(xxs=0, xs=0, s=0.02, s_conv=0.02).items():
        block = EfficientMod(arch).stages[-1].blocks[-1]
        assert getattr(block.drop_path, 'drop_prob', 0) == pytest.approx(rate)


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    model = EfficientMod('xxs', final_norm=True)
    linear = torch.cat(
        [
            m.weight.detach().flatten()
            for m in model.modules()
            if isinstance(m, torch.nn.Linear)
        ]
    )
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    assert linear.mean().item() == pytest.approx(0, abs=1e-4)
    bound = 1 / math.sqrt(3 * 49)  # PyTorch's: uniform in 1 / sqrt(fan in)
    proj = model.stem.proj.weight
    assert proj.abs().max().item() == pytest.approx(bound, rel=0.05)
    assert proj.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for name, p in model.named_parameters():
        if name.endswith('gamma'):
            assert_close(p, torch.full_like(p, 1e-4))
        elif 'norm' in name:
            assert_close(p, torch.full_like(p, name.endswith('weight')))
        elif name.endswith(('fc1.bias', 'fc2.bias', '.f.bias', '.g.bias')):
            assert not p.any()


def test_layer_scale_and_in_channels():
    model = EfficientMod(TINY, layer_scale_init_value=0.3, in_channels=4)
    assert_close(model.stages[0].blocks[0].gamma, torch.full((8,), 0.3))
    assert model(torch.rand(1, 4, 32, 32))[0].shape == (1, 8, 8, 8)
    plain = EfficientMod(TINY, layer_scale_init_value=0)
    assert not any('gamma' in n for n, _ in plain.named_parameters())
    one = EfficientMod(TINY, layer_scale_init_value=1.0)
    missing, _ = plain.load_state_dict(one.state_dict(), strict=False)
    assert not missing
    image = torch.rand(1, 3, 32, 32)
    assert_close(plain(image), one(image))


def test_final_norm():
    model = randomise(EfficientMod(TINY, final_norm=True))
    plain = EfficientMod(TINY)
    plain.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(2, 3, 64, 64)
    *_, third, last = plain(image)
    expected = model.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_close(model(image)[-1], expected)
    assert_close(model(image)[-2], third)


def test_with_cp_gives_the_same_gradients_for_less_memory():
    image = torch.rand(2, 3, 64, 64)
    grads, saved = [], []
    for with_cp in (False, True):
        model = randomise(EfficientMod(TINY, with_cp=with_cp)).train()
        numel = 0

        def pack(x):
            nonlocal numel
            numel += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = sum(x.square().mean() for x in model(image))
        saved.append(numel)
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
    assert_close(grads[0], grads[1])
    assert saved[1] < 0.5 * saved[0]


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages(frozen_stages):
    model = EfficientMod(
        TINY,
        frozen_stages=frozen_stages,
        drop_path_rate=0.5,
        final_norm=True,
    )
    assert model.train() is model
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    parts = ('stem.', 'stages.0.', 'stages.1.', 'stages.2.', 'stages.3.')
    parts = parts[: frozen_stages + 1] + ('norm.',) * (frozen_stages == 4)
    names = [n for n, _ in model.named_parameters()]
    assert frozen == {n for n in names if parts and n.startswith(parts)}
    for name, module in model.named_modules():
        if name:
            in_eval = bool(parts) and f'{name}.'.startswith(parts)
            assert module.training != in_eval or name == 'stages', name
    assert model.eval() is model
    assert not model.training


def test_norm_eval_keeps_batch_norms_in_evaluation():
    for norm_eval in (False, True):
        model = EfficientMod(TINY, norm_eval=norm_eval)
        model.stem.norm = torch.nn.BatchNorm1d(8)
        model.train()
        assert model.training
        assert model.stem.norm.training is not norm_eval


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = randomise(EfficientMod(TINY)).train()
    image = torch.rand(2, 3, 64, 64)
    expected = model(image)
    if dtype == torch.float16 and torch.__version__ < '2.3':
        pytest.skip('float16 autocast on a CPU came with torch 2.3')
    with torch.autocast('cpu', dtype=dtype):
        outs = model(image)
        sum(x.float().square().mean() for x in outs).backward()
    for out, x in zip(outs, expected, strict=True):
        scale = x.abs().max().item()
        assert_close(out.float(), x, rtol=0, atol=0.05 * scale)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_deepcopy_and_pickle(tmp_path):
    model = randomise(EfficientMod(TINY)).eval()
    image = torch.rand(1, 3, 40, 40)
    assert_close(copy.deepcopy(model)(image), model(image))
    torch.save(model, tmp_path / 'model.pth')
    loaded = torch.load(tmp_path / 'model.pth', weights_only=False)
    assert_close(loaded(image), model(image))


@pytest.mark.parametrize('arch', [*ARCHS, 'tiny'])
def test_folded_for_inference(arch):
    settings = TINY if arch == 'tiny' else arch
    gamma = 0 if arch == 'tiny' else 1e-4  # a model without layer scale
    model = EfficientMod(settings, layer_scale_init_value=gamma)
    randomise(model, 1).eval()
    image = torch.rand(2, 3, 70, 64)
    with torch.no_grad():
        expected = model(image)
        folded = model.switch_to_deploy()
        assert folded is model
        assert folded.switch_to_deploy() is model  # again changes nothing
        for out, x in zip(folded(image), expected, strict=True):
            assert (out - x).abs().max() <= 1e-5 * x.abs().max()
    left = {name.split('.')[-1] for name in model.state_dict()}
    assert left == {'weight', 'bias'}  # no gamma
    blocks = [m for stage in model.stages for m in stage.blocks.modules()]
    norms = [m for m in blocks if isinstance(m, torch.nn.LayerNorm)]
    assert norms
    assert not any(norm.state_dict() for norm in norms)
    assert not any(p.requires_grad for p in model.parameters())
    # The gradient of the image is still computed.
    image.requires_grad_()
    outs = model(image)
    assert_close(outs[0].detach(), expected[0], rtol=1e-3, atol=1e-4)
    outs[-1].sum().backward()
    assert image.grad.abs().max() > 0
    with pytest.raises(RuntimeError, match='cannot be trained any more'):
        model.train()
    assert not model.training


def test_model_that_cannot_be_folded_is_refused():
    class Lora(torch.nn.Linear):
        pass

    model = EfficientMod(TINY)
    before = copy.deepcopy(model.state_dict())
    model.stages[1].blocks[0].mlp.fc1 = Lora(16, 16)
    with pytest.raises(RuntimeError, match='this Lora is not plain'):
        model.switch_to_deploy()
    weight = model.stages[0].blocks[0].mlp.fc1.weight
    assert_close(weight.detach(), before['stages.0.blocks.0.mlp.fc1.weight'])

    model = EfficientMod(TINY).switch_to_deploy()
    with pytest.raises(RuntimeError, match='cannot load weights from'):
        load_state_dict(model, before)
    model.load_state_dict(copy.deepcopy(model).state_dict())


@pytest.mark.parametrize('grad', [True, False])
def test_empty_batch(grad):
    model = EfficientMod(TINY)
    with torch.set_grad_enabled(grad):
        outs = model(torch.rand(0, 3, 64, 64))
    assert [len(x) for x in outs] == [0] * 4
    if grad:
        sum(x.sum() for x in outs).backward()
        assert not model.stem.proj.weight.grad.any()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='m'), r"no arch 'm'.*xxs, xs, s, s_conv"),
        (dict(arch=dict(dims=(8,))), 'missing keys: attn_depths'),
        (dict(arch={**TINY, 'dim': 1}), 'unknown keys: dim'),
        (dict(arch={**TINY, 'depths': (1, 1)}), r'4 dims but 2 depths'),
        (dict(arch={**TINY, 'expand_ratios': ()}), 'expand_ratios .* empty'),
        (dict(arch={**TINY, 'expand_ratios': (1.3,)}), '1.3 .* an integer'),
        (dict(arch={**TINY, 'expand_ratios': (0,)}), 'the ratio 0 in'),
        (
            dict(arch={**TINY, 'block': 'mbconv', 'expand_ratios': (-1,)}),
            'the ratio -1 .* a number above 0',
        ),
        (dict(out_indices=(0, 4)), r'out_indices=\(0, 4\).*-4 to 3'),
        (dict(out_indices=-5), 'out of range'),
        (dict(out_indices=(2, 1)), 'ascending'),
        (dict(out_indices=()), 'at least one'),
        (dict(out_indices=(3, -1)), 'each once'),
        (dict(frozen_stages=5), 'frozen_stages=5'),
        (dict(drop_path_rate=1.5), 'drop_path_rate=1.5'),
        (dict(out_indices=(0, 1), final_norm=True), 'final_norm'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EfficientMod(**kwargs)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (torch.rand(3, 64, 64), r'batch dimension, as in image\[None\]'),
        (torch.rand(1, 1, 3, 64, 64), r'the shape \(1, 1, 3, 64, 64\)$'),
        (torch.rand(1, 1, 64, 64), 'build it with in_channels=1, or convert'),
        (torch.rand(1, 64, 64, 3), r'images.permute\(0, 3, 1, 2\)'),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            r'torch.uint8: convert it, as in images.float\(\), and normalise',
        ),
        (np.zeros((1, 3, 64, 64), np.float32), 'was given ndarray'),
    ],
)
def test_input_that_is_no_batch_of_images_is_refused(image, message):
    expected = r'^EfficientMod expects .* \(N, 3, H, W\).*' + message
    with pytest.raises(ValueError, match=expected):
        EfficientMod(TINY)(image)


def test_channels_of_a_replaced_stem_are_accepted():
    model = EfficientMod(TINY)
    model.stem.proj = torch.nn.Conv2d(1, 8, 7, stride=4, padding=3)
    assert model(torch.rand(1, 1, 32, 32))[0].shape == (1, 8, 8, 8)
    with pytest.raises(ValueError, match=r'\(N, 1, H, W\)'):
        model(torch.rand(1, 3, 32, 32))


def test_unknown_argument_is_refused():
    with pytest.raises(TypeError, match='drop_rate'):
        EfficientMod('s', drop_rate=0.1)


def test_hyphen_is_as_good_as_the_underscore():
    assert EfficientMod('s-conv').out_channels == (40, 80, 160, 344)
