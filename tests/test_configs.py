"""Configs: they are found, and equal their names and recipes."""

import importlib
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import OFFICIAL, ROOT, assert_matches, official_weights
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
)

from mmefficientmod import swap_backbone
from mmefficientmod.config.files import find_config, load_config
from mmefficientmod.config.nodes import (
    ConfigError,
    dataset_dicts,
    replace_everywhere,
)
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.schedule import scale_schedule
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    PHONE_ARCHS,
)
from mmefficientmod.models.backbones.efficientmod_weights import (
    rename_official_keys,
)

CONFIGS = {
    task: sorted((ROOT / 'configs' / task).glob('*efficientmod_*.py'))
    for task in ('seg', 'det', 'cls')
}
RIVALS = {
    task: sorted({*(ROOT / 'configs' / task).glob('*.py')} - {*CONFIGS[task]})
    for task in ('seg', 'det')
}
SEG = CONFIGS['seg']
VARIANTS = tuple(ARCHS)
NAMES = {
    'seg': r'fpn_efficientmod_(\w+?)(?:(?:_reparam)?_ade20k|_finetune)',
    'det': r'(?:mask_rcnn|retinanet)_efficientmod_(\w+?)'
    r'(?:(?:_reparam)?_fpn_1x_coco|_finetune)',
    'cls': r'efficientmod_(\w+?)'
    r'(?:(?:_distill|_100e|_reparam)?_in1k|_finetune_folder)',
}
SCOPES = dict(seg='mmseg', det='mmdet', cls='mmpretrain')


@pytest.mark.parametrize(
    ('task', 'name', 'variants'),
    [
        ('seg', 'fpn_efficientmod_{}_ade20k', VARIANTS),
        ('det', 'mask_rcnn_efficientmod_{}_fpn_1x_coco', VARIANTS),
        ('det', 'retinanet_efficientmod_{}_fpn_1x_coco', ('s', 's_conv')),
        ('cls', 'efficientmod_{}_in1k', (*VARIANTS, *PHONE_ARCHS)),
        ('cls', 'efficientmod_{}_distill_in1k', VARIANTS),
        ('seg', 'fpn_efficientmod_{}_reparam_ade20k', ('s', 's_conv')),
        (
            'det',
            'mask_rcnn_efficientmod_{}_reparam_fpn_1x_coco',
            ('s', 's_conv'),
        ),
        ('cls', 'efficientmod_{}_reparam_in1k', ('s', 's_conv')),
        ('cls', 'efficientmod_{}_100e_in1k', VARIANTS),
        ('cls', 'efficientmod_{}_finetune_folder', ('s',)),
        ('det', 'mask_rcnn_efficientmod_{}_finetune', ('s',)),
        ('seg', 'fpn_efficientmod_{}_finetune', ('s',)),
    ],
)
def test_there_is_a_config_for_each_variant(task, name, variants):
    assert {p.stem for p in CONFIGS[task]} >= {
        name.format(v) for v in variants
    }


