"""Small generated stand-ins for the data sets, in their own layouts."""

from .apply import MINIATURES, Miniature, apply_mini, prepare

__all__ = ['MINIATURES', 'Miniature', 'apply_mini', 'prepare']
