"""Backbones with multi-scale outputs, one file a family."""

from .edgevit import EdgeViT
from .efficientmod import EfficientMod
from .timm_pyramid import TimmPyramid

__all__ = ['EdgeViT', 'EfficientMod', 'TimmPyramid']
