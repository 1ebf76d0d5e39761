"""What replaces functions during an export computes the same."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import AdaptivePadding
from torch import nn
from torch.testing import assert_close

from mmefficientmod.deploy.rewriting import fix_random_bases, rewritten


@pytest.mark.parametrize('size', [(1, 1), (6, 6), (13, 20), (64, 65)])
@pytest.mark.parametrize('output', [1, 2, 6, (3, 2), (None, 4)])
def test_adaptive_pooling(size, output):
    x = torch.randn(2, 3, *size)
    expected = F.adaptive_avg_pool2d(x, output)
    with rewritten():
        assert_close(F.adaptive_avg_pool2d(x, output), expected)
    assert F.adaptive_avg_pool2d(x, 1).shape[2:] == (1, 1)


@pytest.mark.parametrize('padding', ['corner', 'same'])
@pytest.mark.parametrize('size', [(8, 8), (9, 13), (3, 30)])
@pytest.mark.parametrize(
    ('kernel', 'stride', 'dilation'), [(4, 4, 1), (3, 2, 1), (2, 5, 1)]
)
def test_adaptive_padding(padding, size, kernel, stride, dilation):
    module = AdaptivePadding(kernel, stride, dilation, padding)
    x = torch.randn(1, 2, *size)
    expected = module(x)
    with rewritten():
        assert_close(module(x), expected)


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('bias', [True, False])
def test_attention(batch_first, bias):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(
        16, 4, bias=bias, batch_first=batch_first
    ).eval()
    query, key = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    expected = module(query, key, key)
    with rewritten():
        out = module(query, key, key)
    assert_close(out, expected)


def test_attention_with_a_mask_is_left_to_pytorch():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 4).eval()
    x = torch.randn(5, 2, 16)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    expected = module(x, x, x, attn_mask=mask)[0]
    with rewritten():
        assert_close(module(x, x, x, attn_mask=mask)[0], expected)


def test_windows_of_swin():
    pytest.importorskip('mmseg')
    from mmseg.models.backbones.swin import ShiftWindowMSA

    module = ShiftWindowMSA(8, 2, window_size=4, shift_size=2).eval()
    x = torch.randn(3, 9 * 14, 8)
    expected = module(x, (9, 14))
    with rewritten():
        assert_close(module(x, (9, 14)), expected)


@pytest.mark.parametrize('factor', [2, 1.5])
def test_upsampling_of_mmsegmentation(factor):
    pytest.importorskip('mmseg')
    from mmseg.models.utils.wrappers import Upsample

    module = Upsample(
        scale_factor=factor, mode='bilinear', align_corners=False
    )
    x = torch.randn(1, 2, 7, 10)
    expected = module(x)
    with rewritten():
        assert_close(module(x), expected)


def test_random_bases_are_fixed():
    pytest.importorskip('mmseg')
    from mmseg.models.decode_heads.ham_head import Hamburger

    module = Hamburger(8, dict(MD_S=1, MD_R=4, rand_init=True)).eval()
    x = torch.rand(2, 8, 5, 6)
    assert not torch.equal(module(x), module(x))
    fix_random_bases(module)
    assert_close(module(x), module(x), rtol=0, atol=0)
    assert_close(module(x)[:1], module(x[:1]))
