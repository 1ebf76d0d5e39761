"""Parameters and FLOPs: against the paper, PyTorch's counter, known models."""

import json

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmefficientmod import EfficientMod
from mmefficientmod.analysis.complexity import TensorForward, measure
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model, input_size
from mmefficientmod.models.backbones.efficientmod_variants import ARCHS

SEG = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'
# In 1e9 multiply-adds at 224 and 1e6 parameters, as the paper prints them.
PAPER = dict(
    xxs=(0.6, 4.7), xs=(0.8, 6.6), s=(1.4, 12.9), s_conv=(1.5, 12.9)
)  # fmt: skip


def products(result):
    """FLOPs that PyTorch's counter includes: all but norms and resizing."""
    kinds = ('conv', 'linear', 'matmul', 'addmm', 'bmm', 'attention')
    return sum(result.by_operator.get(k, 0) for k in kinds)


def torch_products(model, image):
    """Multiply-adds by PyTorch's counter, which counts each as two FLOPs."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(image)
    flops, odd = divmod(counter.get_total_flops(), 2)
    assert not odd
    return flops


@pytest.mark.parametrize('arch', ARCHS)
def test_backbone_has_the_published_params_and_flops(arch):
    model = EfficientMod(arch, final_norm=True)
    result = measure(model, (224, 224))
    flops, params = PAPER[arch]
    dim = model.out_channels[-1]
    head = dim * 1000 + 1000
    assert round((result.flops + dim * 1000) / 1e9, 1) == flops
    assert round((result.params + head) / 1e6, 1) == params
    # On the device meta, PyTorch's counter gets attention as products of
    # matrices; it has no formula for the fused kernel of CPUs.
    image = torch.zeros(1, 3, 224, 224, device='meta')
    assert products(result) == torch_products(model.to('meta'), image)
    assert result.uncounted == {}


def expected_products(arch, size):
    """Multiply-adds by the paper's formula of a block, and of other layers.

    Modulation: ``2 (r + 1) HW C^2 + HW k^2 C``. Attention with heads of d
    channels over L = HW positions: ``4 L C 8d`` in the projections,
    ``2 L^2 8d`` in the products, and the MLP.
    """
    arch = ARCHS[arch]
    total, before, kernel = 0, 3, 7
    height, width = size
    for i, dim in enumerate(arch['dims']):
        stride = 2 if i else 4
        height, width = -(-height // stride), -(-width // stride)
        pixels = height * width
        total += pixels * before * dim * kernel**2
        before, kernel = dim, 3
        for j in range(arch['depths'][i]):
            ratio = arch['expand_ratios'][j % len(arch['expand_ratios'])]
            total += 2 * (ratio + 1) * pixels * dim**2 + pixels * 7**2 * dim
        inner = 8 * max(dim // 8, 32)
        total += arch['attn_depths'][i] * (
            4 * pixels * dim * inner
            + 2 * pixels**2 * inner
            + 2 * pixels * dim * dim * arch['attn_mlp_ratios'][i]
        )
    return total


@pytest.mark.parametrize('size', [(224, 224), (97, 130)])
@pytest.mark.parametrize('arch', ARCHS)
def test_flops_of_the_backbone_follow_the_formula_of_the_paper(arch, size):
    result = measure(EfficientMod(arch), size)
    assert products(result) == expected_products(arch, size)
    kinds = set(result.by_operator) - {'attention'}
    assert kinds == {'conv', 'linear', 'layer_norm'}
    assert result.size == size


@pytest.mark.parametrize(
    'name',
    [
        SEG.replace('xxs', 's_conv'),
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    ],
)
def test_flops_of_whole_models_equal_those_of_pytorchs_counter(name):
    model = build_model(load_config(name))
    size = (96, 160)
    result = measure(model, size)
    # With the same image, detectors have the same proposals.
    torch.manual_seed(0)
    image = torch.randn(1, 3, *size)
    assert products(result) == torch_products(
        TensorForward(model, size), image
    )
    assert result.params == sum(p.numel() for p in model.parameters())
    backbone = model.backbone
    assert result.backbone_params == sum(
        p.numel() for p in backbone.parameters()
    )
    assert 0 < result.backbone_flops < result.flops
    assert result.backbone_flops == measure(backbone, size).flops


@pytest.mark.parametrize(
    ('name', 'size', 'params', 'flops'),
    [
        # As their papers or the tables of the toolboxes print them.
        ('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
         (224, 224), 28.59, 4.46),
        ('mmpretrain::van/van-tiny_8xb128_in1k.py', (224, 224), 4.11, 0.88),
        ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
         (640, 640), 4.9, 8.1),
        ('mmdet::ssd/ssd300_coco.py', (300, 300), 34.3, 34.36),
    ],
)  # fmt: skip
def test_known_models_have_their_published_params_and_flops(
    name, size, params, flops
):
    cfg = load_config(name)
    assert input_size(cfg) == size
    result = measure(build_model(cfg), size)
    assert result.params / 1e6 == pytest.approx(params, rel=0.01)
    assert result.flops / 1e9 == pytest.approx(flops, rel=0.02)


def test_attention_is_counted():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            q = x.flatten(2).transpose(1, 2) * self.scale  # (N, L, C)
            return nn.functional.scaled_dot_product_attention(q, q, q)

    result = measure(Attend(), (4, 6), in_channels=5)
    assert result.by_operator['attention'] == 2 * 24 * 24 * 5
    assert result.backbone_flops is None


def test_deformable_convolution_is_counted():
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack

    for kind, channels in (
        (DeformConv2dPack, 18),
        (ModulatedDeformConv2dPack, 27),
    ):
        result = measure(kind(3, 7, 3, padding=1), (8, 10))
        assert result.by_operator == dict(
            conv=80 * 9 * 3 * channels, deform_conv=80 * 9 * 3 * 7
        )
        assert result.uncounted == {}


def test_uncounted_operators_are_listed():
    class Fft(nn.Linear):
        def forward(self, x):
            return super().forward(torch.fft.fft2(x).real)

    result = measure(Fft(8, 2), (8, 8))
    assert result.by_operator == dict(linear=3 * 8 * 8 * 2)
    assert result.uncounted['aten::fft_fft2'] == 1


def test_measuring_preserves_model_and_rng_state():
    model = EfficientMod('xxs', frozen_stages=1).train()
    model.stages[2].eval()
    modes = [m.training for m in model.modules()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    measure(model, (64, 64))
    assert [m.training for m in model.modules()] == modes
    assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def config(scope, pipeline=(), **kwargs):
    return Config(
        dict(
            default_scope=scope,
            test_dataloader=dict(dataset=dict(pipeline=list(pipeline))),
            model=dict(data_preprocessor=dict(pad_size_divisor=32)),
            **kwargs,
        )
    )


@pytest.mark.parametrize(
    ('cfg', 'size'),
    [
        (config('mmseg', crop_size=(512, 1024)), (512, 1024)),
        (config('mmdet', [dict(scale=(1333, 800))]), (800, 1280)),
        (config('mmdet', [dict(scale=[1333, 800])]), (800, 1280)),
        (config('mmdet', [dict(scale=(1000, 600))]), (608, 1024)),
        (config('mmdet', [dict(scale=(640, 640))]), (640, 640)),
        (
            config('mmpretrain', [dict(scale=256), dict(crop_size=224)]),
            (224, 224),
        ),
        (config('mmpretrain', [dict(scale=384)]), (384, 384)),
    ],
)
def test_input_size_is_that_of_papers(cfg, size):
    assert input_size(cfg) == size


def test_get_flops_prints_and_writes_the_counts(
    tool, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    main = tool('get_flops').main
    result = main([SEG, '--shape', '64', '96', '--out', 'new/flops.json'])
    shown = capsys.readouterr().out
    assert 'one image of 64x96' in shown
    assert f'{result.flops:,}' in shown
    assert 'multiply-adds' in shown
    assert 'not counted' not in shown
    written = json.loads((tmp_path / 'new/flops.json').read_text())
    assert written['flops'] == result.flops
    assert written['backbone_params'] == result.backbone_params
    assert written['size'] == [64, 96]
    # Options are applied, and one side means a square.
    other = main(
        [SEG, '--shape', '96', '--cfg-options', 'model.backbone.arch=xs']
        + ['model.neck.in_channels=[32,64,144,288]']
    )
    assert other.size == (96, 96)
    assert other.params > result.params


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--shape', '1', '2', '3'], '1 2 3 is neither one side nor'),
        (['--shape', '0'], '0 is neither one side nor'),
        (['--cfg-options', 'model.neck.in_channels=[1,2,3,4]'],
         'cannot be run for counting at 512x512'),
    ],
)  # fmt: skip
def test_get_flops_refuses_a_bad_size_or_model(tool, argv, message):
    with pytest.raises(ConfigError, match=message):
        tool('get_flops').main([SEG, *argv])


def test_config_without_a_size_is_refused():
    with pytest.raises(ConfigError, match='--shape HEIGHT WIDTH'):
        input_size(config('mmdet'))
