"""The other backbones that have names: their figures, and building them."""

import pytest
import torch
from mmengine.registry import MODELS

from mmefficientmod.swap.names import resolve_backbone

# Channels, parameters (M) and multiply-adds (G) of the pyramids. Counted are
# convolutions, matrix products and attention at 224 x 224, with timm 1.0.31
# and onedl-mmpretrain 1.3.6 alone, without the code tested here. MobileViTv2
# pads 224 to 256, so its multiply-adds are at 256 x 256.
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
# Other sizes of a family run the same code.
SIZES = [
    pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow)
    for name in FIGURES
]
# FocalNet's smallest size is large.
SMALL_ENOUGH = {*FAMILIES} - {'focalnet_tiny_lrf'}
SMALL = [
    pytest.param(name, marks=() if name in SMALL_ENOUGH else pytest.mark.slow)
    for name in TIMM_FAMILIES
]


def build(name, **options):
    """The backbone of a name, with options in its dict."""
    return MODELS.build({**resolve_backbone(name), **options})


def perturb(model, seed=0):
    """Change weights and statistics that are 0 or 1 initially."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in model.state_dict().items():
        noise = torch.rand(x.shape, generator=generator)
        if name.endswith(('running_var', 'attention_biases')):
            x.copy_(noise + 0.5)
        elif x.is_floating_point() and x.ndim < 2:
            x.add_(0.2 * noise)
    return model


def loss_of(outs):
    """A scalar that depends on every value of all outputs."""
    return sum(x.square().mean() for x in outs)


def assert_loaded(model, weights):
    """Assert that each tensor of a pyramid is that of timm's classifier."""
    for key, value in model.timm_model.state_dict().items():
        assert torch.equal(value, weights[key]), key
