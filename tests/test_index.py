"""The model index: its entries, figures, results and weights."""

import copy
import functools
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from urllib.parse import urlsplit

import mmpretrain
import pytest
import yaml
from helpers import ROOT
from mmengine.config import Config
from modelindex.load_model_index import load
from timm.models import get_pretrained_cfg

from mmefficientmod import swap_backbone
from mmefficientmod.analysis.complexity import measure
from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import build_model, input_size
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    PHONE_ARCHS,
)

CONFIGS = sorted(
    path
    for path in (ROOT / 'configs').glob('*/*.py')
    if path.parent.name != '_base_'
)
OWN = [p for p in CONFIGS if 'efficientmod_' in p.stem]
RIVALS = [p for p in CONFIGS if p not in OWN]
PAGE = 'https://github.com/ma-xu/EfficientMod'
# Metrics of the published results, by the folder of the config: for each task
# and data set, their names.
METRICS = {
    'cls': {('Image Classification', 'ImageNet-1k'): ['Top 1 Accuracy']},
    'det': {
        ('Object Detection', 'COCO'): ['box AP'],
        ('Instance Segmentation', 'COCO'): ['mask AP'],
    },
    'seg': {('Semantic Segmentation', 'ADE20K'): ['mIoU']},
}
# Configs of models that nobody has trained.
UNTRAINED = re.compile('reparam|100e|finetune|retinanet|mbconv')
# Table 7 of the paper: millions of parameters of Mask R-CNN and Semantic FPN.
# Its ResNet-18 and PVT-Tiny are those of the toolboxes, see below.
TABLE_7 = {
    'poolformer_s12': (31.6, 15.7),
    'efficientformer_l1': (31.5, 15.6),
    'pvt_v2_b1': (33.7, 17.8),
    'efficientformerv2_s2': (32.2, 16.3),
    'efficientmod_s_conv': (32.6, 16.7),
    'efficientmod_s': (32.6, 16.7),
}


@functools.cache
def metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert list(index) == ['Import']
    return {
        name: yaml.safe_load((ROOT / name).read_text())
        for name in index['Import']
    }


@functools.cache
def entries():
    return {
        model['Name']: model
        for content in metafiles().values()
        for model in content['Models']
    }


def test_index_has_one_entry_for_each_config():
    names = [
        model['Name']
        for content in metafiles().values()
        for model in content['Models']
    ]
    assert sorted(names) == sorted(path.stem for path in CONFIGS)
    assert {path.parent for path in CONFIGS} == {
        (ROOT / name).parent for name in metafiles()
    }
    for name, model in entries().items():
        path = ROOT / model['Config']
        assert path in CONFIGS
        assert path.stem == name


def test_every_entry_is_in_a_collection_of_its_file():
    names = []
    for file, content in metafiles().items():
        collections = [c['Name'] for c in content['Collections']]
        names += collections
        for model in content['Models']:
            assert model['In Collection'] in collections
            assert model['Config'].startswith(f'{Path(file).parent}/')
    assert len(set(names)) == len(names)


def test_results_say_who_published_them():
    """The model index is the only place of these figures."""
    assert any('Results' in model for model in entries().values())
    for name, model in entries().items():
        if 'Results' not in model:
            assert 'Results Published By' not in model
            assert 'Results Recipe' not in model
            continue
        assert not UNTRAINED.search(name)
        assert 'not reproduced' in model['Results Published By']
        # Ours were trained by the recipe of the config.
        assert ('Results Recipe' in model) == ('efficientmod_' not in name)
        metrics = {
            (r['Task'], r['Dataset']): list(r['Metrics'])
            for r in model['Results']
        }
        assert metrics == METRICS[Path(model['Config']).parent.name]


def test_results_are_plausible():
    for name, model in entries().items():
        metrics = {
            metric: value
            for result in model.get('Results', [])
            for metric, value in result['Metrics'].items()
        }
        for value in metrics.values():
            assert 10 < value < 90, name
            assert round(value, 1) == value, name  # as papers print them
        if 'mask AP' in metrics:
            assert metrics['mask AP'] < metrics['box AP'], name
        if '_distill_' in name:
            (plain,) = entries()[name.replace('_distill', '')]['Results']
            assert (
                metrics['Top 1 Accuracy']
                > (plain['Metrics']['Top 1 Accuracy'])
            )


