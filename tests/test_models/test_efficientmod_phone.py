"""The variants for phones: figures, gradients, folding, export, options."""

import copy
import io
import math

import onnx
import pytest
import stock
import torch
import torch.nn.functional as F
from helpers import ROOT, TINY_PHONE, randomise
from torch import nn
from torch.testing import assert_close

from mmefficientmod import EfficientMod
from mmefficientmod.analysis.complexity import measure
from mmefficientmod.apis.converting import recognise_arch
from mmefficientmod.benchmark.breakdown import BLOCK_KINDS
from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import build_model, input_size
from mmefficientmod.models.backbones.efficientmod_phone import (
    ConvNorm,
    PhoneBlock,
)
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    PHONE_ARCHS,
)
from mmefficientmod.torch_private import BatchNorm

# The paper's xxs (Conv), in 1e6 parameters and 1e9 multiply-adds at 224. It
# has no figures of the model with batch norms.
PUBLISHED = (4.4, 0.7)


def phone(arch=TINY_PHONE, **options):
    """A model whose weights, norms and statistics are far from the initial."""
    torch.manual_seed(0)
    model = randomise(EfficientMod(arch, **options))
    for norm in model.modules():
        if isinstance(norm, BatchNorm):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval()


@pytest.fixture(scope='module')
def image():
    torch.manual_seed(1)
    return torch.randn(2, 3, 70, 64)


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('arch', PHONE_ARCHS)
def test_classifier_has_the_published_params_and_flops(arch, deploy):
    cfg = load_config(str(ROOT / f'configs/cls/efficientmod_{arch}_in1k.py'))
    model = build_model(cfg).eval()
    if deploy:
        model.backbone.switch_to_deploy()
    result = measure(model, input_size(cfg))
    assert result.uncounted == {}
    found = result.params / 1e6, result.flops / 1e9
    assert tuple(round(x, 1) for x in found) == PUBLISHED


def test_widths_and_depths_are_inferred_by_the_rule_of_s_conv():
    def blocks(arch):
        both = zip(arch['depths'], arch['attn_depths'], strict=True)
        return tuple(map(sum, both))

    xxs, conv = ARCHS['xxs'], PHONE_ARCHS['xxs_conv']
    assert blocks(ARCHS['s']) == ARCHS['s_conv']['depths']
    assert blocks(xxs) == conv['depths']
    assert conv['dims'][2:] == xxs['dims'][2:]
    for name in ('xxs_conv', 'xxs_phone'):
        arch = PHONE_ARCHS[name]
        assert {k for k, v in conv.items() if arch[k] != v} <= {'block'}
        assert not any(arch['attn_depths'])