@pytest.mark.parametrize(
    ('task', 'path'),
    [(task, p) for task, paths in CONFIGS.items() for p in paths],
    ids=lambda x: getattr(x, 'stem', x),
)
def test_config_builds_the_model_of_its_name(task, path):
    most = 80 if '_finetune' in path.stem else 40
    assert len(path.read_text().splitlines()) < most
    cfg = Config.fromfile(path)
    match = re.fullmatch(NAMES[task], path.stem)
    assert match, path.stem
    assert cfg.default_scope == SCOPES[task]
    assert cfg.model.backbone.type == 'mmefficientmod.EfficientMod'
    assert cfg.model.backbone.arch == match[1]
    reparam = cfg.model.backbone.get('reparam', False)
    assert reparam == ('_reparam' in path.stem)
    assert not {'depth', 'style', 'norm_eval', 'init_cfg'} & {
        *cfg.model.backbone
    }
    importlib.import_module(f'{SCOPES[task]}.models')
    init_default_scope(SCOPES[task])
    model = MODELS.build(cfg.model)
    widths = list(model.backbone.out_channels)
    if task == 'cls':
        assert [cfg.model.head.in_channels] == widths
    else:
        assert cfg.model.neck.in_channels == widths
    gpus, total = 8, dict(seg=32, det=16, cls=2048)[task]
    if '_100e_' in path.stem:
        total = 1024
        assert cfg.train_cfg.max_epochs == 100
    if '_finetune' in path.stem:
        gpus, total = 1, dict(seg=8, det=4, cls=64)[task]
    assert cfg.train_dataloader.batch_size * gpus == total
    assert cfg.auto_scale_lr.base_batch_size == total
    if task == 'seg':
        assert cfg.model.pretrained is None
    if task == 'det':
        kinds = dict(mask_rcnn='MaskRCNN', retinanet='RetinaNet')
        kind = path.stem.partition('_efficientmod')[0]
        assert cfg.model.type == kinds[kind]
        if '_finetune' not in path.stem:
            assert cfg.train_cfg.max_epochs == 12
        assert cfg.train_dataloader.dataset.type == 'CocoDataset'
    if task == 'cls':
        assert cfg.model.head.num_classes == 1000


def without_scope(node):
    """Without the key that MMEngine adds to configs of another package."""
    if isinstance(node, dict):
        return {k: without_scope(v) for k, v in node.items() if k != '_scope_'}
    if isinstance(node, (list, tuple)):
        return [without_scope(v) for v in node]
    return node


@pytest.mark.parametrize(
    'path',
    [p for p in CONFIGS['det'] if '_finetune' not in p.stem],
    ids=lambda p: p.stem,
)
def test_detection_config_changes_only_backbone_and_optimizer(path):
    cfg = Config.fromfile(path)
    stock = load_config(
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
        if path.stem.startswith('mask_rcnn')
        else 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    )
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=2e-4, weight_decay=0.05
    )
    assert 'paramwise_cfg' not in cfg.optim_wrapper
    stock.optim_wrapper.optimizer = cfg.optim_wrapper.optimizer
    stock.model.backbone = cfg.model.backbone
    stock.model.neck.in_channels = cfg.model.neck.in_channels
    stock.custom_imports = cfg.custom_imports
    assert without_scope(cfg.to_dict()) == without_scope(stock.to_dict())


# At least one of each family, and those with published results.
COMPARED = (
    'edgevit_s', 'edgevit_xs', 'efficientformer_l1', 'efficientformerv2_s2',
    'fasternet_t2', 'focalnet_tiny_lrf', 'mbconv_s', 'mobilenetv2_140',
    'mobilevit_s', 'mobilevitv2_100', 'poolformer_s12', 'pvt_v2_b1',
    'repvit_m1_1', 'repvit_m1_5', 'resnet18', 'resnet50', 'van_small',
    'van_tiny',
)  # fmt: skip


