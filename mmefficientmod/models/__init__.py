"""Models that the OpenMMLab toolboxes build by name."""

from .backbones import EdgeViT, EfficientMod, TimmPyramid

__all__ = ['EdgeViT', 'EfficientMod', 'TimmPyramid']