@pytest.mark.parametrize('ratio', [1, 3])
@pytest.mark.parametrize('gamma', [0, 0.5])
def test_block_by_hand(ratio, gamma):
    block = randomise(PhoneBlock(8, ratio, 0.0, gamma)).double().train()
    mlp, context = block.mlp, block.mlp.context
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 6, dtype=torch.float64)

    def conv_norm(layer, x, groups=1):
        weight, norm = layer.proj.weight, layer.norm
        y = F.conv2d(x, weight, None, 1, weight.shape[-1] // 2, 1, groups)
        mean = y.mean((0, 2, 3), keepdim=True)
        var = y.var((0, 2, 3), unbiased=False, keepdim=True)
        y = (y - mean) / (var + 1e-5).sqrt()
        return y * norm.weight[:, None, None] + norm.bias[:, None, None]

    value = conv_norm(mlp.fc1, x)
    if ratio > 1:
        value = F.gelu(value)
    y = F.gelu(conv_norm(context.conv, conv_norm(context.f, x), 8))
    y = conv_norm(context.g, y)
    groups = [y * v for v in value.split(8, 1)]  # the context in each group
    y = conv_norm(mlp.fc2, torch.cat(groups, 1))
    if gamma:
        y = y * block.gamma[:, None, None]
    assert_close(block(x), x + y)


def test_batch_norm_follows_each_convolution_and_no_layer_norm_is_left():
    model = EfficientMod('xxs_phone', final_norm=True)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    pairs = [m for m in model.modules() if isinstance(m, ConvNorm)]
    assert {id(m) for m in convs} == {id(m.proj) for m in pairs}
    assert all(isinstance(m.norm, nn.BatchNorm2d) for m in pairs)
    assert all(m.bias is None for m in convs)
    assert isinstance(model.norm, nn.BatchNorm2d)
    kinds = {type(m) for m in model.modules()}
    assert not {nn.LayerNorm, nn.Linear} & kinds


def test_initial_weights_are_those_of_linear_layers():
    model = EfficientMod('xxs_phone')
    weights = [
        m.proj.weight.flatten()
        for m in model.stages.modules()
        if isinstance(m, ConvNorm) and m.proj.kernel_size == (1, 1)
    ]
    assert torch.cat(weights).std().item() == pytest.approx(0.02, rel=0.02)
    bound = 1 / math.sqrt(3 * 49)  # PyTorch's default for convolutions
    largest = model.stem.proj.weight.abs().max().item()
    assert largest == pytest.approx(bound, rel=0.05)
    assert_close(model.stages[0].blocks[0].gamma, torch.full((48,), 1e-4))


@pytest.mark.parametrize('arch', PHONE_ARCHS)
def test_shapes_and_gradients_at_any_size(arch):
    model = phone(arch).train()
    outs = model(torch.rand(2, 3, 97, 66))
    for out, channels, stride in zip(
        outs, PHONE_ARCHS[arch]['dims'], (4, 8, 16, 32), strict=True
    ):
        size = (math.ceil(97 / stride), math.ceil(66 / stride))
        assert tuple(out.shape) == (2, channels, *size)
        assert out.is_contiguous()
    torch.autograd.backward(outs, [torch.randn_like(x) for x in outs])
    assert not [n for n, p in model.named_parameters() if not p.grad.any()]


@pytest.mark.parametrize(
    'memory_format', [torch.contiguous_format, torch.channels_last]
)
def test_float32_gradients_agree_with_float64(image, memory_format):
    """Also where convolutions return channels_last tensors."""
    model = phone().train()
    double = copy.deepcopy(model).double()
    model.to(memory_format=memory_format)
    for m, x in (model, image), (double, image.double()):
        outs = m(x.contiguous(memory_format=memory_format))
        assert all(out.is_contiguous() for out in outs)
        torch.manual_seed(2)
        grads = [torch.randn(x.shape, dtype=torch.float64) for x in outs]
        grads = [g.to(x) for g, x in zip(grads, outs, strict=True)]
        torch.autograd.backward(outs, grads)
    pairs = zip(model.parameters(), double.parameters(), strict=True)
    for p, q in pairs:
        scale = q.grad.abs().max().item()
        assert scale > 0
        assert_close(p.grad.double(), q.grad, rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize('arch', ['tiny', *PHONE_ARCHS])
@pytest.mark.parametrize('gamma', [0, 1e-4])
def test_folded_for_inference(arch, gamma, image):
    settings = TINY_PHONE if arch == 'tiny' else arch
    model = phone(settings, layer_scale_init_value=gamma, final_norm=True)
    weights = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(image)
        assert model.switch_to_deploy() is model
        for out, x in zip(model(image), expected, strict=True):
            assert (out - x).abs().max() <= 1e-5 * x.abs().max()
    assert model.deployed
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError, match='cannot be trained any more'):
        model.train()
    with pytest.raises(RuntimeError, match='cannot load weights from'):
        model.load_state_dict(weights)


def test_folded_model_has_convolutions_and_a_final_batch_norm_only():
    model = phone(final_norm=True).switch_to_deploy()
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert norms == [model.norm]
    left = {k.partition('.')[0] for k in model.state_dict()}
    assert left == {'stem', 'stages', 'norm'}
    for key in model.state_dict():
        parts = ('.proj.weight', '.proj.bias')
        assert key.endswith(parts) or key.startswith('norm.')


def test_norms_that_cannot_be_folded_are_refused():
    model = phone()
    fc1 = model.stages[1].blocks[0].mlp.fc1
    fc1.norm = nn.GroupNorm(1, 16)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match='needs batch norms.*GroupNorm'):
        model.switch_to_deploy()
    assert_close(model.state_dict(), before)
    assert not model.deployed
    fc1.norm = nn.SyncBatchNorm(16).eval()
    assert model.switch_to_deploy().deployed


@pytest.mark.parametrize('deploy', [False, True])
def test_exported_graph_has_no_permutes_and_no_shapes(image, deploy):
    model = phone()
    if deploy:
        model.switch_to_deploy()
    file = io.BytesIO()
    torch.onnx.export(
        model,
        (image,),
        file,
        opset_version=17,
        **(dict(dynamo=False) if torch.__version__ > '2.5' else {}),
    )
    graph = onnx.load_from_string(file.getvalue()).graph
    kinds = {node.op_type for node in graph.node}
    assert kinds <= {
        'Conv', 'Add', 'Mul', 'Div', 'Erf', 'Concat', 'Constant', 'Identity',
    } | ({'BatchNormalization'} if not deploy else set())  # fmt: skip


