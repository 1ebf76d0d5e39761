"""Metrics that the toolboxes build by name."""

from .metrics import PresentIoUMetric

__all__ = ['PresentIoUMetric']
