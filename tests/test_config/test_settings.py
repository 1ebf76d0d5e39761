"""Settings that would fail are found before anything is built."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from test_swap import REFUSED, WORK

from mmefficientmod.config.checks import check_settings, drop_half_loops
from mmefficientmod.config.files import load_config
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.toolbox import import_toolbox

ROOT = Path(__file__).parents[2]
OURS = [
    str(path.relative_to(ROOT / 'configs'))
    for path in sorted((ROOT / 'configs').glob('*/*.py'))
    if path.parent.name != '_base_'
]
MASK_RCNN = 'mmefficientmod::det/mask_rcnn_efficientmod_s_fpn_1x_coco.py'
SEG = 'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py'
CLS = 'mmefficientmod::cls/efficientmod_s_in1k.py'
CASCADE = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
PANOPTIC = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'
PSP = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
BOX, MASK = 'model.roi_head.bbox_head', 'model.roi_head.mask_head'
TRAIN = 'train_dataloader.dataset'
META = f'{TRAIN}.metainfo'


def read(name):
    cfg = load_config(name)
    import_toolbox(cfg.default_scope)
    return cfg


def check(cfg, mode='train'):
    found = check_settings(cfg, mode)
    for text in (*found.errors, *found.warnings):
        assert '\n' not in text
    return found


@pytest.mark.parametrize(
    'names', [OURS, [*WORK, *REFUSED]], ids=['ours', 'stock']
)
def test_published_configs_have_no_error(names):
    for name in names:
        name = name if '::' in name else f'mmefficientmod::{name}'
        errors = [
            text
            for text in check(read(name)).errors
            if 'needs a GPU' not in text and 'not installed' not in text
        ]
        assert errors == [], name


# Changes of a config, and the error that is said.
FAULTS = [
    (MASK_RCNN, {f'{BOX}.num_classes': 3},
     rf'{BOX}\.num_classes=3, and the data set has 80 classes; set'),
    (MASK_RCNN, {f'{MASK}.num_classes': 3}, rf'{MASK}\.num_classes=3'),
    (CASCADE, {f'{BOX}.2.num_classes': 3}, rf'{BOX}\.2\.num_classes=3'),
    (PANOPTIC, {'model.panoptic_head.num_things_classes': 3},
     r'panoptic_head\.num_things_classes=3, .* 80 classes'),
    (SEG, {'model.decode_head.num_classes': 149}, r'149, .* 150 classes'),
    (PSP, {'model.auxiliary_head.num_classes': 2}, r'auxiliary_head\.num_cl'),
    (CLS, {'model.head.num_classes': 10}, r'model\.head\.num_classes=10, '),
    (CLS, {'data_preprocessor.num_classes': 10}, r'data_preprocessor\.num'),
    (CLS, {'model.train_cfg': dict(augments=[dict(num_classes=10)])},
     r'model\.train_cfg\.augments\.0\.num_classes=10, '),
    (MASK_RCNN, {META: dict(classes='cat')},
     r"classes='cat' is one text, .* write classes=\('cat',\)"),
    (MASK_RCNN, {META: dict(classes=('cat', 'dog', 'cat'))},
     r'metainfo\.classes has cat more than once'),
    (MASK_RCNN, {META: dict(classes=('a', 'b'), palette=[(0, 0, 0)])},
     r'palette has 1 colours for 2 classes'),
    (MASK_RCNN, {META: dict(classes=('cat', 'dog'))},
     r'val_dataloader has other classes than train_dataloader'),
    (CLS, {'model.head.num_classes': 3, META: dict(classes=tuple('abc')),
           'val_dataloader.dataset.metainfo': dict(classes=tuple('acb'))},
     r'val_dataloader has other classes .* the order is another one'),
    (CLS, {META: dict(classes=tuple('abc')),
           'val_dataloader.dataset.metainfo': dict(classes=tuple('abc'))},
     r'val_evaluator\.topk=.* needs 5 classes, and there are 3'),
    (SEG, {f'{TRAIN}.reduce_zero_label': False},
     r'reduce_zero_label=True of LoadAnnotations, and False of ADE20K'),
    (SEG, {'train_cfg': None}, r'the config has no train_cfg beside train_d'),
    (SEG, {'val_evaluator': None}, r'no val_evaluator beside val_dataloader'),
    (SEG, {'train_dataloader.batch_size': 2.5}, r'batch_size=2\.5 must be'),
    (SEG, {'train_dataloader.num_workers': 0,
           'train_dataloader.prefetch_factor': 2}, r'prefetch_factor=2 needs'),
    (SEG, {f'{TRAIN}.data_root': 'C:\new'}, r'data_root=.*paths with /'),
    (SEG, {'visualizer.vis_backends': [dict(type='NeptuneVisBackend')]},
     r'NeptuneVisBackend needs the package neptune, which is not installed'),
    (SEG, {'optim_wrapper.type': 'AmpOptimWrapper'}, r'needs a GPU'),
    (SEG, {'optim_wrapper.optimizer.type': 'AdamWw'},
     r"'AdamWw' is registered; did you mean AdamW\?"),
    (SEG, {f'{TRAIN}.type': 'ADE20K'}, r"'ADE20K' is registered; did you"),
    (SEG, {'train_dataloader.dataset.pipeline.0.type': 'LoadImage'},
     r"pipeline of train_dataloader: no transform of the type 'LoadImage'"),
    (PSP, {'train_dataloader.batch_size': 1},
     r'batch_size=1: PSPHead pools an image to one pixel'),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'changes', 'said'), FAULTS)
def test_fault_is_found_with_place_and_remedy(
    name, changes, said, monkeypatch
):
    monkeypatch.setattr(
        'mmefficientmod.config.checks.get_device', lambda: 'cpu'
    )
    cfg = read(name)
    for key, value in changes.items():
        Config.merge_from_dict(cfg, {key: value})
    errors = check(cfg).errors
    found = [x for x in errors if re.search(said, x)]
    assert len(found) == 1, errors


def test_more_classes_than_the_data_has_are_a_warning():
    cfg = read(MASK_RCNN)
    apply_options(cfg, {f'{BOX}.num_classes': 90})
    found = check(cfg)
    assert found.errors == []
    (warning,) = found.warnings
    assert warning.startswith(f'{BOX}.num_classes=90, and the data set has 80')


def test_binary_and_class_agnostic_heads_have_no_fault():
    cfg = read(SEG)
    names = dict(classes=('road', 'rest'))
    for loader in ('train', 'val'):
        cfg[f'{loader}_dataloader'].dataset.metainfo = names
    cfg.model.decode_head.update(num_classes=2, out_channels=1)
    assert not any('num_classes' in text for text in check(cfg).errors)
    cfg = read(MASK_RCNN)
    cfg.model.roi_head.mask_head.update(class_agnostic=True, num_classes=1)
    assert check(cfg).errors == []


def test_head_that_finds_edges_has_no_fault():
    cfg = read('mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py')
    assert cfg.model.auxiliary_head[2].num_classes == 2
    assert not any('num_classes' in text for text in check(cfg).errors)


def test_classes_in_a_file_are_read(tmp_path):
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    cfg = read(MASK_RCNN)
    for loader in ('train', 'val'):
        cfg[f'{loader}_dataloader'].dataset.metainfo = dict(
            classes=str(tmp_path / 'classes.txt')
        )
    found = check(cfg)
    assert found.errors == []
    assert any('2 classes' in text for text in found.warnings)


@pytest.mark.parametrize(
    ('mode', 'removed', 'left_out', 'said'),
    [
        ('train', ['test_dataloader', 'test_cfg'], 'test_evaluator',
         'test_evaluator left out: the config has no test_dataloader and no'),
        ('train', ['val_dataloader', 'val_evaluator'], 'val_cfg',
         'val_cfg left out: the config has no val_dataloader and no'),
        ('test', ['val_cfg'], 'val_dataloader', 'val_dataloader and val_ev'),
        ('test', ['optim_wrapper'], 'train_cfg', 'train_dataloader and tr'),
    ],
)  # fmt: skip
def test_half_of_a_loop_that_is_not_needed_is_left_out(
    mode, removed, left_out, said
):
    cfg = read(SEG)
    for key in removed:
        cfg[key] = None
    (line,) = drop_half_loops(cfg, mode)
    assert line.startswith(said)
    assert cfg[left_out] is None
    assert drop_half_loops(cfg, mode) == []
    assert check(cfg, mode).errors == []


def test_half_of_a_loop_that_is_needed_stays():
    cfg = read(SEG)
    cfg.test_cfg = None
    assert drop_half_loops(cfg, 'test') == []
    (error,) = check(cfg, 'test').errors
    assert error.startswith('the config has no test_cfg beside')
