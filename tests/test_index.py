"""The model index: it names what is there, with the figures that are true."""

import copy
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from urllib.parse import urlsplit

import mmpretrain
import pytest
import yaml
from mmengine.config import Config
from modelindex.load_model_index import load
from timm.models import get_pretrained_cfg

from mmefficientmod import swap_backbone
from mmefficientmod.analysis.complexity import measure
from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import build_model, input_size

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path
    for path in (ROOT / 'configs').glob('*/*.py')
    if path.parent.name != '_base_'
)
OWN = [p for p in CONFIGS if 'efficientmod_' in p.stem]
RIVALS = [p for p in CONFIGS if p not in OWN]
PAGE = 'https://github.com/ma-xu/EfficientMod'
# As the paper prints them: ImageNet top-1 without and with distillation, box
# and mask AP of Mask R-CNN 1x, mIoU of Semantic FPN.
IMAGENET = dict(
    xxs=(76.0, 77.1), xs=(78.3, 79.4), s=(81.0, 81.9), s_conv=(80.5, 81.5)
)  # fmt: skip
COCO = dict(s=(43.6, 40.3), s_conv=(42.1, 38.5))
ADE20K = dict(s=46.0, s_conv=43.5)
# Table 7 of the paper, and who else published results of the same kind.
RIVALS_COCO = {
    'resnet18': (34.0, 31.2),
    'poolformer_s12': (37.3, 34.6),
    'efficientformer_l1': (37.9, 35.4),
    'pvt_v2_b1': (41.8, 38.8),
    'efficientformerv2_s2': (43.4, 39.5),
    'repvit_m1_1': (39.8, 37.2),
    'repvit_m1_5': (41.6, 38.6),
}
RIVALS_ADE20K = {
    'resnet18': 32.9,
    'poolformer_s12': 37.2,
    'efficientformer_l1': 38.9,
    'pvt_v2_b1': 42.5,
    'efficientformerv2_s2': 42.4,
    'repvit_m1_1': 40.6,
    'repvit_m1_5': 43.6,
    'van_tiny': 38.5,
    'van_small': 42.9,
    'edgevit_xs': 41.4,
}
# The rest of that table: millions of parameters of Mask R-CNN and Semantic
# FPN. Their ResNet-18 and PVT-Tiny are those of the toolboxes, see below.
TABLE_7 = {
    'poolformer_s12': (31.6, 15.7),
    'efficientformer_l1': (31.5, 15.6),
    'pvt_v2_b1': (33.7, 17.8),
    'efficientformerv2_s2': (32.2, 16.3),
    'efficientmod_s_conv': (32.6, 16.7),
    'efficientmod_s': (32.6, 16.7),
}


def published():
    """For each config with published results, (task, data set) to metrics."""
    table = {}
    for arch, (plain, distilled) in IMAGENET.items():
        for name, top1 in ('', plain), ('_distill', distilled):
            table[f'efficientmod_{arch}{name}_in1k'] = {
                ('Image Classification', 'ImageNet-1k'): {
                    'Top 1 Accuracy': top1
                }
            }
    coco = {f'efficientmod_{arch}': ap for arch, ap in COCO.items()}
    for name, (box, mask) in {**coco, **RIVALS_COCO}.items():
        table[f'mask_rcnn_{name}_fpn_1x_coco'] = {
            ('Object Detection', 'COCO'): {'box AP': box},
            ('Instance Segmentation', 'COCO'): {'mask AP': mask},
        }
    ade20k = {f'efficientmod_{arch}': miou for arch, miou in ADE20K.items()}
    for name, miou in {**ade20k, **RIVALS_ADE20K}.items():
        table[f'fpn_{name}_ade20k'] = {
            ('Semantic Segmentation', 'ADE20K'): {'mIoU': miou}
        }
    return table


def metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert list(index) == ['Import']
    return {
        name: yaml.safe_load((ROOT / name).read_text())
        for name in index['Import']
    }


def entries():
    return {
        model['Name']: model
        for content in metafiles().values()
        for model in content['Models']
    }


def test_index_and_files_agree():
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


