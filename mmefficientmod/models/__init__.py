"""Models that the OpenMMLab toolboxes build by name."""

from .backbones import EdgeViT, EfficientMod

__all__ = ['EdgeViT', 'EfficientMod']
