"""Accuracies that others published; nobody here reproduced them.

Accuracies of the models of our configs are read from the model index (the
metafiles in ``configs/``). This file only holds those of backbones without a
config for ImageNet.
"""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

import mmefficientmod

# Titles in tables of the accuracies, which are in per cent.
ACCURACIES = {
    'top1': 'top-1',
    'top1_distilled': 'top-1 dist.',
    'miou': 'mIoU',
    'box_ap': 'box AP',
}
# For metrics of the model index, their keys in ACCURACIES.
METRICS = {'Top 1 Accuracy': 'top1', 'mIoU': 'miou', 'box AP': 'box_ap'}
# ImageNet top-1 in per cent, without and with distillation, at 224x224, but
# for MobileViT and MobileViTv2 at 256x256.
# (1) table 1 of the EfficientMod paper; (2) its table 6; (3) timm's
# results-imagenet.csv; (4) the metafile of MMPretrain; (5) the README of the
# authors' repository, 300 epochs; (6) table 3 of the iFormer paper.
IMAGENET_TOP1: dict[str, tuple[float | None, float | None]] = {
    'mobilenetv2_100': (71.8, None),  # (1)
    'mobilenetv2_140': (74.7, None),  # (1)
    'mobilevit_xs': (74.8, None),  # (1)
    'mobilevit_s': (78.3, None),  # (3)
    'mobilevitv2_100': (78.1, None),  # (1)
    'fasternet_t0': (71.9, None),  # (1)
    'fasternet_t1': (76.2, None),  # (1)
    'fasternet_t2': (78.9, None),  # (1)
    'edgevit_xxs': (74.4, None),  # (1)
    'edgevit_xs': (77.5, None),  # (1)
    'edgevit_s': (81.0, None),  # (1)
    # The authors only published results with a teacher.
    'efficientformer_l1': (None, 79.2),  # (5)
    'efficientformerv2_s0': (73.7, 75.7),  # (1)
    'efficientformerv2_s1': (77.9, 79.0),  # (1)
    'efficientformerv2_s2': (80.4, 81.6),  # (1)
    'poolformer_s12': (77.2, None),  # (1)
    'poolformer_s24': (80.3, None),  # (4)
    'pvt_v2_b0': (70.7, None),  # (3)
    'pvt_v2_b1': (78.7, None),  # (3)
    'van_tiny': (75.4, None),  # (1)
    'van_small': (81.0, None),  # (4)
    'focalnet_tiny_lrf': (82.2, None),  # (3)
    'repvit_m0_9': (None, 78.7),  # (5)
    'repvit_m1_0': (78.6, 80.0),  # (6), (5)
    'repvit_m1_1': (79.4, 80.7),  # (6), (5)
    'repvit_m1_5': (81.2, 82.3),  # (6), (5)
    'resnet18': (69.9, None),  # (4)
    'resnet50': (76.6, None),  # (4)
    'mbconv_xs': (76.9, None),  # (2)
    'mbconv_s': (79.8, None),  # (2)
}


def published_accuracies(name: str | None) -> dict[str, float]:
    """The published accuracies of a backbone, or of an entry of the index.

    Args:
        name: A key of :data:`~mmefficientmod.swap.names.BACKBONES`, or the
            name of an entry of the model index; None, or any other name, for
            a model of which nothing is known.

    Returns:
        Per cent, by the keys of :data:`ACCURACIES`, as far as known: ImageNet
        top-1, without and with distillation; for a backbone also the mIoU of
        Semantic FPN on ADE20K and the box AP of Mask R-CNN 1x on COCO.
        Accuracies from the model index are missing if the package was
        installed without it.
    """
    if name is None:
        return {}
    index = _model_index()
    if name in index:
        top1 = 'top1_distilled' if '_distill_' in name else 'top1'
        return {top1 if k == 'top1' else k: v for k, v in index[name].items()}
    plain, distilled = IMAGENET_TOP1.get(name, (None, None))
    accuracies = {
        'top1': plain or index.get(f'{name}_in1k', {}).get('top1'),
        'top1_distilled': (
            distilled or index.get(f'{name}_distill_in1k', {}).get('top1')
        ),
        'miou': index.get(f'fpn_{name}_ade20k', {}).get('miou'),
        'box_ap': index.get(f'mask_rcnn_{name}_fpn_1x_coco', {}).get('box_ap'),
    }
    return {k: value for k, value in accuracies.items() if value is not None}


@functools.cache
def _model_index() -> dict[str, dict[str, float]]:
    """For each entry of the model index, its results by our keys."""
    root = Path(mmefficientmod.__file__).parent / '.mim'
    path = root / 'model-index.yml'
    if not path.is_file():
        return {}
    results: dict[str, dict[str, float]] = {}
    for metafile in yaml.safe_load(path.read_text())['Import']:
        for model in yaml.safe_load((root / metafile).read_text())['Models']:
            results[model['Name']] = {
                METRICS[metric]: value
                for result in model.get('Results', [])
                for metric, value in result['Metrics'].items()
                if metric in METRICS
            }
    return results