@pytest.mark.parametrize('name', COMPARED)
@pytest.mark.parametrize(
    ('task', 'stem'),
    [
        pytest.param('seg', 'fpn_{}_ade20k', id='seg'),
        pytest.param(
            'det',
            'mask_rcnn_{}_fpn_1x_coco',
            id='det',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rival_config_changes_only_the_backbone(task, stem, name, probed_once):
    path = ROOT / f'configs/{task}/{stem.format(name)}.py'
    assert len(path.read_text().splitlines()) < 12
    ours = ROOT / f'configs/{task}/{stem.format("efficientmod_s")}.py'
    swapped = swap_backbone(Config.fromfile(ours), name)
    cfg = Config.fromfile(path)
    assert without_scope(cfg.to_dict()) == without_scope(swapped.to_dict())


@pytest.mark.parametrize('task', RIVALS)
def test_every_rival_config_is_checked(task):
    stem = dict(seg='fpn_{}_ade20k', det='mask_rcnn_{}_fpn_1x_coco')[task]
    assert {p.stem for p in RIVALS[task]} == {*map(stem.format, COMPARED)}


@pytest.mark.parametrize('variant', VARIANTS)
def test_distillation_config_changes_only_the_model(variant):
    plain, cfg = (
        Config.fromfile(ROOT / f'configs/cls/efficientmod_{name}_in1k.py')
        for name in (variant, f'{variant}_distill')
    )
    assert cfg.model.pop('type') == 'mmefficientmod.DistilledClassifier'
    assert cfg.model.pop('distill') == dict(mode='soft', tau=1.0, alpha=0.9)
    assert cfg.model.pop('teacher') == dict(model='timm:regnety_160.deit_in1k')
    del plain.model.type
    assert cfg.to_dict() == plain.to_dict()


@pytest.mark.parametrize(
    'path',
    [p for paths in CONFIGS.values() for p in paths if '_reparam' in p.stem],
    ids=lambda p: p.stem,
)
def test_reparam_config_changes_only_the_branches(path):
    cfg = Config.fromfile(path)
    plain = Config.fromfile(path.with_stem(path.stem.replace('_reparam', '')))
    assert cfg.model.backbone.pop('reparam') is True
    if path.parent.name == 'cls':
        # Statistics of the batch norms in branches are averaged, too.
        assert cfg.custom_hooks[0].pop('update_buffers') is True
    assert cfg.to_dict() == plain.to_dict()


def test_config_registers_the_backbones_by_itself():
    """And FSDP, which is imported later: when a config names it."""
    config = ROOT / 'configs/seg/fpn_efficientmod_s_ade20k.py'
    code = f"""
import sys
from mmengine.config import Config
Config.fromfile({str(config)!r})
assert 'mmefficientmod.models' in sys.modules
assert 'mmefficientmod.engine.fsdp' not in sys.modules
from mmengine.registry import FUNCTIONS, STRATEGIES
strategy = STRATEGIES.get('mmefficientmod.StageFSDPStrategy')
with FUNCTIONS.switch_scope_and_registry(None):
    policy = FUNCTIONS.get('mmefficientmod.wrap_by_stage')
print(strategy.__name__, policy.__name__)
"""
    run = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert run.stdout.split() == ['StageFSDPStrategy', 'wrap_by_stage'], (
        run.stderr
    )


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'configs').glob('[!_]*/*.py')), ids=lambda p: p.stem
)
def test_every_config_imports_the_package(path):
    imports = Config.fromfile(path).custom_imports
    assert 'mmefficientmod' in imports['imports']
    assert imports['allow_failed_imports'] is False


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_fine_tuning_keeps_the_best_checkpoint_of_a_schedule_in_iterations(
    task,
):
    stem = dict(det='mask_rcnn', seg='fpn')[task]
    cfg = Config.fromfile(
        ROOT / f'configs/{task}/{stem}_efficientmod_s_finetune.py'
    )
    length, interval = cfg.train_cfg.max_iters, cfg.train_cfg.val_interval
    assert length == 10 * interval
    saving = cfg.default_hooks.checkpoint
    assert (saving.interval, saving.by_epoch) == (interval, False)
    assert saving.save_best.split('_')[-1] in ('mAP', 'mIoU')
    warm_up, cosine = cfg.param_scheduler
    assert 0 < warm_up.end == cosine.begin < interval
    assert cosine.end == length
    assert not warm_up.by_epoch
    assert not cosine.by_epoch
    assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'


def closed_formula(i, eta_min):
    """mmcv 1.x: cosine annealing times the linear warm-up, by iteration."""
    lr = eta_min + (2e-4 - eta_min) * (1 + math.cos(math.pi * i / 40000)) / 2
    if i < 1000:
        lr *= 1 - (1 - i / 1000) * (1 - 0.1)
    return lr


