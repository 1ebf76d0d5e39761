"""The model index: it names what is there, with the figures that are true."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from modelindex.load_model_index import load

from mmefficientmod import cli
from mmefficientmod.complexity import input_size, measure

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path
    for path in (ROOT / 'configs').glob('*/*.py')
    if path.parent.name != '_base_'
)
PAGE = 'https://github.com/ma-xu/EfficientMod'
# As the paper prints them: ImageNet top-1 without and with distillation, box
# and mask AP of Mask R-CNN 1x, mIoU of Semantic FPN.
IMAGENET = dict(
    xxs=(76.0, 77.1), xs=(78.3, 79.4), s=(81.0, 81.9), s_conv=(80.5, 81.5)
)  # fmt: skip
COCO = dict(s=(43.6, 40.3), s_conv=(42.1, 38.5))
ADE20K = dict(s=46.0, s_conv=43.5)


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
    for arch, (box, mask) in COCO.items():
        table[f'mask_rcnn_efficientmod_{arch}_fpn_1x_coco'] = {
            ('Object Detection', 'COCO'): {'box AP': box},
            ('Instance Segmentation', 'COCO'): {'mask AP': mask},
        }
    for arch, miou in ADE20K.items():
        table[f'fpn_efficientmod_{arch}_ade20k'] = {
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
    assert found == published()


def test_weights_are_where_the_authors_keep_them():
    # A file for each classifier: distilled, but for s_conv.
    without = {
        f'efficientmod_{arch}_in1k'
        for arch in ('xxs', 'xs', 's', 's_conv_distill')
    }
    for name, model in entries().items():
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
        assert urls == {PAGE, 'https://arxiv.org/abs/2403.19963'}


def test_readers_of_the_format_parse_it():
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert len(index.models) == len(CONFIGS)
    assert index.check(silent=True) == []
    for model in index.models:
        entry = entries()[model.name]
        full = model.full_model  # with what its collection adds
        assert full.data['Paper']['URL'] == 'https://arxiv.org/abs/2403.19963'
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
        for kind in ('', '_distill')
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


@pytest.mark.parametrize(
    'path',
    [p for p in CONFIGS if p.parent.name == 'det'],
    ids=lambda p: p.stem,
)
def test_parameters_of_detectors(path):
    model = cli.build_model(Config.fromfile(path))
    data = entries()[path.stem]['Metadata']
    assert data['Parameters'] == sum(p.numel() for p in model.parameters())


# At 800 x 1280, detectors take long.
@pytest.mark.parametrize(
    'path',
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.slow] if path.parent.name == 'det' else [],
        )
        for path in CONFIGS
    ],
)
def test_figures_are_what_the_tool_counts(path):
    cfg = Config.fromfile(path)
    data = entries()[path.stem]['Metadata']
    result = measure(cli.build_model(cfg), input_size(cfg))
    assert (result.params, result.flops) == (data['Parameters'], data['FLOPs'])
