"""Samples whose errors name the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from PIL import Image

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import read_header
from mmefficientmod.datasets.masks import IGNORED
from mmefficientmod.messages import shorten

# Pillow's modes of files whose values do not fit into 8 bits.
WIDE_MODES = ('I', 'F')


def name_file_on_error(dataset: Any) -> None:
    """Make a data set raise `DataError` with the file that it cannot load.

    Every step of the pipeline is covered. These raise it, too, which would
    otherwise end as wrong results or far from the cause:

    - labels of a segmentation map that are no class of the data set: on a
      GPU, a device-side assertion that kills the process;
    - a segmentation map of another size than its image, or with values
      above 255, which MMSegmentation reads modulo 256;
    - an image of another size than its annotation file says.

    Args:
        dataset: The data set or a wrapper of data sets, changed in place. Call
            this before the data loader copies it to worker processes.
    """
    for inner in with_inner(dataset):
        pipeline = getattr(inner, 'pipeline', None)
        if isinstance(pipeline, Compose):
            pipeline = pipeline.transforms
        if isinstance(pipeline, list):
            classes = getattr(inner, 'metainfo', {}).get('classes') or ()
            pipeline[:] = [
                t if isinstance(t, _Checked) else _Checked(t, len(classes))
                for t in pipeline
            ]


def with_inner(dataset: Any) -> Iterator[Any]:
    """A data set and all that it wraps.

    Args:
        dataset: The data set or a wrapper of data sets.
    """
    for inner in getattr(dataset, 'datasets', []):
        yield from with_inner(inner)
    if hasattr(dataset, 'dataset'):
        yield from with_inner(dataset.dataset)
    yield dataset


def innermost(dataset: Any) -> list[Any]:
    """The data sets without wrappers in a data set.

    Args:
        dataset: The data set or a wrapper of data sets.
    """
    return [
        inner
        for inner in with_inner(dataset)
        if not hasattr(inner, 'datasets') and not hasattr(inner, 'dataset')
    ]


class _Checked:
    """A transform whose errors name the file."""

    def __init__(self, transform: Callable, num_classes: int) -> None:
        self.transform = transform
        self.num_classes = num_classes

    def __getattr__(self, name: str) -> Any:
        # All other attributes are those of the transform.
        if name.startswith('__') or name == 'transform':
            raise AttributeError(name)
        return getattr(self.transform, name)

    def __repr__(self) -> str:
        return repr(self.transform)

    def __call__(self, results: dict) -> dict | None:
        name = type(self.transform).__name__
        loads = name.startswith('Load')
        # The transforms change the dict.
        size = results.get('width'), results.get('height')
        files = _files(results)
        try:
            if loads:
                _refuse_wide_labels(results, name)
            output = self.transform(results)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f'{name} failed on {files}: '
                f'{type(error).__name__}: {shorten(str(error))}'
            ) from error
        if loads and output:
            if name.startswith('LoadImage'):
                _compare_size(output, size)
            # Only MMSegmentation sets `reduce_zero_label`. The maps that
            # MMDetection loads have other labels than the classes of the
            # data set.
            if 'reduce_zero_label' in output:
                _compare_with_image(output)
                if self.num_classes:
                    self._check_labels(output)
        return output

    def _check_labels(self, results: dict) -> None:
        labels = results.get('gt_seg_map')
        if labels is None:
            return
        bad = labels[(labels >= self.num_classes) & (labels != IGNORED)]
        if not bad.size:
            return
        label = int(bad[0])
        accepted = f'0 to {self.num_classes - 1}'
        if results['reduce_zero_label']:
            # Labels in the file are one higher than those loaded.
            label += 1
            accepted = f'0 (ignored) and 1 to {self.num_classes}'
        raise DataError(
            f'{_mask(results)} has the label {label}; the data set has the '
            f'labels {accepted}, and 255 is ignored'
        )


def _refuse_wide_labels(results: Mapping[str, Any], name: str) -> None:
    """Refuse labels above 255, before MMSegmentation cuts them to 8 bits."""
    path = results.get('seg_map_path')
    if (
        name != 'LoadAnnotations'
        or 'reduce_zero_label' not in results
        or not isinstance(path, str)
        or '://' in path
    ):
        return
    try:
        mode = read_header(path).mode
    except DataError:
        return  # the transform says why
    if mode.startswith(WIDE_MODES):
        with Image.open(path) as image:
            values = np.array(image)
        uneven = values[values != np.floor(values)]  # NaN as well
        if uneven.size:
            raise DataError(
                f'{path} has the label {uneven[0]}; labels are whole numbers '
                'from 0 to 255, so save the mask in 8 bits'
            )
        if values.max() > IGNORED or values.min() < 0:
            bad = values[(values > IGNORED) | (values < 0)]
            raise DataError(
                f'{path} has the label {bad[0]}; MMSegmentation reads labels '
                'from 0 to 255, so renumber them'
            )


def _compare_size(results: Mapping[str, Any], said: tuple) -> None:
    image = results.get('img')
    path = results.get('img_path')
    if None in said or not isinstance(image, np.ndarray):
        return
    loaded = image.shape[1], image.shape[0]
    if loaded == said:
        return
    sentence = (
        f'{path} is {loaded[0]}x{loaded[1]} pixels as it is loaded, and '
        f'{said[0]}x{said[1]} by its annotation file'
    )
    if loaded == said[::-1] and isinstance(path, str):
        raise DataError(
            f'{sentence}: EXIF turns it. If the annotations are of the image '
            'as stored, read it by LoadImageFromFile('
            "color_type='color_ignore_orientation')"
        )
    raise DataError(
        f'{sentence}; the boxes would not fit. Use the images that were '
        'annotated'
    )


def _compare_with_image(results: Mapping[str, Any]) -> None:
    labels = results.get('gt_seg_map')
    shape = results.get('ori_shape')
    if labels is None:
        return
    if labels.ndim != 2:
        raise DataError(
            f'{_mask(results)} has the shape {labels.shape}; an annotation '
            'has one channel, whose values are the labels'
        )
    if shape is not None and labels.shape != tuple(shape[:2]):
        raise DataError(
            f'{_mask(results)} is {labels.shape[1]}x{labels.shape[0]} pixels, '
            f'and its image {shape[1]}x{shape[0]} as it is loaded; export it '
            'again in the size of the image'
        )


def _mask(results: Mapping[str, Any]) -> str:
    return str(results.get('seg_map_path', 'the annotation'))


def _files(results: Mapping[str, Any]) -> str:
    found = [
        f'{name} {results[key]}'
        for key, name in (
            ('img_path', 'image'),
            ('seg_map_path', 'annotation'),
        )
        if isinstance(results.get(key), str)
    ]
    return ', '.join(found) or 'a sample'
