"""The authors' EfficientMod beside ours, with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmefficientmod.benchmark.sources import import_file, short_hash
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.backbones.efficientmod import ARCHS, EfficientMod
from mmefficientmod.models.backbones.efficientmod_weights import (
    rename_official_keys,
)


def official_arch(variant: str) -> str:
    """``s_conv`` of ``s_conv``, ``efficientmod_s_conv``, ``efficientMod_...``.

    Raises:
        ConfigError: If there is no such variant.
    """
    name = variant.lower().replace('-', '_').removeprefix('efficientmod_')
    if name not in ARCHS:
        raise ConfigError(
            f'official:PATH:{variant} names no variant; they are '
            f'{", ".join(ARCHS)}'
        )
    return name


def import_official(path: str) -> dict[str, Any]:
    """The authors' file ``models/EfficientMod.py``, imported.

    Returns:
        For each variant, what builds their classifier.

    Raises:
        ConfigError: If the file is not there or is another one.
    """
    found = {k.lower(): v for k, v in vars(import_file(path)).items()}
    builders = {arch: found.get(f'efficientmod_{arch}') for arch in ARCHS}
    if not all(builders.values()):
        raise ConfigError(
            f'{path} does not define the variants of EfficientMod; it should '
            'be models/EfficientMod.py of https://github.com/ma-xu/EfficientMod'
        )
    return builders


class OfficialEfficientMod(BaseModule):
    """The authors' classifier as a backbone, as their dense models use it.

    Its outputs are those of the four stages before any downsampling,
    ``(N, C_i, H_i, W_i)``; their final norm and head are taken out.

    Args:
        path: Their file ``models/EfficientMod.py``. It is imported, never
            copied.
        arch: Name of a variant, one of ours.
        out_indices: Stages to return. Default: all four.
        init_cfg: As in MMEngine; there is no checkpoint to load here.
    """

    def __init__(
        self,
        path: str,
        arch: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.out_indices = tuple(out_indices)
        self.model = import_official(path)[arch]()
        self.model.norm = self.model.head = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to one ``(N, C_i, H_i, W_i)`` a level."""
        outs = []
        x = self.model.patch_embed(x.permute(0, 2, 3, 1))
        for i, layer in enumerate(self.model.layers):
            for block in layer.blocks:
                x = block(x)
            if i in self.out_indices:
                outs.append(x.permute(0, 3, 1, 2).contiguous())
            if layer.downsample is not None:
                x = layer.downsample(x)
        return tuple(outs)


def efficientmod_of(module: nn.Module) -> nn.Module | None:
    """The EfficientMod that a backbone is, by whomever; None for others."""
    if isinstance(module, OfficialEfficientMod):
        return module.model
    return module if isinstance(module, EfficientMod) else None


def share_weights(backbone: nn.Module) -> None:
    """Give an EfficientMod the weights that all of its variant have here.

    Each tensor is drawn from its name and shape alone, whoever's code it is
    in. They are far from the initial ones, at which the modulation blocks
    hardly do anything: biases, norms and layer scales from N(0.5, 0.2), the
    linear layers with their initial deviation 0.02, convolutions with
    PyTorch's. Drop path is turned off, as its noise differs between models.

    Args:
        backbone: Changed in place; another backbone stays as it is.
    """
    model = efficientmod_of(backbone)
    if model is None:
        return
    weights = model.state_dict()
    for key, name in _canonical_names(model).items():
        weights[key] = _draw(name, weights[key])
    model.load_state_dict(weights)
    for module in model.modules():
        if hasattr(module, 'drop_prob'):
            module.drop_prob = 0.0


def weights_key(backbone: nn.Module) -> str | None:
    """Equal for two backbones with the same weights by construction.

    Their outputs are equal then, too, but for rounding.
    """
    model = efficientmod_of(backbone)
    if model is None:
        return None
    shapes = {
        name: tuple(model.state_dict()[key].shape)
        for key, name in _canonical_names(model).items()
    }
    return short_hash(str(sorted(shapes.items())))


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """For each weight in the state dict, the name that it has in ours."""
    buffers = dict(model.named_buffers())
    keys = {key: key for key in model.state_dict() if key not in buffers}
    return {key: name for name, key in rename_official_keys(keys).items()}


def _draw(name: str, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    values = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    if like.ndim == 1:
        return values.mul_(0.2).add_(0.5)
    fan_in = like[0].numel()
    return values.mul_((3 * fan_in) ** -0.5 if like.ndim == 4 else 0.02)
