"""The names of backbones that tools, configs and the model index share.

Where a toolbox or timm has a backbone, the name stands for theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmefficientmod.models import TimmPyramid
from mmefficientmod.models.backbones import edgevit, efficientmod
from mmefficientmod.probe import class_of, is_ours

# Names of timm's own.
TIMM = (
    'mobilenetv2_100', 'mobilenetv2_140', 'mobilevit_xs', 'mobilevit_s',
    'mobilevitv2_100', 'fasternet_t0', 'fasternet_t1', 'fasternet_t2',
    'efficientformer_l1', 'efficientformerv2_s0', 'efficientformerv2_s1',
    'efficientformerv2_s2', 'pvt_v2_b0', 'pvt_v2_b1', 'focalnet_tiny_lrf',
    'repvit_m0_9', 'repvit_m1_0', 'repvit_m1_1', 'repvit_m1_5',
    'resnet18', 'resnet50',
)  # fmt: skip

BACKBONES: dict[str, dict[str, Any]] = {
    **{
        f'efficientmod_{arch}': dict(
            type='mmefficientmod.EfficientMod', arch=arch
        )
        for arch in efficientmod.ARCHS
    },
    **{
        arch: dict(type='mmefficientmod.EfficientMod', arch=arch)
        for arch in efficientmod.MBCONV_ARCHS
    },
    **{
        f'edgevit_{arch}': dict(type='mmefficientmod.EdgeViT', arch=arch)
        for arch in edgevit.ARCHS
    },
    **{
        name: dict(type='mmefficientmod.TimmPyramid', model_name=name)
        for name in TIMM
    },
    # By default it freezes its stem. Its stages are the even ones.
    **{
        f'poolformer_{arch}': dict(
            type='mmpretrain.PoolFormer',
            arch=arch,
            out_indices=(0, 2, 4, 6),
            frozen_stages=-1,
        )
        for arch in ('s12', 's24')
    },
    **{
        f'van_{arch}': dict(
            type='mmpretrain.VAN', arch=arch, out_indices=(0, 1, 2, 3)
        )
        for arch in ('tiny', 'small')
    },
}

# What most ImageNet weights expect of the image, RGB, 0 to 255.
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def normalisation(
    backbone: Mapping[str, Any],
) -> dict[str, list[float]] | None:
    """What the ImageNet weights of a backbone expect of the image.

    Args:
        backbone: Its dict.

    Returns:
        ``mean`` and ``std`` of three channels, RGB, 0 to 255; None for a
        backbone that is neither ours nor one of :data:`BACKBONES`.
    """
    kind = class_of(backbone)
    if issubclass(kind, TimmPyramid):
        return TimmPyramid.normalisation(backbone)
    named = any(
        all(backbone.get(key) == entry[key] for key in ('type', 'arch'))
        for entry in BACKBONES.values()
        if 'arch' in entry
    )
    return IMAGENET if named or is_ours(backbone) else None
