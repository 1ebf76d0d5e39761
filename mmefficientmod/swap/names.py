"""The names of backbones that tools, configs and the model index share.

Where a toolbox or timm has a backbone, the name stands for theirs.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict

from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.messages import did_you_mean
from mmefficientmod.models.backbones import edgevit, efficientmod
from mmefficientmod.models.backbones.timm_pyramid import check_name


def resolve_backbone(backbone: str | Mapping[str, Any]) -> ConfigDict:
    """The dict of a backbone.

    Args:
        backbone: A name, ``timm:NAME``, a dict, or a dict as the command line
            has it: ``{'type': 'ResNet', ...}`` or ``dict(type='ResNet',
            ...)``.

    Raises:
        ConfigError: If there is no such name, or the text is no dict.
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
                raise ConfigError(
                    f'no backbone is called {backbone!r}'
                    f'{did_you_mean(name, BACKBONES)} The names are '
                    f'{", ".join(BACKBONES)}; any model of timm is '
                    'timm:NAME, and any other registered backbone goes as a '
                    "dict, such as dict(type='mmpretrain.MobileNetV2', "
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
    """A name for folders: the backbone's own, or the type in its dict."""
    if isinstance(backbone, str):
        name = backbone.strip().removeprefix('timm:')
        if backbone.strip() != name:
            return name.replace('.', '_')
        if name.replace('-', '_') in BACKBONES:
            return name.replace('-', '_')
    return type_name(resolve_backbone(backbone)).lower()


def parse_dict(text: str) -> Any:
    """Read a dict as the command line has it.

    Args:
        text: ``{'key': value}`` or ``dict(key=value)``, of literals.

    Raises:
        ConfigError: If it is neither.
    """
    try:
        node = ast.parse(text, mode='eval').body
        if isinstance(node, ast.Call):
            if node.args or not all(k.arg for k in node.keywords):
                raise ValueError('only keywords may stand in dict(...)')
            return {k.arg: ast.literal_eval(k.value) for k in node.keywords}
        return ast.literal_eval(node)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f'the backbone {text} cannot be read as a dict: {error}'
        ) from None


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
