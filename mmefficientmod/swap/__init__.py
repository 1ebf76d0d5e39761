"""Replacing the backbone of a config."""

from mmefficientmod.swap.backbone import swap_backbone
from mmefficientmod.swap.names import (
    BACKBONES,
    backbone_name,
    resolve_backbone,
)
from mmefficientmod.swap.weights import set_pretrained

__all__ = [
    'BACKBONES',
    'backbone_name',
    'resolve_backbone',
    'set_pretrained',
    'swap_backbone',
]