def test_weights_name_the_authors_page():
    # One file for each classifier: the distilled one, but for s_conv. There is
    # none of the models for phones.
    without = {
        f'efficientmod_{arch}_in1k'
        for arch in ('xxs', 'xs', 's', 's_conv_distill', *PHONE_ARCHS)
    }
    for path in OWN:
        name, model = path.stem, entries()[path.stem]
        assert 'Weights' not in model
        has_weights = 'Results' in model and name not in without
        assert ('Original Weights' in model) == has_weights
        if has_weights:
            assert model['Original Weights']['Page'] == PAGE
        if has_weights and name.endswith('_in1k'):
            how = 'with' if '_distill_' in name else 'without'
            note = model['Original Weights']['Note']
            assert note == f'trained {how} distillation'
    for file in metafiles():
        urls = set(re.findall(r'https?://\S+', (ROOT / file).read_text()))
        if not file.endswith('rivals.yml'):
            assert urls == {PAGE, 'https://arxiv.org/abs/2403.19963'}


@pytest.fixture(scope='module')
def files_of_mmpretrain():
    """Paths of MMPretrain's checkpoints.

    Without the host, which differs between the two stacks.
    """
    folder = Path(mmpretrain.__file__).parent / '.mim/configs'
    return {
        urlsplit(model['Weights']).path
        for kind in ('poolformer', 'van')
        for model in yaml.safe_load(
            (folder / kind / 'metafile.yml').read_text()
        )['Models']
    }


@pytest.mark.parametrize('path', RIVALS, ids=lambda p: p.stem)
def test_pretrained_weights_of_rivals_exist(path, files_of_mmpretrain):
    model = entries()[path.stem]
    assert not {'Weights', 'Original Weights'} & {*model}
    backbone = Config.fromfile(path).model.backbone
    weights = model.get('Backbone Weights')
    if backbone.type == 'mmefficientmod.TimmPyramid':
        kind, _, tag = weights.partition(':')
        assert kind == 'timm'
        assert get_pretrained_cfg(f'{backbone.model_name}.{tag}').has_weights
    elif backbone.type.startswith('mmpretrain.'):
        assert urlsplit(weights).path in files_of_mmpretrain
        assert f'-{backbone.arch}_' in weights
    else:
        assert weights is None  # nobody published weights of our own code


def test_modelindex_library_parses_it():
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert len(index.models) == len(CONFIGS)
    assert index.check(silent=True) == []
    for model in index.models:
        entry = entries()[model.name]
        full = model.full_model  # with what its collection adds
        paper = full.data['Paper']['URL']
        if 'efficientmod_' in model.name or 'mbconv_' in model.name:
            assert paper == 'https://arxiv.org/abs/2403.19963'
        else:
            assert re.fullmatch(r'https://arxiv\.org/abs/\d{4}\.\d{5}', paper)
        assert full.metadata.training_data
        assert full.metadata.flops == entry['Metadata']['FLOPs']
        assert full.metadata.parameters == entry['Metadata']['Parameters']
        results = [r.data for r in full.data.get('Results', [])]
        assert results == entry.get('Results', [])


def test_mmpretrain_builds_classifiers_by_name(monkeypatch):
    from mmpretrain.apis import model as api

    hub = api.ModelHub
    hub._register_mmpretrain_models()
    known = copy.copy(hub._models_dict)
    monkeypatch.setattr(hub, '_models_dict', known)
    hub.register_model_index(ROOT / 'model-index.yml', ROOT)
    names = api.list_models('efficientmod_*_in1k')
    assert names == sorted(
        f'efficientmod_{arch}{kind}_in1k'
        for arch in (*ARCHS, *PHONE_ARCHS)
        for kind in ('', '_distill', '_reparam', '_100e')
        if (kind != '_reparam' or arch in ('s', 's_conv'))
        and (not kind or arch in ARCHS)
    )
    for kind in ('', '_distill'):
        model = api.get_model(f'efficientmod_xxs{kind}_in1k')
        assert model.backbone.out_channels == (256,)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_metadata_agrees_with_the_config(path):
    cfg = Config.fromfile(path)
    data = entries()[path.stem]['Metadata']
    height, width = input_size(cfg)
    assert data['Input Size'] == f'{height}x{width}'
    assert data['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    by_epoch = 'max_epochs' in cfg.train_cfg
    assert ('Epochs' in data, 'Iterations' in data) == (by_epoch, not by_epoch)
    if by_epoch:
        assert data['Epochs'] == cfg.train_cfg.max_epochs
    else:
        assert data['Iterations'] == cfg.train_cfg.max_iters


# For the other configs, parameters are counted together with the FLOPs.
COUNTED = [p for p in RIVALS if p.parent.name == 'seg'] + [
    p for p in CONFIGS if p.parent.name == 'det'
]


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(
            path,
            id=path.stem,
            marks=()
            if path in OWN or any(name in path.stem for name in TABLE_7)
            else pytest.mark.slow,
        )
        for path in COUNTED
    ],
)
def test_parameters_are_those_of_the_model(path):
    model = build_model(Config.fromfile(path))
    data = entries()[path.stem]['Metadata']
    assert data['Parameters'] == sum(p.numel() for p in model.parameters())


