"""Configs: found, loaded, true to their names and to the recipe."""

import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmefficientmod.config import (
    ConfigError,
    find_config,
    load_config,
    replace_everywhere,
)

ROOT = Path(__file__).parents[1]
SEG = sorted((ROOT / 'configs/seg').glob('*.py'))
VARIANTS = ('xxs', 'xs', 's', 's_conv')


def test_there_is_a_config_for_each_variant():
    assert {p.stem for p in SEG} >= {
        f'fpn_efficientmod_{v}_ade20k' for v in VARIANTS
    }


@pytest.mark.parametrize('path', SEG, ids=lambda p: p.stem)
def test_config_builds_and_is_what_its_name_says(path):
    assert len(path.read_text().splitlines()) < 40
    cfg = Config.fromfile(path)
    arch = re.match(r'fpn_efficientmod_(\w+)_ade20k', path.stem)[1]
    assert cfg.model.backbone.arch == arch
    assert cfg.model.pretrained is None
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    assert cfg.model.neck.in_channels == list(model.backbone.out_channels)
    assert cfg.train_dataloader.batch_size * 8 == 32
    assert cfg.auto_scale_lr.base_batch_size == 32


def closed_formula(i, eta_min):
    """mmcv 1.x: cosine annealing times the linear warm-up, by iteration."""
    lr = eta_min + (2e-4 - eta_min) * (1 + math.cos(math.pi * i / 40000)) / 2
    if i < 1000:
        lr *= 1 - (1 - i / 1000) * (1 - 0.1)
    return lr


@pytest.mark.parametrize('variant', VARIANTS)
def test_learning_rate_is_the_authors(variant, tmp_path):
    cfg = Config.fromfile(
        ROOT / f'configs/seg/fpn_efficientmod_{variant}_ade20k.py'
    )
    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer == dict(type='AdamW', lr=2e-4, weight_decay=1e-4)
    assert cfg.train_cfg.max_iters == 40000
    runner = Runner(
        model=torch.nn.Linear(1, 1),
        work_dir=str(tmp_path),
        optim_wrapper=wrapper,
        param_scheduler=cfg.param_scheduler,
        train_cfg=cfg.train_cfg,
        train_dataloader=dict(batch_size=1, dataset=[0], sampler=None),
        experiment_name=f'lr_{variant}',
    )
    optim = runner.build_optim_wrapper(wrapper)
    runner.optim_wrapper = optim
    schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    twenty = {0, 1, 2, 10, 100, 500, 900, 998, 999, 1000, 1001, 1500, 4000,
              8000, 12345, 20000, 30000, 36000, 39000, 39999}  # fmt: skip
    assert len(twenty) == 20
    eta_min = 0 if variant == 's_conv' else 2e-10
    for i in range(40000):
        if i in twenty:
            assert optim.get_lr()['lr'][0] == pytest.approx(
                closed_formula(i, eta_min), rel=2e-5
            ), i
        optim.optimizer._opt_called = True
        for scheduler in schedulers:
            scheduler.step()


def test_test_images_are_resized_to_a_multiple_of_32():
    cfg = Config.fromfile(SEG[0])
    pipeline = cfg.test_dataloader.dataset.pipeline
    assert cfg.val_dataloader.dataset.pipeline == pipeline
    assert pipeline[1] == dict(
        type='Resize', scale=(2048, 512), keep_ratio=True
    )
    assert pipeline[2] == dict(type='ResizeToMultiple', size_divisor=32)


@pytest.mark.parametrize(
    'name',
    [
        'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
        'mmpretrain::resnet/resnet18_8xb32_in1k.py',
        'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py',
        'configs/seg/fpn_efficientmod_s_ade20k.py',
    ],
)
def test_configs_are_found(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert find_config(name).is_file()
    assert load_config(name).default_scope == {
        'mmdet': 'mmdet',
        'mmpretrain': 'mmpretrain',
    }.get(name.partition('::')[0], 'mmseg')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('configs/seg/fpn_efficientmod_x_ade20k.py', 'did you mean .*_xs_'),
        ('mmdet::mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py', 'mask-rcnn_r50'),
        ('nowhere/at/all.py', 'does not exist'),
        ('mmpose::x.py', "no package 'mmpose'"),
        ('configs/seg', 'does not exist'),
    ],
)
def test_missing_config(name, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message):
        find_config(name)


@pytest.mark.parametrize(
    'text',
    [
        "_base_ = 'nowhere.py'",
        "_base_ = 'mmseg::nowhere/at_all.py'",
        'model = dict(',
        "custom_imports = dict(imports=['no_such_module'])",
    ],
)
def test_config_that_cannot_be_read(tmp_path, text):
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(ConfigError, match=r'mine.py cannot be read'):
        load_config(str(tmp_path / 'mine.py'))


@pytest.fixture
def seg_config():
    return str(ROOT / 'configs/seg/fpn_efficientmod_s_ade20k.py')


def test_data_root_reaches_every_data_set(seg_config):
    cfg = load_config(seg_config, dict(data_root='elsewhere/ade'))
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert cfg[loader].dataset.data_root == 'elsewhere/ade'
    coco = load_config(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        dict(data_root='elsewhere/coco/'),
    )
    assert coco.val_evaluator.ann_file == (
        'elsewhere/coco/annotations/instances_val2017.json'
    )


@pytest.mark.parametrize('size', [192, (192, 192)])
def test_crop_size_reaches_every_place(seg_config, size):
    cfg = load_config(seg_config, dict(crop_size=size))
    crop = cfg.train_dataloader.dataset.pipeline[3]
    assert tuple(crop.crop_size) == (192, 192)
    assert tuple(cfg.model.data_preprocessor.size) == (192, 192)


def test_schedule_follows_the_length_of_the_training(seg_config):
    cfg = load_config(seg_config, {'train_cfg.max_iters': 400})
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up['begin'], warm_up['end'], cosine['end']) == (0, 10, 400)
    cfg = load_config(
        seg_config,
        {'train_cfg.max_iters': 400, 'param_scheduler.1.end': 500},
    )
    assert cfg.param_scheduler[0]['end'] == 1001
    assert cfg.param_scheduler[1]['end'] == 500
    coco = load_config(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        {'train_cfg.max_epochs': 24},
    )
    assert coco.param_scheduler[0]['end'] == 500  # the warm-up, by iteration
    assert coco.param_scheduler[1]['milestones'] == [16, 22]
    assert coco.param_scheduler[1]['end'] == 24


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'data_rot': 'x'}, "no 'data_rot'; did you mean data_root"),
        ({'param_scheduler.7.end': 3}, 'does not fit'),
    ],
)
def test_bad_options(seg_config, options, message):
    with pytest.raises(ConfigError, match=message):
        load_config(seg_config, options)


def test_replace_everywhere_keeps_what_only_looks_alike():
    cfg = dict(
        a='data/ade', b=['data/ade/x', 'data/ade20k'], c=((512, 512), 512)
    )
    replace_everywhere(cfg, 'data/ade', 'new')
    assert cfg['a'] == 'new'
    assert cfg['b'] == ['new/x', 'data/ade20k']
    replace_everywhere(cfg, (512, 512), (64, 64))
    assert cfg['c'] == ((64, 64), 512)
