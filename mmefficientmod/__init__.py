"""EfficientMod as a backbone in MMDetection, MMSegmentation and MMPretrain.

Importing the package checks the environment, replaces compiled operators that
mmcv lacks by those of torchvision and PyTorch, makes the configs known by
name, and registers the backbones.
"""

from mmefficientmod.compat import check_environment
from mmefficientmod.version import __version__

check_environment()

from mmefficientmod import ops  # noqa: E402

ops.install()

from mmefficientmod.config.files import register_config_packages  # noqa: E402

register_config_packages()

from mmefficientmod.models import EdgeViT, EfficientMod  # noqa: E402
from mmefficientmod.swap.backbone import swap_backbone  # noqa: E402

__all__ = ['EdgeViT', 'EfficientMod', '__version__', 'swap_backbone']