# Detectors at 800 x 1280 take long, and the rivals are many. The others train
# the plain model in another way, and it is counted already.
OTHER_TRAINING = re.compile('_(100e|distill|finetune|reparam)(_|$)')
SLOW = [p for p in CONFIGS if OTHER_TRAINING.search(p.stem)]


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.slow] if path in COUNTED + SLOW else [],
        )
        for path in CONFIGS
    ],
)
def test_parameters_and_flops_are_those_that_the_tool_counts(path):
    cfg = Config.fromfile(path)
    data = entries()[path.stem]['Metadata']
    result = measure(build_model(cfg), input_size(cfg))
    assert (result.params, result.flops) == (data['Parameters'], data['FLOPs'])


def printed(params):
    """Millions as the paper prints them: rounded to two decimals, then one.

    Its counter, mmcv's ``get_model_complexity_info``, counts the parameters
    that are trained and prints two decimals; the table has one.
    """
    for digits in '1e-2', '1e-1':
        params = params.quantize(Decimal(digits), ROUND_HALF_UP)
    return float(params)


@pytest.mark.parametrize('name', TABLE_7)
def test_parameters_equal_table_7_of_the_paper(name):
    stems = f'mask_rcnn_{name}_fpn_1x_coco', f'fpn_{name}_ade20k'
    found = tuple(
        printed(Decimal(entries()[stem]['Metadata']['Parameters']) / 10**6)
        for stem in stems
    )
    assert found == TABLE_7[name]


def count(cfg):
    """All parameters of a model, and those that are trained."""
    parameters = list(build_model(cfg).parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trained


def test_resnets_of_table_7_are_stock_resnets():
    """Two rows of table 7 are stock ResNets, which differ from our configs.

    The detector freezes the stem and the first stage; the segmentor has three
    convolutions in place of the first.
    """
    channels = [64, 128, 256, 512]
    cfg = load_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.neck.in_channels = channels
    total, trained = count(cfg)
    assert printed(Decimal(trained) / 10**6) == 31.2
    data = entries()['mask_rcnn_resnet18_fpn_1x_coco']['Metadata']
    assert data['Parameters'] == total  # stem and first stage are not frozen

    cfg = load_config(str(ROOT / 'configs/seg/fpn_resnet18_ade20k.py'))
    cfg.model.backbone = dict(
        type='ResNetV1c', depth=18, norm_cfg=dict(type='BN')
    )
    total, trained = count(cfg)
    assert printed(Decimal(trained) / 10**6) == 15.5
    data = entries()['fpn_resnet18_ade20k']['Metadata']
    # Three convolutions of 3 x 3 in the place of one of 7 x 7.
    deep = 9 * (3 * 32 + 32 * 32 + 32 * 64) + 2 * (32 + 32 + 64)
    assert total - data['Parameters'] == deep - (49 * 3 * 64 + 2 * 64)


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        ('det/mask_rcnn_efficientmod_s_fpn_1x_coco.py', 32.9),
        ('seg/fpn_efficientmod_s_ade20k.py', 17.0),
    ],
)
def test_pvt_tiny_has_the_parameters_of_table_7(config, expected):
    """A stock backbone that has no name in BACKBONES."""
    pvt = dict(type='mmdet.PyramidVisionTransformer', num_layers=[2, 2, 2, 2])
    cfg = swap_backbone(load_config(str(ROOT / 'configs' / config)), pvt)
    assert printed(Decimal(count(cfg)[1]) / 10**6) == expected
