"""Names of backbones, for ``--backbone``, configs and the model index.

A backbone that timm or a toolbox implements is not written again here: its
name stands for that implementation.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict

from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.messages import did_you_mean
from mmefficientmod.models.backbones import edgevit
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    MBCONV_ARCHS,
    PHONE_ARCHS,
)
from mmefficientmod.models.backbones.timm_models import check_name

# Backbones of timm, under timm's names.
TIMM = (
    'mobilenetv2_100', 'mobilenetv2_140', 'mobilevit_xs', 'mobilevit_s',
    'mobilevitv2_100', 'fasternet_t0', 'fasternet_t1', 'fasternet_t2',
    'efficientformer_l1', 'efficientformerv2_s0', 'efficientformerv2_s1',
    'efficientformerv2_s2', 'pvt_v2_b0', 'pvt_v2_b1', 'focalnet_tiny_lrf',
    'repvit_m0_9', 'repvit_m1_0', 'repvit_m1_1', 'repvit_m1_5',
    'resnet18', 'resnet50',
)  # fmt: skip
# The dict of the backbone of each name.
BACKBONES: dict[str, dict[str, Any]] = {
    **{
        f'efficientmod_{arch}': dict(
            type='mmefficientmod.EfficientMod', arch=arch
        )
        for arch in ARCHS | PHONE_ARCHS
    },
    **{
        arch: dict(type='mmefficientmod.EfficientMod', arch=arch)
        for arch in MBCONV_ARCHS
    },
    **{
        f'edgevit_{arch}': dict(type='mmefficientmod.EdgeViT', arch=arch)
        for arch in edgevit.ARCHS
    },
    **{
        name: dict(type='mmefficientmod.TimmPyramid', model_name=name)
        for name in TIMM
    },
    # Its out_indices count downsampling layers too, so that stages are even.
    # By default, MMPretrain freezes its stem.
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


def resolve_backbone(backbone: str | Mapping[str, Any]) -> ConfigDict:
    """The dict of a backbone.

    Args:
        backbone: A name in :data:`BACKBONES`, ``timm:NAME`` for a model of
            timm, a dict, or a dict as text: ``{'type': 'ResNet', ...}`` or
            ``dict(type='ResNet', ...)``.

    Returns:
        A copy of the dict.

    Raises:
        ConfigError: If there is no such name, or the text is not a dict with
            a type.
    """
    if isinstance(backbone, str):
        text = backbone.strip()
        if text.startswith(('{', 'dict(')):
            backbone = parse_dict(text)
        elif text.startswith('timm:'):
            name = text.removeprefix('timm:')
            try:
                check_name(name)
            except (ImportError, ValueError) as error:
                raise ConfigError(str(error)) from error
            backbone = dict(type='mmefficientmod.TimmPyramid', model_name=name)
        else:
            name = text.replace('-', '_')
            if name not in BACKBONES:
                hint = did_you_mean(name, BACKBONES) or '.'
                raise ConfigError(
                    f'no backbone is called {backbone!r}{hint} The names are '
                    f'{", ".join(BACKBONES)}; for any model of timm write '
                    'timm:NAME, and for any other registered backbone a dict, '
                    "such as dict(type='mmpretrain.MobileNetV2', "
                    'out_indices=(1, 2, 4, 6))'
                )
            backbone = BACKBONES[name]
    if not isinstance(backbone, Mapping) or not backbone.get('type'):
        raise ConfigError(
            f'the backbone {backbone!r} is neither a name nor a dict with a '
            'type'
        )
    return ConfigDict(copy.deepcopy(dict(backbone)))


def backbone_name(backbone: str | Mapping[str, Any]) -> str:
    """Name of a backbone, for folders.

    Args:
        backbone: See :func:`resolve_backbone`.

    Returns:
        Its name in :data:`BACKBONES` or in timm, otherwise the type in its
        dict, in lower case.

    Raises:
        ConfigError: If there is no such backbone.
    """
    if isinstance(backbone, str):
        name = backbone.strip().removeprefix('timm:')
        if backbone.strip() != name:
            return name.replace('.', '_')
        if name.replace('-', '_') in BACKBONES:
            return name.replace('-', '_')
    return type_name(resolve_backbone(backbone)).lower()


def parse_dict(text: str) -> Any:
    """Read a dict that is given as text.

    Args:
        text: ``{'key': value}`` or ``dict(key=value)``, where values are
            literals.

    Returns:
        The dict; any other literal as it is.

    Raises:
        ConfigError: If the text cannot be read.
    """
    try:
        node = ast.parse(text, mode='eval').body
        if isinstance(node, ast.Call):
            if node.args or not all(k.arg for k in node.keywords):
                raise ValueError('dict(...) may have keywords only')
            return {k.arg: ast.literal_eval(k.value) for k in node.keywords}
        return ast.literal_eval(node)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f'the backbone {text} cannot be read as a dict: {error}'
        ) from None
