"""``--data``: own data in the layouts that people have it in."""

from .apply import apply_own

__all__ = ['apply_own']
