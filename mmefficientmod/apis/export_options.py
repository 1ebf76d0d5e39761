"""What is exported, and how."""

from __future__ import annotations

from dataclasses import dataclass

from mmefficientmod.deploy.files import NCNN, ONNX, OPENVINO
from mmefficientmod.deploy.layouts import best_layout
from mmefficientmod.deploy.segmentor import LOGITS

DYNAMIC = 'dynamic'
# Largest difference from PyTorch, relative to the largest value.
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
# The suffix of the file for each kind of target.
TARGETS = {
    'onnx': ONNX,
    'openvino': OPENVINO,
    'ncnn': NCNN,
    'coreml': '.mlpackage',
}
# Targets for phones: images of one size, normalised, and no detectors.
PHONES = ('ncnn', 'coreml')


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        to: A key of :data:`TARGETS`.
        part: ``'model'`` or ``'backbone'``.
        size: Height and width in pixels; None where they may differ from run
            to run.
        batch: Number of images; None where it may differ.
        output: Of a segmentor, ``'logits'`` or ``'labels'``.
        layout: Memory layout of EfficientMod in the file, one of
            :data:`~mmefficientmod.deploy.layouts.LAYOUTS`. Default: the best
            one for the target.
        preprocess: Whether the file takes raw RGB images and normalises them
            itself.
        images: A folder of images for the check; None for those of the
            config.
        half: Whether weights are stored as float16.
        tolerance: Largest difference from PyTorch, relative to the largest
            value. Default: 1e-4, with ``half`` 2e-2.
        calibrate: A folder of images on which the file is quantised to 8
            bits. Default: it is not quantised.
        report: Whether what is slow and what is noisy in a quantised file is
            measured.
    """

    to: str = 'onnx'
    part: str = 'model'
    size: tuple[int, int] | None = None
    batch: int | None = 1
    output: str = LOGITS
    layout: str | None = None
    preprocess: bool = False
    images: str | None = None
    half: bool = False
    tolerance: float | None = None
    calibrate: str | None = None
    report: bool = False

    @property
    def precision(self) -> str:
        """Of weights in the file, and of the products with them in int8."""
        if self.calibrate is not None:
            return 'int8'
        return 'float16' if self.half else 'float32'

    @property
    def chosen_layout(self) -> str:
        """The layout, or its default."""
        if self.layout is not None:
            return self.layout
        return best_layout(self.to, self.size)

    @property
    def allowed(self) -> float:
        """The tolerance, or its default."""
        if self.tolerance is not None:
            return self.tolerance
        return HALF_TOLERANCE if self.half else TOLERANCE
