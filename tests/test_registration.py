"""Train scripts of the toolboxes and ours, in new processes."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmefficientmod import EfficientMod
from mmefficientmod.config.files import TOOLBOXES, load_config
from mmefficientmod.config.nodes import dataset_dicts
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets import apply_mini

BACKBONE = dict(type='mmefficientmod.EfficientMod', arch='xxs')
CHANNELS = [32, 64, 128, 256]

# Stands in for a compiled mmcv in a process that does not import us first.
COMPILED = """
import importlib.abc, importlib.util, sys

class Compiled(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name == 'mmcv._ext':
            return importlib.util.spec_from_loader(name, self)

    def exec_module(self, module):
        def op(name):
            if name.startswith('_'):
                raise AttributeError(name)
            return lambda *args: None

        module.__getattr__ = op

sys.meta_path.append(Compiled())
"""


def mmseg_config(tmp_path, mini_root):
    """Stock Semantic FPN on the miniature of ADE20K."""
    cfg = load_config('mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py')
    apply_mini(cfg, str(mini_root))
    cfg.model.pretrained = None
    cfg.model.backbone = BACKBONE
    cfg.model.neck.in_channels = CHANNELS
    cfg.train_cfg.max_iters = 1
    return cfg


def mmdet_config(tmp_path, mini_root):
    """Stock RetinaNet on two images with a box each."""
    (tmp_path / 'train2017').mkdir()
    images, boxes = [], []
    for i in (1, 2):
        name = f'{i}.jpg'
        image = np.random.default_rng(i).integers(0, 256, (64, 96, 3))
        cv2.imwrite(str(tmp_path / 'train2017' / name), image)
        images.append(dict(id=i, file_name=name, height=64, width=96))
        boxes.append(dict(id=i, image_id=i, category_id=1, iscrowd=0,
                          bbox=[8, 8, 40, 40], area=1600))  # fmt: skip
    classes = [dict(id=1, name='person')]
    (tmp_path / 'ann.json').write_text(
        json.dumps(dict(images=images, annotations=boxes, categories=classes))
    )
    cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.backbone = BACKBONE
    cfg.model.neck.in_channels = CHANNELS
    for dataset in dataset_dicts(cfg, 'train_dataloader'):
        dataset.update(data_root=f'{tmp_path}/', ann_file='ann.json')
        dataset.pipeline[2].scale = (96, 64)
    cfg.train_cfg.max_epochs = 1
    return cfg


def mmpretrain_config(tmp_path, mini_root):
    """Stock ResNet-18 recipe on two folders with an image each."""
    for name in ('cat', 'dog'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        image = np.full((64, 64, 3), len(name), np.uint8)
        cv2.imwrite(str(tmp_path / 'train' / name / '1.png'), image)
    cfg = load_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    cfg.model.backbone = dict(BACKBONE, out_indices=3, final_norm=True)
    cfg.model.head.update(in_channels=CHANNELS[-1], topk=(1,))
    cfg.train_dataloader.dataset.update(
        type='CustomDataset', data_root=str(tmp_path), data_prefix='train'
    )
    cfg.train_dataloader.dataset.pop('split', None)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.max_epochs = 1
    return cfg


slow = pytest.mark.slow
CONFIGS = dict(
    mmseg=mmseg_config, mmdet=mmdet_config, mmpretrain=mmpretrain_config
)


@pytest.mark.parametrize(
    ('script', 'custom_imports'),
    [
        ('stock', True),
        pytest.param('stock', False, marks=slow),
        pytest.param('ours', False, marks=slow),
    ],
)
@pytest.mark.parametrize(
    'toolbox',
    ['mmseg', *(pytest.param(x, marks=slow) for x in ('mmdet', 'mmpretrain'))],
)
def test_train_scripts_of_the_toolboxes_train_a_registered_backbone(
    toolbox, script, custom_imports, tmp_path, mini_root
):
    cfg = CONFIGS[toolbox](tmp_path, mini_root)
    for name in ('val', 'test'):
        for part in ('cfg', 'dataloader', 'evaluator'):
            cfg.pop(f'{name}_{part}', None)
    if cfg.get('data_preprocessor') and toolbox == 'mmpretrain':
        cfg.data_preprocessor.num_classes = 2
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.custom_imports = (
        dict(imports=['mmefficientmod'], allow_failed_imports=False)
        if custom_imports
        else None
    )
    cfg.dump(str(tmp_path / 'config.py'))
    if script == 'stock' and not custom_imports:
        (tmp_path / 'sitecustomize.py').write_text(COMPILED)
    package = toolbox if script == 'stock' else 'mmefficientmod'
    spec = importlib.util.find_spec(package)
    run = subprocess.run(
        [
            sys.executable,
            Path(spec.origin).parent / '.mim/tools/train.py',
            'config.py',
            '--work-dir=work_dir',
        ],
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (checkpoint,) = (tmp_path / 'work_dir').glob('*_1.pth')
    state = torch.load(checkpoint, weights_only=False)
    weight = state['state_dict']['backbone.stages.3.blocks.0.gamma']
    assert weight.shape == (256,)
    assert (weight != 1e-4).any()  # it was trained


@pytest.mark.parametrize('scope', TOOLBOXES)
@pytest.mark.parametrize('name', ['EfficientMod', BACKBONE['type']])
def test_name_with_and_without_scope_resolves(scope, name):
    import_toolbox(scope)
    registry = importlib.import_module(f'{scope}.registry').MODELS
    assert registry.get(name) is EfficientMod
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(dict(type=name, arch='xxs'))
    assert isinstance(model, EfficientMod)
