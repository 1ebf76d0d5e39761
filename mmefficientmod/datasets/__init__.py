"""Data: miniatures of the data sets, and checks of what is loaded."""

from .checks import DataCheckHook, DataError, check_data_exists
from .mini import apply_mini

__all__ = ['DataCheckHook', 'DataError', 'apply_mini', 'check_data_exists']
