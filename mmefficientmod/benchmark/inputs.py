"""What models are run on besides images: annotations and proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.config.nodes import ConfigError

# About as many as an image of COCO has on average.
OBJECTS = 7


def annotations(
    model: nn.Module, case: BenchmarkCase, device: torch.device
) -> list[Any]:
    """Random annotations for a batch, of the kind that a model learns from.

    Args:
        model: A detector (boxes and masks, 7 objects an image), a segmentor
            (a class for each pixel) or a classifier.
        case: Number and size of the images.
        device: Where they go.

    Raises:
        ConfigError: If the model is nothing of that.
    """
    size = (case.height, case.width)
    toolbox = next(
        (
            name
            for kind in type(model).__mro__
            if (name := kind.__module__.split('.')[0])
            in ('mmdet', 'mmseg', 'mmpretrain')
        ),
        None,
    )
    if toolbox == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        samples = demo_mm_inputs(
            case.batch,
            (3, *size),
            num_items=[OBJECTS] * case.batch,
            with_mask=True,
            device=device,
        )['data_samples']
    elif toolbox == 'mmseg':
        from mmseg.structures import SegDataSample

        samples = [SegDataSample() for _ in range(case.batch)]
        for sample in samples:
            labels = torch.randint(
                model.num_classes, (1, *size), device=device
            )
            sample.gt_sem_seg = PixelData(data=labels)
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
        sample.set_metainfo(
            dict(
                img_shape=size,
                ori_shape=size,
                pad_shape=size,
                batch_input_shape=size,
                scale_factor=(1.0, 1.0),
            )
        )
    return samples


def give_proposals(model: nn.Module, case: BenchmarkCase) -> None:
    """Have the second stage of a detector get boxes that are always the same.

    The RPN works as before. But which boxes it proposes hangs on the weights,
    random as a rule, and how long RoIAlign takes hangs on their sizes.

    Args:
        model: A model. What has no RPN is left as it is.
        case: What it is run on.
    """
    head = getattr(model, 'rpn_head', None)
    if head is None:
        return

    def replace(results: Sequence[Any]) -> None:
        for result in results:
            boxes = proposals(len(result), case.height, case.width)
            result.bboxes = boxes.to(result.bboxes)

    predict, loss_and_predict = head.predict, head.loss_and_predict

    def predict_same(*args: Any, **kwargs: Any) -> Any:
        results = predict(*args, **kwargs)
        replace(results)
        return results

    def loss_and_predict_same(*args: Any, **kwargs: Any) -> Any:
        losses, results = loss_and_predict(*args, **kwargs)
        replace(results)
        return losses, results

    head.predict = predict_same
    head.loss_and_predict = loss_and_predict_same


def proposals(number: int, height: int, width: int) -> Tensor:
    """Boxes ``(number, 4)``, as x1, y1, x2, y2, the same in each call.

    Anywhere in the image; the logarithm of each side is uniformly distributed
    between that of 16 pixels and that of the image's side.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([width, height])
    random = torch.rand(number, 4, generator=generator)
    sides = 16 * (image / 16).clamp(min=1) ** random[:, :2]
    corners = random[:, 2:] * (image - sides)
    return torch.cat([corners, corners + sides], 1)
