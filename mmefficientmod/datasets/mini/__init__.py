"""Miniatures: small generated data sets in the layouts of the real ones."""

from .apply import MINIATURES, Miniature, apply_mini, prepare

__all__ = ['MINIATURES', 'Miniature', 'apply_mini', 'prepare']
