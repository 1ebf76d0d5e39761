"""Backbones with multi-scale outputs, one file a family."""

from .efficientmod import EfficientMod

__all__ = ['EfficientMod']