def test_results_are_the_published_ones_and_say_so():
    found = {}
    for name, model in entries().items():
        if 'Results' in model:
            assert 'not reproduced' in model['Results Published By']
            found[name] = {
                (r['Task'], r['Dataset']): r['Metrics']
                for r in model['Results']
            }
        else:
            assert 'Results Published By' not in model
        # Ours were trained by the recipe of the config.
        others = 'Results' in model and 'efficientmod_' not in name
        assert ('Results Recipe' in model) == others
    assert found == published()


def test_weights_are_where_the_authors_keep_them():
    # A file for each classifier: distilled, but for s_conv.
    without = {
        f'efficientmod_{arch}_in1k'
        for arch in ('xxs', 'xs', 's', 's_conv_distill')
    }
    for path in OWN:
        name, model = path.stem, entries()[path.stem]
        assert 'Weights' not in model
        has_weights = name in published() and name not in without
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
    """Paths of its checkpoints, which its two forks keep on other hosts."""
    folder = Path(mmpretrain.__file__).parent / '.mim/configs'
    return {
        urlsplit(model['Weights']).path
        for kind in ('poolformer', 'van')
        for model in yaml.safe_load(
            (folder / kind / 'metafile.yml').read_text()
        )['Models']
    }


@pytest.mark.parametrize('path', RIVALS, ids=lambda p: p.stem)
def test_weights_to_start_from_are_there(path, files_of_mmpretrain):
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
        assert weights is None  # of ours, nobody has any


def test_readers_of_the_format_parse_it():
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


def test_mmpretrain_gets_a_classifier_by_its_name(monkeypatch):
    from mmpretrain.apis import model as api

    hub = api.ModelHub
    hub._register_mmpretrain_models()
    known = copy.copy(hub._models_dict)
    monkeypatch.setattr(hub, '_models_dict', known)
    hub.register_model_index(ROOT / 'model-index.yml', ROOT)
    names = api.list_models('efficientmod_*_in1k')
    assert names == sorted(
        f'efficientmod_{arch}{kind}_in1k'
        for arch in IMAGENET
        for kind in ('', '_distill', '_reparam', '_100e')
        if kind != '_reparam' or arch in ('s', 's_conv')
    )
    for kind in ('', '_distill'):
        model = api.get_model(f'efficientmod_xxs{kind}_in1k')
        assert model.backbone.out_channels == (256,)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_metadata_is_what_the_config_says(path):
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


# Of the others, the tool counts them together with the FLOPs.
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
def test_parameters(path):
    model = build_model(Config.fromfile(path))
    data = entries()[path.stem]['Metadata']
    assert data['Parameters'] == sum(p.numel() for p in model.parameters())


# At 800 x 1280, detectors take long, and the rivals are many; those that train
# the plain classifier in another way are no other model.
SLOW = [p for p in CONFIGS if re.search('_(100e|distill|finetune)_', p.stem)]


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
def test_figures_are_what_the_tool_counts(path):
    cfg = Config.fromfile(path)
    data = entries()[path.stem]['Metadata']
    result = measure(build_model(cfg), input_size(cfg))
    assert (result.params, result.flops) == (data['Parameters'], data['FLOPs'])


def printed(params):
    """Millions, as the paper prints them.

    The counter of the OpenMMLab of its time, mmcv's
    ``get_model_complexity_info``, counts what is trained and prints two
    decimals; the table has one.
    """
    for digits in '1e-2', '1e-1':
        params = params.quantize(Decimal(digits), ROUND_HALF_UP)
    return float(params)


@pytest.mark.parametrize('name', TABLE_7)
def test_parameters_are_those_of_table_7(name):
    stems = f'mask_rcnn_{name}_fpn_1x_coco', f'fpn_{name}_ade20k'
    found = tuple(
        printed(Decimal(entries()[stem]['Metadata']['Parameters']) / 10**6)
        for stem in stems
    )
    assert found == TABLE_7[name]


def count(cfg):
    """Parameters in all, and those that are trained."""
    parameters = list(build_model(cfg).parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trained


def test_table_7_has_stock_resnets():
    """Two rows that ours cannot equal, and by what they differ."""
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
def test_pvt_tiny_of_table_7(config, expected):
    """A stock backbone without a name of ours."""
    pvt = dict(type='mmdet.PyramidVisionTransformer', num_layers=[2, 2, 2, 2])
    cfg = swap_backbone(load_config(str(ROOT / 'configs' / config)), pvt)
    assert printed(Decimal(count(cfg)[1]) / 10**6) == expected