def learning_rates(cfg, work_dir, steps, by_epoch):
    """The learning rate at each step, with the schedulers of a runner."""
    runner = Runner(
        model=torch.nn.Linear(1, 1),
        work_dir=str(work_dir),
        optim_wrapper=dict(optimizer=cfg.optim_wrapper.optimizer),
        param_scheduler=cfg.param_scheduler,
        train_cfg=cfg.train_cfg,
        train_dataloader=dict(batch_size=1, dataset=[0], sampler=None),
        experiment_name=work_dir.name,
    )
    optim = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper = optim
    schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    assert {s.by_epoch for s in schedulers} == {by_epoch}
    rates = []
    for _ in range(steps):
        rates.append(optim.get_lr()['lr'][0])
        optim.optimizer._opt_called = True
        for scheduler in schedulers:
            scheduler.step()
    return rates


@pytest.mark.parametrize('variant', VARIANTS)
def test_learning_rates_of_segmentation_are_those_of_the_authors(
    variant, tmp_path
):
    cfg = Config.fromfile(
        ROOT / f'configs/seg/fpn_efficientmod_{variant}_ade20k.py'
    )
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=2e-4, weight_decay=1e-4
    )
    assert cfg.train_cfg.max_iters == 40000
    rates = learning_rates(cfg, tmp_path, 40000, by_epoch=False)
    twenty = {0, 1, 2, 10, 100, 500, 900, 998, 999, 1000, 1001, 1500, 4000,
              8000, 12345, 20000, 30000, 36000, 39000, 39999}  # fmt: skip
    assert len(twenty) == 20
    eta_min = 0 if variant == 's_conv' else 2e-10
    for i in twenty:
        expected = closed_formula(i, eta_min)
        assert rates[i] == pytest.approx(expected, rel=2e-5), i


def timm_cosine(epoch):
    """Learning rate of an epoch in timm 0.6.13, the authors' options."""
    if epoch < 5:
        return 1e-6 + epoch * (4e-3 - 1e-6) / 5
    cosine = (1 + math.cos(math.pi * epoch / 300)) / 2
    return 1e-5 + (4e-3 - 1e-5) * cosine


@pytest.mark.parametrize('variant', VARIANTS)
def test_learning_rates_of_classification_are_those_of_the_authors(
    variant, tmp_path
):
    cfg = Config.fromfile(ROOT / f'configs/cls/efficientmod_{variant}_in1k.py')
    assert cfg.train_cfg.max_epochs == 300
    rates = learning_rates(cfg, tmp_path, 300, by_epoch=True)
    expected = [timm_cosine(epoch) for epoch in range(300)]
    assert rates[5:] == pytest.approx(expected[5:], rel=1e-5)
    # Our cosine already starts in the warm-up.
    assert rates[:5] == pytest.approx(expected[:5], rel=1e-3)


@pytest.mark.parametrize('variant', VARIANTS)
def test_weight_decay_is_that_of_timm(variant):
    cfg = Config.fromfile(ROOT / f'configs/cls/efficientmod_{variant}_in1k.py')
    importlib.import_module('mmpretrain.models')
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert optimizer.defaults['betas'] == (0.9, 0.999)
    assert optimizer.defaults['eps'] == 1e-8
    assert optimizer.defaults['lr'] == 4e-3
    decay = {
        id(p): group['weight_decay']
        for group in optimizer.param_groups
        for p in group['params']
    }
    for name, p in model.named_parameters():
        without = p.ndim <= 1 or name.endswith('.bias')
        assert decay.pop(id(p)) == (0 if without else 0.05), name
    assert not decay


@pytest.mark.parametrize('variant', ['s', 's_conv'])
def test_logits_of_the_classifier_are_those_of_the_authors(variant):
    cfg = Config.fromfile(ROOT / f'configs/cls/efficientmod_{variant}_in1k.py')
    importlib.import_module('mmpretrain.models')
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model).double().eval()
    weights = rename_official_keys(official_weights(variant))
    model.load_state_dict(
        {
            f'head.fc.{k[5:]}' if k.startswith('head.') else f'backbone.{k}': w
            for k, w in weights.items()
        }
    )
    vectors = OFFICIAL[variant]
    image = np.random.default_rng(0).standard_normal(vectors['input_shape'])
    features = model.extract_feat(torch.from_numpy(image))
    logits = model.head(features).detach()
    assert_matches(logits, vectors['logits'], 1e-7)


