"""Checkpoints: read without running code, loaded completely or refused."""

from mmefficientmod.checkpoint.loading import (
    load_pretrained,
    load_strictly,
    load_whole,
)
from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    check_exists,
    read_checkpoint,
    trust_files,
)

__all__ = [
    'CheckpointError',
    'check_exists',
    'load_pretrained',
    'load_strictly',
    'load_whole',
    'read_checkpoint',
    'trust_files',
]
