"""Checks of data, class folders, own and generated data sets."""

from .checks import DataError
from .folders import fit_classes
from .mini import apply_mini
from .own import apply_own
from .samples import name_file_on_error

__all__ = [
    'DataError',
    'apply_mini',
    'apply_own',
    'fit_classes',
    'name_file_on_error',
]
