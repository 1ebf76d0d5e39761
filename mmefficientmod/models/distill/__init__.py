"""Knowledge distillation: any student learns from any frozen teacher.

The two models need a toolbox each, and are imported when a config names them:
``classifier.DistilledClassifier`` MMPretrain, ``segmentor.DistilledSegmentor``
MMSegmentation.
"""

from .loss import Distillation
from .teacher import Teacher

__all__ = ['Distillation', 'Teacher']