@pytest.mark.parametrize('variant', VARIANTS)
def test_short_recipe_keeps_the_proportions_of_the_long_one(variant):
    plain, cfg = (
        Config.fromfile(ROOT / f'configs/cls/efficientmod_{name}_in1k.py')
        for name in (variant, f'{variant}_100e')
    )
    # By the batch.
    assert cfg.optim_wrapper.optimizer.lr == 2e-3
    # The warm-up has as many steps, and the average covers the same fraction
    # of the training.
    steps = [1_281_167 / c.auto_scale_lr.base_batch_size for c in (plain, cfg)]
    warm_up, cosine = cfg.param_scheduler
    assert warm_up.end * steps[1] == pytest.approx(6 * steps[0], rel=0.01)
    assert cosine.end == 100
    shares = [
        1 / c.custom_hooks[0].momentum / c.train_cfg.max_epochs / n
        for c, n in zip((plain, cfg), steps, strict=True)
    ]
    assert shares[0] == pytest.approx(shares[1], rel=0.01)
    pipelines = [c.train_dataloader.dataset.pipeline for c in (plain, cfg)]
    assert pipelines[0][3].magnitude_level == 9
    pipelines[0][3].magnitude_level = 6
    del pipelines[0][4]
    plain_steps, steps = map(without_scope, pipelines)
    assert plain_steps == steps
    assert cfg.model.train_cfg.augments[0] == dict(type='Mixup', alpha=0.1)
    assert cfg.model.head == plain.model.head
    assert cfg.model.backbone == plain.model.backbone


def test_augmentation_is_that_of_the_authors():
    cfg = Config.fromfile(ROOT / 'configs/cls/efficientmod_s_in1k.py')
    crop, flip, augment, erase = cfg.train_dataloader.dataset.pipeline[1:-1]
    assert (crop.scale, crop.interpolation) == (224, 'bicubic')
    assert (flip.prob, flip.direction) == (0.5, 'horizontal')
    assert augment.policies == 'timm_increasing'
    assert (augment.magnitude_level, augment.magnitude_std) == (9, 0.5)
    assert (augment.num_policies, augment.total_level) == (2, 10)
    assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
    assert (erase.min_area_ratio, erase.max_area_ratio) == (0.02, 1 / 3)
    normal = cfg.data_preprocessor
    assert normal.to_rgb
    for values, fill, timm in (
        (normal.mean, erase.fill_color, IMAGENET_DEFAULT_MEAN),
        (normal.std, erase.fill_std, IMAGENET_DEFAULT_STD),
    ):
        assert values == fill[::-1] == pytest.approx([255 * v for v in timm])
    loss = cfg.model.head.loss
    assert (loss.type, loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    assert cfg.model.train_cfg.augments == [
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0),
    ]
    (ema,) = cfg.custom_hooks
    assert (ema.type, ema.momentum) == ('EMAHook', 2e-4)
    resize, crop = cfg.val_dataloader.dataset.pipeline[1:3]
    assert (resize.scale, resize.interpolation) == (256, 'bicubic')
    assert crop.crop_size == 224


