"""The authors' EfficientMod as a model to compare with, with our weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmefficientmod.benchmark.sources import import_file, short_hash
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.backbones.efficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod_variants import ARCHS
from mmefficientmod.models.backbones.efficientmod_weights import (
    rename_official_keys,
)


def official_arch(variant: str) -> str:
    """Our name of a variant, such as ``s_conv``.

    Args:
        variant: ``s_conv``, ``efficientmod_s_conv`` or
            ``efficientMod_s_Conv``.

    Raises:
        ConfigError: If there is no such variant.
    """
    arch = variant.lower().replace('-', '_').removeprefix('efficientmod_')
    if arch not in ARCHS:
        raise ConfigError(
            f'official:PATH:{variant} names no variant; the variants are '
            f'{", ".join(ARCHS)}'
        )
    return arch


def import_official(path: str) -> dict[str, Callable[[], Any]]:
    """Import the authors' file ``models/EfficientMod.py``.

    Args:
        path: The file, in a copy of the authors' repository.

    Returns:
        For each of our names of the variants, the authors' function that
        builds the classifier.

    Raises:
        ConfigError: If the file does not exist, cannot be imported or does
            not define all variants.
    """
    found = {k.lower(): v for k, v in vars(import_file(path)).items()}
    builders = {
        arch: found[f'efficientmod_{arch}']
        for arch in ARCHS
        if f'efficientmod_{arch}' in found
    }
    if len(builders) < len(ARCHS):
        raise ConfigError(
            f'{path} does not define the variants of EfficientMod; it should '
            'be models/EfficientMod.py of https://github.com/ma-xu/EfficientMod'
        )
    return builders


class OfficialEfficientMod(BaseModule):
    """The authors' classifier as a backbone, as their dense models use it.

    Its outputs are those of the four stages before the downsampling to the
    next one. The final norm and the head are removed.

    Args:
        path: The authors' file ``models/EfficientMod.py``. It is imported,
            never copied.
        arch: Our name of a variant.
        out_indices: Stages whose outputs are returned. Default: all four.
        init_cfg: As in MMEngine. Default: None; the authors' checkpoints are
            not loaded here.

    Raises:
        ConfigError: If the file is not the authors'.
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
        """``(N, 3, H, W)`` to ``(N, C_i, H / 2^(i + 2), W / 2^(i + 2))``.

        One output for each i of ``out_indices``.
        """
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


def find_efficientmod(backbone: nn.Module) -> nn.Module | None:
    """The EfficientMod in a backbone: ours or the authors'.

    None if the backbone is of another kind.
    """
    if isinstance(backbone, OfficialEfficientMod):
        return backbone.model
    return backbone if isinstance(backbone, EfficientMod) else None


def set_comparable_weights(backbone: nn.Module) -> None:
    """Give an EfficientMod weights that depend only on its variant.

    Each weight is drawn with a seed made of its name in our implementation,
    so that ours and the authors' model get the same ones. They are far from
    the initial weights, with which the modulation blocks hardly change their
    input: biases, norms and layer scales come from N(0.5, 0.2), linear layers
    from N(0, 0.02), which is their initialisation, and convolutions from a
    normal distribution with the deviation of PyTorch's initialisation. Drop
    path is turned off, as its noise would differ between the models.

    Args:
        backbone: Changed in place. A backbone of another kind is left as it
            is.
    """
    model = find_efficientmod(backbone)
    if model is None:
        return
    weights = model.state_dict()
    for key, name in _our_names(model).items():
        weights[key] = _draw(name, weights[key])
    model.load_state_dict(weights)
    module: Any  # timm's DropPath, or ours
    for module in model.modules():
        if hasattr(module, 'drop_prob'):
            module.drop_prob = 0.0


def weights_key(backbone: nn.Module) -> str | None:
    """A key of the weights that :func:`set_comparable_weights` gives.

    Backbones with equal keys have equal weights, so that their outputs are
    equal but for rounding.

    Returns:
        12 hexadecimal digits; None if the backbone is no EfficientMod.
    """
    model = find_efficientmod(backbone)
    if model is None:
        return None
    weights = model.state_dict()
    shapes = {
        name: tuple(weights[key].shape)
        for key, name in _our_names(model).items()
    }
    return short_hash(str(sorted(shapes.items())))


def _our_names(model: nn.Module) -> dict[str, str]:
    """For each weight of an EfficientMod, its name in our implementation."""
    buffers = dict(model.named_buffers())
    weights = {k: v for k, v in model.state_dict().items() if k not in buffers}
    return dict(zip(weights, rename_official_keys(weights), strict=True))


def _draw(name: str, like: Tensor) -> Tensor:
    """A weight of the shape and type of another, from a seed by its name."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    values = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    if like.ndim == 1:
        return values.mul_(0.2).add_(0.5)
    fan_in = like[0].numel()
    return values.mul_((3 * fan_in) ** -0.5 if like.ndim == 4 else 0.02)
