"""Checkpoints: read without running code, loaded completely or refused."""

from mmefficientmod.checkpoint.loading import (
    load_pretrained,
    load_strictly,
    load_whole,
)
from mmefficientmod.checkpoint.reading import CheckpointError, read_checkpoint

__all__ = [
    'CheckpointError',
    'load_pretrained',
    'load_strictly',
    'load_whole',
    'read_checkpoint',
]
