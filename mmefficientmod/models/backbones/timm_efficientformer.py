"""EfficientFormer and EfficientFormerV2 of timm at any input size.

Papers: Li et al., "EfficientFormer: Vision Transformers at MobileNet Speed",
NeurIPS 2022, https://arxiv.org/abs/2206.01191, and "Rethinking Vision
Transformers for MobileNet Size and Speed", ICCV 2023,
https://arxiv.org/abs/2212.08059. The networks are timm's.

Their attention adds a trained bias for each offset between two positions,
from a table that was trained for one image size. Here the table is resized to
the size of the feature map. At the size of the training nothing is resized,
and outputs are timm's, bit for bit. Names and shapes of the weights are
timm's. How accurate a trained network is with a resized table is not known:
nobody published it, and the authors' dense models trained other tables.

Importing this module needs timm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.models import efficientformer as v1
from timm.models import efficientformer_v2 as v2
from torch import Tensor, nn


def run_at_any_size(model: nn.Module) -> None:
    """Let the attention of an EfficientFormer run on any feature map.

    Other models stay as they are. Height and width of the image must be
    multiples of 32.

    Args:
        model: A model of timm, changed in place.
    """
    for module in model.modules():
        # The same object with another class keeps parameters and hooks.
        module.__class__ = ANY_SIZE.get(type(module), type(module))


class Channels2Last(v1.Flat):
    """The layer before v1's attention blocks; it keeps height and width.

    timm flattens the positions here. The layers after it read only the last
    dimension, so that they take both.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, H, W, C)``."""
        return x.permute(0, 2, 3, 1)


class Attention(v1.Attention):
    """The attention of v1, over all positions of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        n, h, w, _ = x.shape
        side = math.isqrt(self.attention_biases.shape[1])
        bias = relative_bias(self.attention_biases, (side, side), (h, w))
        qkv = self.qkv(x).reshape(n, h * w, self.num_heads, -1)
        q, k, v = qkv.transpose(1, 2).split(
            [self.key_dim, self.key_dim, self.val_dim], dim=3
        )  # (N, heads, L, d)
        attn = (q @ k.transpose(2, 3) * self.scale + bias).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(n, h, w, -1))


class Attention2d(v2.Attention2d):
    """The attention of V2, at half the resolution in the third stage."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        size = x.shape[2:]
        resolution = cast('Sequence[int]', self.resolution)
        bias = relative_bias(self.attention_biases, resolution, size)
        value = self.v(x)
        q, k, v = (
            y.unflatten(1, (self.num_heads, -1)).flatten(3)  # (N, heads, d, L)
            for y in (self.q(x), self.k(x), value)
        )
        attn = q.transpose(2, 3) @ k * self.scale + bias
        attn = self.talking_head2(self.talking_head1(attn).softmax(-1))
        x = (attn @ v.transpose(2, 3)).transpose(2, 3)
        x = x.reshape(value.shape) + self.v_local(value)
        if self.upsample is not None:
            x = self.upsample(x)
        return self.proj(self.act(x))


class Attention2dDownsample(v2.Attention2dDownsample):
    """V2's attention with a query for every second row and column."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W) -> (N, C_out, H / 2, W / 2)``."""
        query, value = self.q(x), self.v(x)
        local = self.v_local(value)
        bias = relative_bias(
            self.attention_biases, self.resolution, x.shape[2:], stride=2
        )
        q, k, v = (
            y.unflatten(1, (self.num_heads, -1)).flatten(3)  # (N, heads, d, L)
            for y in (query, self.k(x), value)
        )
        attn = (q.transpose(2, 3) @ k * self.scale + bias).softmax(-1)
        x = (attn @ v.transpose(2, 3)).transpose(2, 3)
        x = x.reshape(local.shape) + local
        return self.proj(self.act(x))


ANY_SIZE: dict[type, type] = {
    v1.Flat: Channels2Last,
    v1.Attention: Attention,
    v2.Attention2d: Attention2d,
    v2.Attention2dDownsample: Attention2dDownsample,
}


def relative_bias(
    table: Tensor,
    trained: Sequence[int],
    size: Sequence[int],
    stride: int = 1,
) -> Tensor:
    """The bias of each query for each key, from the table of offsets.

    The table holds the biases for distances from 0 to R - 1, with R the size
    of its training. It is resized so that the first entry is still that of
    distance 0 and the last that of the largest distance. The result is not
    cached: for a large image it would take much memory, and computing it is
    cheap compared with the attention.

    Args:
        table: ``(heads, R0 * R1)``.
        trained: Height R0 and width R1 of the map that the table was trained
            for, in positions.
        size: Height and width of the map of the keys, in positions.
        stride: Distance between queries on that map, in positions. Default:
            1, a query for each key.

    Returns:
        ``(heads, queries, keys)``.
    """
    table = table.unflatten(1, trained)
    if tuple(size) != tuple(trained):
        # In float32: not every device interpolates in half precision.
        exact = torch.promote_types(table.dtype, torch.float32)
        table = F.interpolate(
            table[None].to(exact), size, mode='bicubic', align_corners=True
        )[0].to(table.dtype)
    rows, columns = (
        (at[::stride, None] - at).abs()
        for at in (torch.arange(x, device=table.device) for x in size)
    )
    # (Hq, H), (Wq, W) -> (Hq, Wq, H, W)
    index = rows[:, None, :, None] * size[1] + columns[None, :, None, :]
    bias = table.flatten(1).index_select(1, index.flatten())
    return bias.unflatten(1, (-1, size[0] * size[1]))