def test_with_cp_gives_the_same_gradients_and_statistics(image):
    grads, buffers = [], []
    for with_cp in (False, True):
        model = phone(with_cp=with_cp).train()
        sum(x.square().mean() for x in model(image)).backward()
        grads.append([p.grad for p in model.parameters()])
        buffers.append(dict(model.named_buffers()))
    assert_close(grads[0], grads[1])
    assert_close(buffers[0], buffers[1])


def test_out_indices_frozen_stages_and_norm_eval(image):
    full = phone()
    part = EfficientMod(TINY_PHONE, out_indices=(0, 2)).eval()
    part.load_state_dict(full.state_dict(), strict=False)
    assert len(part.stages) == 3
    assert_close(part(image), (full(image)[0], full(image)[2]))
    frozen = EfficientMod(TINY_PHONE, frozen_stages=1).train()
    before = copy.deepcopy(frozen.state_dict())
    frozen(image)
    changed = {
        key
        for key, value in frozen.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert changed
    assert not any(k.startswith(('stem.', 'stages.0.')) for k in changed)
    assert not frozen.stem.proj.weight.requires_grad
    still = EfficientMod(TINY_PHONE, norm_eval=True).train()
    norms = [m for m in still.modules() if isinstance(m, BatchNorm)]
    assert norms
    assert not any(m.training for m in norms)


def test_drop_path_drops_samples(image):
    model = phone(drop_path_rate=0.9, layer_scale_init_value=1.0)
    kept = model(image)
    for norm in model.modules():
        if not isinstance(norm, BatchNorm):
            norm.training = True
    torch.manual_seed(0)
    assert (model(image)[-1] - kept[-1]).abs().max() > 0.1
    default = EfficientMod('xxs_phone')
    assert not any(hasattr(m, 'drop_prob') for m in default.modules())


def test_layer_depth_grows_with_the_network():
    model = EfficientMod('xxs-phone', final_norm=True)
    depths = [
        model.get_layer_depth(name) for name, _ in model.named_parameters()
    ]
    layers = [layer for layer, _ in depths]
    assert layers == sorted(layers)
    assert set(layers) == set(range(depths[0][1]))


def test_checkpoints_are_loaded_and_recognised(tmp_path, image):
    model = phone('xxs_phone')
    path = tmp_path / 'phone.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    loaded = EfficientMod('xxs_phone', init_cfg=init_cfg)
    loaded.init_weights()
    assert_close(loaded.eval()(image), model(image))
    for arch in ('xxs', *PHONE_ARCHS):
        assert recognise_arch(EfficientMod(arch).state_dict()) == arch


def test_breakdown_counts_phone_blocks():
    model = EfficientMod(TINY_PHONE)
    counts = {
        kind: sum(isinstance(m, classes) for m in model.modules())
        for kind, classes in BLOCK_KINDS.items()
    }
    assert list(counts.values()) == [4, 6, 0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(reparam=True), 'phone.*take no branches'),
        (
            dict(arch={**TINY_PHONE, 'attn_depths': (0, 0, 0, 1)}),
            r'no attention, and attn_depths is \(0, 0, 0, 1\)',
        ),
        (
            dict(arch={**TINY_PHONE, 'expand_ratios': (1.5,)}),
            "block='phone'.*1.5 in expand_ratios; each must be an integer",
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EfficientMod(**{'arch': TINY_PHONE, **options})


@pytest.mark.parametrize('size', [(3, 64, 64), (2, 4, 64, 64)])
def test_wrong_images_are_refused(size):
    with pytest.raises(ValueError, match='expects a batch of images'):
        EfficientMod(TINY_PHONE)(torch.rand(*size))


@pytest.mark.parametrize(
    ('config', 'name'),
    [
        (
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
            'efficientmod_xxs_phone',
        ),
        (
            'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
            'efficientmod_xxs_phone',
        ),
        pytest.param(
            'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
            'efficientmod_xxs_conv',
            marks=pytest.mark.slow,
        ),
        (
            'mmpretrain::resnet/resnet50_8xb32_in1k.py',
            'efficientmod_xxs_phone',
        ),
    ],
)
def test_stock_models_train_and_predict(config, name, probed_once):
    logs, grads, predictions = stock.train_step_and_predict(config, name)
    for key, value in logs.items():
        assert torch.isfinite(torch.as_tensor(value)).all(), key
    own = [g for k, g in grads.items() if k.startswith('backbone.')]
    assert len(own) > 100
    assert all(g is not None and g.isfinite().all() for g in own)
    assert len(predictions) == 2
