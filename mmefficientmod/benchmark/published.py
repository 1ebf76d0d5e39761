"""Accuracies that others published; nobody here reproduced them."""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

import mmefficientmod

# Each is one of the columns of tables; in per cent.
QUANTITIES = {
    'top1': 'top-1',
    'top1_distilled': 'top-1 dist.',
    'miou': 'mIoU',
    'box_ap': 'box AP',
}
# ImageNet top-1 of the rivals, which have no entry in the model index, without
# and with distillation. At 224 pixels, but for MobileViT and V2, at 256.
# (1) table 1 of the EfficientMod paper; (2) its table 6; (3) timm's
# results-imagenet.csv; (4) the metafile of MMPretrain; (5) the README of the
# authors, 300 epochs; (6) table 3 of the iFormer paper.
RIVALS: dict[str, tuple[float | None, float | None]] = {
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
    # The authors' recipe has a teacher; there is no result without.
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


def published(name: str | None) -> dict[str, float]:
    """What is published of a backbone, or of an entry of the model index.

    Args:
        name: Of :data:`~mmefficientmod.zoo.BACKBONES`, or of an entry; None
            is nobody's.

    Returns:
        Accuracies by the keys of :data:`QUANTITIES`. ``top1`` is ImageNet's;
        ``miou`` that of Semantic FPN on ADE20K and ``box_ap`` that of Mask
        R-CNN 1x on COCO, from weights as their authors had them. What is not
        known is not there; of ours, nothing where the package was installed
        without its index.
    """
    index = _index()
    distilled = 'top1_distilled'
    if name in index:
        found = index[name]
        if '_distill_' in name:
            found = {distilled: found['top1']}
        return dict(found)
    plain, taught = RIVALS.get(name, (None, None))
    values = {
        'top1': plain or index.get(f'{name}_in1k', {}).get('top1'),
        distilled: taught or index.get(f'{name}_distill_in1k', {}).get('top1'),
        'miou': index.get(f'fpn_{name}_ade20k', {}).get('miou'),
        'box_ap': index.get(f'mask_rcnn_{name}_fpn_1x_coco', {}).get('box_ap'),
    }
    return {key: value for key, value in values.items() if value is not None}


@functools.cache
def _index() -> dict[str, dict[str, float]]:
    """Results of the entries of the model index, by the keys of QUANTITIES."""
    root = Path(mmefficientmod.__file__).parent / '.mim'
    if not (root / 'model-index.yml').is_file():
        return {}
    keys = {'Top 1 Accuracy': 'top1', 'mIoU': 'miou', 'box AP': 'box_ap'}
    found: dict[str, dict[str, float]] = {}
    for name in yaml.safe_load((root / 'model-index.yml').read_text())[
        'Import'
    ]:
        for model in yaml.safe_load((root / name).read_text())['Models']:
            found[model['Name']] = {
                keys[metric]: value
                for result in model.get('Results', [])
                for metric, value in result['Metrics'].items()
                if metric in keys
            }
    return found
