"""Models that the OpenMMLab toolboxes build by name."""

from .backbones import EfficientMod

__all__ = ['EfficientMod']
