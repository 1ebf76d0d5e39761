"""Published accuracies: each is written down in one place."""

import re

import pytest
import yaml
from helpers import ROOT

from mmefficientmod.benchmark.published import (
    IMAGENET_TOP1,
    METRICS,
    published_accuracies,
)
from mmefficientmod.swap.names import BACKBONES


@pytest.fixture(scope='module')
def index():
    """For each entry of the model index, its results by our keys."""
    metafiles = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return {
        model['Name']: {
            METRICS[metric]: value
            for result in model.get('Results', [])
            for metric, value in result['Metrics'].items()
            if metric in METRICS
        }
        for name in metafiles['Import']
        for model in yaml.safe_load((ROOT / name).read_text())['Models']
    }


def test_accuracies_of_our_configs_come_from_the_model_index(index):
    assert published_accuracies('efficientmod_s') == dict(
        top1=index['efficientmod_s_in1k']['top1'],
        top1_distilled=index['efficientmod_s_distill_in1k']['top1'],
        miou=index['fpn_efficientmod_s_ade20k']['miou'],
        box_ap=index['mask_rcnn_efficientmod_s_fpn_1x_coco']['box_ap'],
    )
    assert published_accuracies('efficientmod_s_distill_in1k') == dict(
        top1_distilled=index['efficientmod_s_distill_in1k']['top1']
    )
    found = published_accuracies('repvit_m1_1')
    assert found['top1_distilled'] == IMAGENET_TOP1['repvit_m1_1'][1]
    assert (
        found['box_ap']
        == (index['mask_rcnn_repvit_m1_1_fpn_1x_coco']['box_ap'])
    )


def test_no_accuracy_has_two_places(index):
    assert not {f'{name}_in1k' for name in IMAGENET_TOP1} & {*index}
    assert set(IMAGENET_TOP1) < set(BACKBONES)


def test_every_backbone_has_an_accuracy_and_other_models_have_none():
    assert all(map(published_accuracies, BACKBONES))
    assert published_accuracies(None) == {}
    assert published_accuracies('own.py:Tiny') == {}


def test_comparison_page_prints_the_published_accuracies():
    titles = {
        'top-1': 'top1',
        'dist.': 'top1_distilled',
        'mIoU': 'miou',
        'box AP': 'box_ap',
    }
    page = (ROOT / 'docs/comparison.md').read_text()
    compared = set()
    for table in re.findall(r'(?:^\|.*\n)+', page, re.M):
        head, _, *lines = (
            [cell.strip() for cell in line.strip('|').split('|')]
            for line in table.splitlines()
        )
        # Only tables of measurements have published accuracies; the mIoU in
        # tables of trainings is ours.
        if 'G FLOPs' not in head:
            continue
        for line in lines:
            accuracies = published_accuracies(line[0].strip('`'))
            for title, text in zip(head, line, strict=True):
                if title in titles:
                    value = accuracies.get(titles[title])
                    assert text == ('' if value is None else str(value)), line
                    compared.add(titles[title])
    assert compared == {*titles.values()}
