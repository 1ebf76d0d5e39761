"""Metrics, registered for configs."""

from .metrics import PresentIoUMetric

__all__ = ['PresentIoUMetric']
