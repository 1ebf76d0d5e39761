"""What the layouts share: checked layers, and attention's three products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmefficientmod.models.layers.plain import check_plain

# Images, height and width, which a tracer records.
Size = tuple[Any, Any, Any]


class Twin(nn.Module):
    """An EfficientMod in another layout, with the same outputs.

    A subclass says by its methods what the layout is.

    Args:
        backbone: An EfficientMod, folded.

    Attributes:
        out_indices: Stages that are returned.
        out_channels: Channels of each returned level.
        out_strides: Stride of each returned level, in pixels.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.out_indices = backbone.out_indices
        self.out_channels = backbone.out_channels
        self.out_strides = backbone.out_strides
        for layer in backbone.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
                check_plain(layer, 'another layout')
        embeddings = [
            backbone.stem if stage.downsample is None else stage.downsample
            for stage in backbone.stages
        ]
        self.convs = nn.ModuleList(x.proj for x in embeddings)
        self.first_norms = nn.ModuleList(
            self.first_norm(x.norm) for x in embeddings
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                branch
                for block in stage.blocks
                for branch in self.branches(block)
            )
            for stage in backbone.stages
        )
        self.norm: Any = None
        if backbone.norm is not None:
            self.norm = self.last_norm(backbone.norm)

    def first_norm(self, norm: Any) -> nn.Module:
        """``(N, C, H, W)`` to its LayerNorm in the own layout."""
        raise NotImplementedError

    def last_norm(self, norm: Any) -> nn.Module:
        """LayerNorm in the own layout."""
        raise NotImplementedError

    def branches(self, block: Any) -> list[nn.Module]:
        """Modules that do what a block does, one after the other.

        Each takes the tensor in the own layout, and the size.
        """
        raise NotImplementedError

    def to_images(self, x: Tensor, size: Size) -> Tensor:
        """From the own layout to ``(N, C, H, W)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, C, H, W)`` to one ``(N, C_i, H_i, W_i)`` for each level."""
        outs = []
        layers: Any = zip(
            self.convs, self.first_norms, self.stages, strict=True
        )
        for i, (conv, norm, branches) in enumerate(layers):
            x = conv(x)
            # Recorded once for all blocks of the stage.
            size = x.shape[0], x.shape[2], x.shape[3]
            y = norm(x)
            for branch in branches:
                y = branch(y, size)
            x = self.to_images(y, size)
            if i in self.out_indices:
                is_last = i == len(self.stages) - 1
                if is_last and self.norm is not None:
                    outs.append(self.to_images(self.norm(y), size))
                else:
                    outs.append(x)
        return tuple(out.contiguous() for out in outs)


def queries_keys_values(
    attention: Any,
) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the linear layers for queries, keys and values.

    The factor ``1 / sqrt(d)`` of the attention is in those of the queries.
    """
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if bias is None:
        bias = weight.new_zeros(len(weight))
    parts = list(zip(weight.chunk(3), bias.chunk(3), strict=True))
    scale = attention.head_dim**-0.5
    parts[0] = (parts[0][0] * scale, parts[0][1] * scale)
    return parts


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter that is not trained."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


def linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with the given weights.

    Args:
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)`` or None.
    """
    layer = nn.Linear(
        weight.shape[1], len(weight), bias is not None, device='meta'
    )
    layer.weight = frozen(weight)
    if bias is not None:
        layer.bias = frozen(bias)
    return layer


def conv_layer(
    weight: Tensor, bias: Tensor | None, groups: int = 1
) -> nn.Conv2d:
    """A 1x1 convolution with the given weights.

    Args:
        weight: ``(C_out, C_in / groups)``.
        bias: ``(C_out,)`` or None.
        groups: Groups of channels that are convolved each by itself.
    """
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        len(weight),
        1,
        groups=groups,
        bias=bias is not None,
        device='meta',
    )
    layer.weight = frozen(weight[:, :, None, None])
    if bias is not None:
        layer.bias = frozen(bias)
    return layer


def as_conv(linear: Any) -> nn.Conv2d:
    """A linear layer as a 1x1 convolution."""
    return conv_layer(linear.weight, linear.bias)


def product(linear: nn.Linear, x: Tensor) -> Tensor:
    """``(M, C_in) -> (M, C_out)``, written to a file as one operation."""
    if linear.bias is None:
        return x @ linear.weight.t()
    return torch.addmm(linear.bias, x, linear.weight.t())


class TokenAttention(nn.Module):
    """An ``Attention`` for tokens.

    Args:
        attention: The attention.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        parts = queries_keys_values(attention)
        self.q, self.k, self.v = (linear_layer(*part) for part in parts)
        self.proj = attention.proj

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """``(N * H * W, C) -> (N * H * W, C)``, images of ``size``."""

        def heads(part: nn.Linear) -> Tensor:  # (N, L, heads, d)
            number = part.out_features // self.head_dim
            y = product(part, x)
            return y.reshape(-1, size[1] * size[2], number, self.head_dim)

        q = heads(self.q).permute(0, 2, 1, 3)
        k = heads(self.k).permute(0, 2, 3, 1)
        v = heads(self.v).permute(0, 2, 1, 3)
        y = torch.softmax(q @ k, -1) @ v
        return product(
            self.proj,
            y.transpose(1, 2).reshape(-1, self.proj.in_features),
        )