@pytest.mark.parametrize('variant', VARIANTS)
def test_classification_config_agrees_with_the_table_in_docs(variant):
    """Our column in the table of docs/classification_recipe.md."""
    cfg = Config.fromfile(ROOT / f'configs/cls/efficientmod_{variant}_in1k.py')
    backbone = MODELS.build(cfg.model.backbone)
    rates = {
        m.drop_prob for m in backbone.modules() if hasattr(m, 'drop_prob')
    }
    most = 0.02 if variant in ('s', 's_conv') else 0
    assert max(rates, default=0) == pytest.approx(most)
    assert not [m for m in backbone.modules() if is_norm_or_dropout(m)]
    wrapper = cfg.optim_wrapper
    assert not {'clip_grad', 'accumulative_counts', 'type'} & {*wrapper}
    assert (wrapper.optimizer.type, wrapper.optimizer.lr) == ('AdamW', 4e-3)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (300, 1)
    loader = cfg.train_dataloader
    assert (loader.sampler.type, loader.sampler.shuffle) == (
        'DefaultSampler',
        True,
    )
    assert (loader.batch_size, loader.num_workers) == (256, 5)
    assert not {'drop_last', 'collate_fn'} & {*loader}
    assert cfg.default_hooks.checkpoint.interval == 1
    assert 'max_keep_ckpts' not in cfg.default_hooks.checkpoint
    assert not cfg.env_cfg.cudnn_benchmark
    assert not {'compile', 'sync_bn'} & {*cfg}
    assert cfg.randomness.seed is None
    assert cfg.load_from is None


def is_norm_or_dropout(module):
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    return isinstance(module, batch_norm) or (
        isinstance(module, torch.nn.Dropout) and module.p > 0
    )


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
        'mmdet::regnet/mask-rcnn_regnetx-3.2GF_fpn_1x_coco',
        'mmpretrain::resnet/resnet18_8xb32_in1k.py',
        'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py',
        'configs/seg/fpn_efficientmod_s_ade20k.py',
    ],
)
def test_config_is_found_by_path_or_package(name, monkeypatch):
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
        ('mmdet::', 'does not exist$'),
        ('mmdet::/nowhere.py', 'does not exist$'),
    ],
)
def test_missing_config_is_refused_with_a_hint(name, message, monkeypatch):
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
def test_unreadable_config_is_refused(tmp_path, text):
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(ConfigError, match=r'mine.py cannot be read'):
        load_config(str(tmp_path / 'mine.py'))


@pytest.fixture
def seg_config():
    return str(ROOT / 'configs/seg/fpn_efficientmod_s_ade20k.py')


LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def roots(cfg):
    return {d.data_root for x in LOADERS for d in dataset_dicts(cfg, x)}


@pytest.mark.parametrize(
    'name',
    [
        # With a top-level data_root.
        'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py',
        'mmefficientmod::cls/efficientmod_s_finetune_folder.py',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
        # Without one.
        'mmefficientmod::cls/efficientmod_s_in1k.py',
        'mmefficientmod::cls/efficientmod_s_distill_in1k.py',
        'mmpretrain::resnet/resnet18_8xb32_in1k.py',
        'mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py',
        'mmpretrain::mobilenet_v3/mobilenet-v3-small_8xb16_cifar10.py',
        'mmpretrain::csra/resnet101-csra_1xb16_voc07-448px.py',
        'mmpretrain::arcface/resnet50-arcface_8xb32_inshop.py',
        # Whose data sets have no root, but a path.
        'mmpretrain::lenet/lenet5_mnist.py',
    ],
)
def test_data_root_reaches_every_data_set(name):
    before = load_config(name)
    cfg = load_config(name, dict(data_root='elsewhere/mine'))
    assert roots(cfg) == {'elsewhere/mine'}
    old = [
        d.get('data_root') for x in LOADERS for d in dataset_dicts(before, x)
    ]
    for root in {*old} - {None}:
        assert root.rstrip('/') not in str(cfg.to_dict())


def test_data_root_reaches_the_evaluators():
    cfg = load_config(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        dict(data_root='elsewhere/coco/'),
    )
    assert cfg.val_evaluator.ann_file == (
        'elsewhere/coco/annotations/instances_val2017.json'
    )


def data_config(*datasets, **others):
    """A config that trains on some data sets and tests on the first."""
    return Config(
        dict(
            train_dataloader=dict(
                dataset=dict(type='ConcatDataset', datasets=list(datasets))
            ),
            val_dataloader=dict(dataset=dict(datasets[0])),
            **others,
        )
    )


