"""Backbones with multi-scale outputs, one file a family."""

from .edgevit import EdgeViT
from .efficientmod import EfficientMod

__all__ = ['EdgeViT', 'EfficientMod']
