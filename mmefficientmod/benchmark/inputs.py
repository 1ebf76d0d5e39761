"""What models need besides images: annotations, and fixed proposals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmefficientmod.analysis.complexity import image_metainfo
from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.config.files import TOOLBOXES
from mmefficientmod.config.nodes import ConfigError

# About as many as an image of COCO has on average.
OBJECTS_PER_IMAGE = 7
SMALLEST_BOX = 16  # pixels


def random_annotations(
    model: nn.Module, case: BenchmarkCase, device: torch.device
) -> list[Any]:
    """Make random annotations of the kind that a model is trained with.

    They are the same in each call.

    Args:
        model: A detector (gets 7 objects with boxes and masks an image), a
            segmentor (gets a class for each pixel) or a classifier (gets
            class 0 for each image).
        case: Number and size of the images.
        device: Where the annotations are put.

    Returns:
        A data sample of the model's toolbox for each image.

    Raises:
        ConfigError: If the model is none of the three.
    """
    size = (case.height, case.width)
    toolbox = _toolbox_of(model)
    samples: list[Any]
    if toolbox == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        samples = demo_mm_inputs(
            case.batch,
            (3, *size),
            num_items=[OBJECTS_PER_IMAGE] * case.batch,
            with_mask=True,
            device=device,
        )['data_samples']
    elif toolbox == 'mmseg':
        from mmseg.structures import SegDataSample

        generator = torch.Generator().manual_seed(0)
        num_classes: Any = model.num_classes
        samples = [SegDataSample() for _ in range(case.batch)]
        for sample in samples:
            classes = torch.randint(
                num_classes, (1, *size), generator=generator
            )
            sample.gt_sem_seg = PixelData(data=classes.to(device))
    elif toolbox == 'mmpretrain':
        from mmpretrain.structures import DataSample

        samples = [
            DataSample().set_gt_label(0).to(device) for _ in range(case.batch)
        ]
    else:
        raise ConfigError(
            f'{type(model).__name__} cannot be trained here: only detectors, '
            'segmentors and classifiers get annotations'
        )
    for sample in samples:
        sample.set_metainfo(image_metainfo(size))
    return samples


def _toolbox_of(model: nn.Module) -> str | None:
    """The toolbox that a model's class, or one of its parents, comes from."""
    packages = [kind.__module__.split('.')[0] for kind in type(model).__mro__]
    return next((x for x in packages if x in TOOLBOXES), None)


def fix_proposals(model: nn.Module, case: BenchmarkCase) -> None:
    """Make the second stage of a detector get the same boxes in each run.

    The RPN runs as always and decides how many boxes there are; then
    :func:`fixed_boxes` take the place of its boxes. Those depend on the
    weights, which are random here, and RoIAlign's time depends on their
    sizes.

    Args:
        model: Any model; changed in place if it has an ``rpn_head``.
        case: Size of the images.
    """
    head = getattr(model, 'rpn_head', None)
    if head is None:
        return

    def replace_boxes(results: Iterable[Any]) -> None:
        for result in results:
            boxes = fixed_boxes(len(result), case.height, case.width)
            result.bboxes = boxes.to(result.bboxes)

    predict, loss_and_predict = head.predict, head.loss_and_predict

    def predict_fixed(*args: Any, **kwargs: Any) -> Sequence[Any]:
        results = predict(*args, **kwargs)
        replace_boxes(results)
        return results

    def loss_and_predict_fixed(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        losses, results = loss_and_predict(*args, **kwargs)
        replace_boxes(results)
        return losses, results

    head.predict = predict_fixed
    head.loss_and_predict = loss_and_predict_fixed


def fixed_boxes(number: int, height: int, width: int) -> Tensor:
    """Make boxes inside an image, the same in each call.

    The logarithm of each side is uniformly distributed, from that of 16
    pixels (at most the image's side) to that of the image's side, and the
    position is uniform, too.

    Args:
        number: How many boxes.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.

    Returns:
        ``(number, 4)``, as x1, y1, x2, y2 in pixels.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([width, height])
    random = torch.rand(number, 4, generator=generator)
    smallest = image.clamp(max=SMALLEST_BOX)
    sides = smallest * (image / smallest) ** random[:, :2]
    corners = random[:, 2:] * (image - sides)
    return torch.cat([corners, corners + sides], 1)