def test_data_root_moves_folders_inside_the_outer_root():
    cfg = data_config(
        dict(data_root='data/all/', ann_file='a.json'),
        dict(data_root='data/all/more', ann_file='b.json'),
        val_evaluator=[dict(ann_file='data/all/a.json')],
    )
    apply_options(cfg, dict(data_root='mine'))
    first, second = cfg.train_dataloader.dataset.datasets
    assert (first.data_root, second.data_root) == ('mine', 'mine/more')
    assert cfg.val_dataloader.dataset.data_root == 'mine'
    assert cfg.val_evaluator[0].ann_file == 'mine/a.json'


def test_data_root_is_prepended_where_paths_had_no_root():
    cfg = data_config(
        dict(ann_file='a/train.json', data_prefix=dict(img='images')),
        val_evaluator=dict(ann_file='a/train.json'),
    )
    apply_options(cfg, dict(data_root='mine/'))
    assert roots(cfg) == {'mine/'}
    assert cfg.val_evaluator.ann_file == 'mine/a/train.json'


def test_data_root_replaces_that_in_paths_of_data_sets_without_a_root():
    cfg = data_config(
        dict(ann_file='data/a.json', data_prefix=dict(img='data/images')),
        data_root='data/',
    )
    apply_options(cfg, dict(data_root='mine'))
    (dataset,) = cfg.train_dataloader.dataset.datasets
    assert dataset == dict(
        ann_file='mine/a.json', data_prefix=dict(img='mine/images')
    )


def test_old_data_root_is_ignored_if_no_data_set_has_a_path_there():
    cfg = data_config(dict(data_root='data/x'), data_root='unused')
    apply_options(cfg, dict(data_root='mine'))
    assert roots(cfg) == {'mine'}


def test_root_of_one_data_set_wins_over_data_root():
    loader = 'val_dataloader.dataset.data_root'
    cfg = data_config(dict(data_root='data/x'))
    apply_options(cfg, {'data_root': 'mine', loader: 'other'})
    assert roots(cfg) == {'mine', 'other'}


@pytest.mark.parametrize(
    ('cfg', 'root', 'message'),
    [
        (
            data_config(dict(data_root='a'), dict(data_root='b/c')),
            'mine',
            r'several roots, a, b/c; set each of them, as in train_dataload',
        ),
        (
            data_config(dict(data_root='a'), dict(ann_file='b.json')),
            'mine',
            'several roots, the working directory, a; set',
        ),
        (
            data_config(dict(data_root='/a'), dict(ann_file='b.json')),
            'mine',
            'several roots, the working directory, /a; set',
        ),
        (data_config(dict(type='Fake')), 'mine', 'no data set with files'),
        (Config(dict(model={})), 'mine', 'no data set with files'),
        (data_config(dict(data_root='a')), 2024, r'data_root=2024 is not .*'
         r'data_root=\./2024'),
        (data_config(dict(data_root='a')), '', 'is not the path'),
        (data_config(dict(data_root='a')), ['b', 'c'], 'is not the path'),
    ],
)  # fmt: skip
def test_data_root_that_cannot_be_set_is_refused(cfg, root, message):
    with pytest.raises(ConfigError, match=message) as error:
        apply_options(cfg, dict(data_root=root))
    assert '\n' not in str(error.value)


# The command line gives two sides as a list.
@pytest.mark.parametrize('size', [192, (192, 192), [192, 192]])
def test_crop_size_is_replaced_everywhere(seg_config, size):
    cfg = load_config(seg_config, dict(crop_size=size))
    crop = cfg.train_dataloader.dataset.pipeline[3]
    assert cfg.crop_size == (192, 192)
    assert crop.crop_size == (192, 192)  # RandomCrop takes no list
    assert tuple(cfg.model.data_preprocessor.size) == (192, 192)


