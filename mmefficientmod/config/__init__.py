"""Configs as data: finding, reading and changing them."""

from mmefficientmod.config.files import (
    TOOLBOXES,
    find_config,
    load_config,
    register_config_packages,
)
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options

__all__ = [
    'TOOLBOXES',
    'ConfigError',
    'apply_options',
    'find_config',
    'load_config',
    'register_config_packages',
]
