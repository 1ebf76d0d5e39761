"""Knowledge distillation: a student learns from a frozen teacher.

``classifier.DistilledClassifier`` needs MMPretrain, and
``segmentor.DistilledSegmentor`` needs MMSegmentation; each is imported when a
config names it.
"""

from mmefficientmod.models.distill.loss import Distillation
from mmefficientmod.models.distill.teacher import Teacher

__all__ = ['Distillation', 'Teacher']
