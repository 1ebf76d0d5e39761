"""Detectors of MMDetection as a function from an image to detections."""

from mmefficientmod.deploy.detection.graph import DetectorGraph

__all__ = ['DetectorGraph']