def test_schedule_is_scaled_with_the_length_of_the_training(seg_config):
    cfg = load_config(seg_config, {'train_cfg.max_iters': 400})
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up['begin'], warm_up['end'], cosine['end']) == (0, 10, 400)
    cfg = load_config(
        seg_config,
        {'train_cfg.max_iters': 400, 'param_scheduler.1.end': 500},
    )
    assert cfg.param_scheduler[0]['end'] == 1001
    assert cfg.param_scheduler[1]['end'] == 500
    cfg.param_scheduler_of_mine = None  # is not the schedule
    apply_options(
        cfg, {'train_cfg.max_iters': 800, 'param_scheduler_of_mine': 1}
    )
    assert cfg.param_scheduler[1]['end'] == 1000
    coco = load_config(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        {'train_cfg.max_epochs': 24},
    )
    assert coco.param_scheduler[0]['end'] == 500  # the warm-up, by iteration
    assert coco.param_scheduler[1]['milestones'] == [16, 22]
    assert coco.param_scheduler[1]['end'] == 24


def test_each_part_of_a_schedule_keeps_two_steps():
    """A warm-up of one step would never raise the learning rate."""
    schedulers = [
        dict(type='LinearLR', by_epoch=False, begin=0, end=500),
        dict(type='MultiStepLR', by_epoch=True, end=12, milestones=[8, 11]),
        dict(type='StepLR', step_size=6),
    ]
    cfg = Config(dict(param_scheduler=schedulers))
    scale_schedule(cfg, epochs=1 / 3, iters=1e-3)
    assert cfg.param_scheduler[0]['end'] == 2
    assert cfg.param_scheduler[1]['end'] == 4
    assert cfg.param_scheduler[1]['milestones'] == [3, 4]
    assert cfg.param_scheduler[2]['step_size'] == 2
    scale_schedule(cfg, iters=100)
    assert cfg.param_scheduler[0]['end'] == 200
    assert cfg.param_scheduler[1]['end'] == 4


def test_max_iters_converts_a_config_that_counts_epochs():
    cfg = load_config(
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        {'train_cfg.max_iters': 300, 'param_scheduler.0.end': 30},
    )
    assert cfg.train_cfg == dict(
        type='IterBasedTrainLoop', max_iters=300, val_interval=300
    )
    warm_up, steps = cfg.param_scheduler
    assert warm_up['end'] == 30
    assert (steps['end'], steps['milestones']) == (300, [200, 275])
    assert not warm_up['by_epoch']
    assert not steps['by_epoch']
    assert not cfg.log_processor.by_epoch
    assert not cfg.default_hooks.checkpoint.by_epoch
    swin = load_config(
        'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
        {'train_cfg.max_iters': 600},
    )
    assert [s['by_epoch'] for s in swin.param_scheduler] == [False] * 2
    assert swin.param_scheduler[0]['end'] == 40
    assert swin.param_scheduler[1]['begin'] == 40


def test_scale_is_set_in_every_pipeline():
    cfg = load_config(
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        dict(scale=[320, 240]),
    )
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        (resize,) = (
            t for t in cfg[loader].dataset.pipeline if t.type == 'Resize'
        )
        assert resize.scale == (320, 240)
    assert cfg.test_pipeline[1].scale == (320, 240)
    assert 'scale' not in cfg


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'data_rot': 'x'}, "no 'data_rot'; did you mean data_root"),
        ({'param_scheduler.7.end': 3}, 'has 2 entries'),
        ({'scale': 320}, 'scale=320 must be two sides'),
    ],
)
def test_bad_option_is_refused_with_the_reason(seg_config, options, message):
    with pytest.raises(ConfigError, match=message):
        load_config(seg_config, options)


def test_replace_everywhere_keeps_names_with_the_same_beginning():
    cfg = dict(
        a='data/ade', b=['data/ade/x', 'data/ade20k'], c=((512, 512), 512)
    )
    replace_everywhere(cfg, 'data/ade', 'new')
    assert cfg['a'] == 'new'
    assert cfg['b'] == ['new/x', 'data/ade20k']
    replace_everywhere(cfg, (512, 512), (64, 64))
    assert cfg['c'] == ((64, 64), 512)
