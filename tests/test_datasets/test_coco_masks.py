"""Run lengths of masks, read without pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmefficientmod.datasets.coco_masks import is_bad_rle, is_drawn

IMAGE = dict(height=48, width=64)


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(segmentation={**rle, 'counts': rle['counts'].decode()})


@pytest.mark.parametrize('share', [0.0, 0.01, 0.5, 1.0])
def test_masks_of_pycocotools_are_accepted(share):
    mask = np.random.default_rng(0).random((48, 64)) < share
    annotation = compressed(mask)
    assert not is_bad_rle(annotation, IMAGE)
    assert is_drawn(annotation, IMAGE) == bool(mask.any())


@pytest.mark.parametrize('place', [0, 5, -1])
def test_a_missing_character_is_noticed(place):
    mask = np.random.default_rng(0).random((48, 64)) < 0.5
    annotation = compressed(mask)
    counts = list(annotation['segmentation']['counts'])
    del counts[place]
    annotation['segmentation']['counts'] = ''.join(counts)
    assert is_bad_rle(annotation, IMAGE)


@pytest.mark.parametrize('counts', ['', 'abc', 'ä' * 9, '\n', 'o' * 99, [[1]]])
def test_damaged_run_lengths_are_noticed(counts):
    rle = dict(size=[48, 64], counts=counts)
    assert is_bad_rle(dict(segmentation=rle), IMAGE)
