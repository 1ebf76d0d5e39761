"""Data: miniatures of the data sets, and checks of what is loaded."""

from .checks import DataError, check_data_exists, guard
from .folders import fit_classes
from .mini import apply_mini

__all__ = [
    'DataError', 'apply_mini', 'check_data_exists', 'fit_classes', 'guard',
]  # fmt: skip
