"""Converting checkpoints of the authors and ours, and refusing others."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import OFFICIAL, assert_matches, official_weights
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, init_default_scope
from torch.testing import assert_close

from mmefficientmod import EfficientMod
from mmefficientmod.apis.converting import (
    convert_checkpoint,
    save_checkpoint,
    sha256,
)
from mmefficientmod.checkpoint.reading import CheckpointError, read_checkpoint
from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import build_model, import_toolbox

# Names of the layers of Mask R-CNN in mmdet 2.19, and of Semantic FPN in mmseg
# 0.19.
NECK = [
    f'neck.{kind}_convs.{i}.conv'
    for kind in ('lateral', 'fpn')
    for i in range(4)
]
MMDET2 = (
    *NECK,
    'rpn_head.rpn_conv',
    'rpn_head.rpn_cls',
    'rpn_head.rpn_reg',
    'roi_head.bbox_head.fc_cls',
    'roi_head.bbox_head.fc_reg',
    'roi_head.bbox_head.shared_fcs.0',
    'roi_head.bbox_head.shared_fcs.1',
    *(f'roi_head.mask_head.convs.{i}.conv' for i in range(4)),
    'roi_head.mask_head.upsample',
    'roi_head.mask_head.conv_logits',
)  # fmt: skip
MMSEG0 = (
    *NECK,
    *(
        f'decode_head.scale_heads.{i}.{j}.{part}'
        for i, j in ((0, 0), (1, 0), (2, 0), (2, 2), (3, 0), (3, 2), (3, 4))
        for part in ('conv', 'bn')
    ),
    'decode_head.conv_seg',
)  # fmt: skip
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmefficientmod.EfficientMod',
        arch='xxs',
        out_indices=3,
        final_norm=True,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=256),
)
DETECTOR = 'mask_rcnn.py'
SEGMENTOR = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DETECTOR).write_text(
        "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n"
        'model = dict(\n'
        "    backbone=dict(_delete_=True, arch='xxs',\n"
        "                  type='mmefficientmod.EfficientMod'),\n"
        '    neck=dict(in_channels=[32, 64, 128, 256]))\n'
    )
    return tmp_path


def official_classifier(arch='xxs', dtype=torch.float32):
    return {k: v.to(dtype) for k, v in official_weights(arch).items()}


def official_dense(config, parts):
    """A detector or segmentor as mmcv 1 saved it, with the authors' names."""
    weights = {
        f'backbone.{k}': v
        for k, v in official_classifier().items()
        if not k.startswith(('norm.', 'head.'))
    }
    model = build_model(load_config(config))
    own = model.state_dict()
    for part in parts:
        tensors = {k: v for k, v in own.items() if k.startswith(f'{part}.')}
        assert tensors, f'the model has no {part}'
        weights |= {k: torch.rand(v.shape).to(v) for k, v in tensors.items()}
    meta = dict(mmcv_version='1.4.0', CLASSES=('a', 'b'), epoch=12, iter=7330)
    return dict(meta=meta, state_dict=weights, optimizer={}), model


def run(tool, *argv):
    return tool('convert_checkpoint').main(list(argv))


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize('arch', ['s', 's_conv'])
def test_logits_of_a_converted_classifier_are_the_authors(arch):
    weights = official_classifier(arch, torch.float64)
    torch.save({'state_dict': weights}, 'theirs.pth')
    result = convert_checkpoint('theirs.pth')
    import_toolbox('mmpretrain')
    init_default_scope('mmpretrain')
    cfg = {**CLASSIFIER, 'backbone': {**CLASSIFIER['backbone'], 'arch': arch}}
    dim = weights['norm.weight'].numel()
    cfg['head'] = {**CLASSIFIER['head'], 'in_channels': dim}
    model = MODELS.build(cfg).double().eval()
    model.load_state_dict(result.weights, strict=True)
    shape = OFFICIAL[arch]['input_shape']
    image = torch.from_numpy(np.random.default_rng(0).standard_normal(shape))
    with torch.no_grad():
        logits = model(image, mode='tensor')
    assert_matches(logits, OFFICIAL[arch]['logits'], 1e-6)


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('use_ema', [False, True])
def test_classifier_is_converted_whatever_its_keys_and_prefixes(
    tool, prefix, use_ema, capsys
):
    plain = official_classifier()
    ema = {k: v + 1 for k, v in plain.items()}
    torch.save(
        {
            'state_dict': {prefix + k: v for k, v in plain.items()},
            'state_dict_ema': {prefix + k: v for k, v in ema.items()},
            'args': argparse.Namespace(lr=4e-3),
            'metric': 76.0,
        },
        'theirs.pth',
    )
    flags = ['--use-ema'] if use_ema else []
    run(tool, 'theirs.pth', 'new/ours.pth', *flags)
    shown = capsys.readouterr().out
    assert 'classifier, EfficientMod xxs' in shown
    assert ('EMA weights' if use_ema else 'plain weights') in shown
    assert 'layers.0.downsample' in shown
    assert 'backbone.stages.1.downsample' in shown
    assert len(shown.splitlines()) < 25
    content = read('new/ours.pth')
    expected = ema if use_ema else plain
    weights = content['state_dict']
    assert len(weights) == len(plain)
    for ours, theirs in (
        ('backbone.stem.proj.weight', 'patch_embed.proj.weight'),
        (
            'backbone.stages.3.downsample.norm.bias',
            'layers.2.downsample.norm.bias',
        ),
        ('backbone.stages.0.blocks.0.gamma', 'layers.0.blocks.0.gamma_1'),
        ('backbone.norm.weight', 'norm.weight'),
        ('head.fc.weight', 'head.weight'),
        ('head.fc.bias', 'head.bias'),
    ):
        assert_close(weights[ours], expected[theirs], rtol=0, atol=0)
    assert content['meta']['source'] == 'theirs.pth'
    assert content['meta']['source_sha256'] == sha256('theirs.pth')
    assert content['meta']['kind'] == 'classifier'
    assert content['meta']['arch'] == 'xxs'


def test_sha256_is_that_of_the_file(workplace):
    (workplace / 'abc').write_text('abc')
    assert sha256('abc').startswith('ba7816bf8f01cfea414140de5dae2223')


@pytest.mark.parametrize(
    ('config', 'parts', 'kind'),
    [(DETECTOR, MMDET2, 'detector'), (SEGMENTOR, MMSEG0, 'segmentor')],
    ids=['detector', 'segmentor'],
)
def test_detector_and_segmentor_are_converted_completely(
    tool, config, parts, kind
):
    source, model = official_dense(config, parts)
    torch.save(source, 'theirs.pth')
    result = run(tool, 'theirs.pth', 'ours.pth', '--config', config)
    assert (result.kind, result.arch) == (kind, 'xxs')
    content = read('ours.pth')
    weights = content['state_dict']
    model.load_state_dict(weights, strict=True)
    for key, value in source['state_dict'].items():
        if not key.startswith('backbone.'):
            assert_close(weights[key], value, rtol=0, atol=0)
    backbone = EfficientMod('xxs', init_cfg=dict(
        type='Pretrained', checkpoint='theirs.pth'))  # fmt: skip
    backbone.init_weights()
    assert_close(
        dict(model.backbone.state_dict()),
        dict(backbone.state_dict()),
        rtol=0,
        atol=0,
    )
    assert content['meta']['dataset_meta'] == dict(classes=('a', 'b'))

    # The backbone alone, and without a config.
    run(tool, 'theirs.pth', 'backbone.pth', '--part', 'backbone')
    EfficientMod('xxs').load_state_dict(read('backbone.pth')['state_dict'])


@pytest.mark.parametrize('part', ['model', 'backbone'])
def test_converting_twice_changes_nothing(tool, part):
    torch.save({'state_dict': official_classifier()}, 'theirs.pth')
    run(tool, 'theirs.pth', 'one.pth', '--part', part)
    run(tool, 'one.pth', 'two.pth', '--part', part)
    run(tool, 'two.pth', 'two.pth', '--part', part, '--force')
    one, two = read('one.pth'), read('two.pth')
    assert one['meta'] == two['meta']
    assert list(one['state_dict']) == list(two['state_dict'])
    assert_close(one['state_dict'], two['state_dict'], rtol=0, atol=0)


class Call:
    def __reduce__(self):
        return Path.touch, (Path('trap'),)


def test_trusted_file_is_converted(tool, workplace, capsys):
    content = {'state_dict': official_classifier(), 'extra': Call()}
    torch.save(content, 'theirs.pth')
    with pytest.raises(CheckpointError, match='--trust theirs.pth'):
        run(tool, 'theirs.pth', 'ours.pth')
    assert not Path('trap').exists()
    run(tool, 'theirs.pth', 'ours.pth', '--trust', 'theirs.pth')
    assert Path('trap').exists()
    assert 'code in it runs' in capsys.readouterr().out
    read('ours.pth')
    with pytest.raises(CheckpointError, match='--trust theirs.pth'):
        run(tool, 'theirs.pth', 'other.pth')


def test_safetensors_hold_the_same_weights_and_meta(tool):
    meta = dict(CLASSES=('a', 'b'))
    content = {'state_dict': official_classifier(), 'meta': meta}
    torch.save(content, 'theirs.pth')
    run(tool, 'theirs.pth', 'ours.pth')
    run(tool, 'theirs.pth', 'ours.safetensors')
    run(tool, 'ours.safetensors', 'again.pth')
    one, two = read('ours.pth'), read_checkpoint('ours.safetensors')
    assert_close(one['state_dict'], two['state_dict'], rtol=0, atol=0)
    assert two['meta'].pop('dataset_meta') == dict(classes=['a', 'b'])
    assert one['meta'].pop('dataset_meta') == dict(classes=('a', 'b'))
    assert one['meta'] == two['meta']
    assert_close(read('again.pth')['state_dict'], one['state_dict'])
    from safetensors.torch import load_file

    plain = load_file('ours.safetensors')  # as other programs read it
    assert plain.keys() == one['state_dict'].keys()


def test_converted_backbone_loads_as_pretrained_weights(tool):
    weights = official_classifier()
    torch.save({'state_dict': weights}, 'theirs.pth')
    run(tool, 'theirs.pth', 'ours.pth', '--part', 'backbone')
    assert set(read('ours.pth')['state_dict']) == set(
        EfficientMod('xxs', final_norm=True).state_dict()
    )
    model = EfficientMod(
        'xxs', init_cfg=dict(type='Pretrained', checkpoint='ours.pth')
    )
    model.init_weights()
    assert_close(
        model.stem.proj.weight.detach(), weights['patch_embed.proj.weight']
    )


@pytest.mark.parametrize('counters', [True, False])
@pytest.mark.parametrize('arch', ['mbconv_xs', 'mbconv_s'])
def test_mbconv_is_told_from_modulation_of_the_same_width(
    tool, arch, counters
):
    weights = EfficientMod(arch).state_dict()
    for name in [k for k in weights if k.endswith('num_batches_tracked')]:
        if not counters:
            del weights[name]
    torch.save(weights, 'trained.pth')
    result = run(tool, 'trained.pth', 'safe.pth', '--part', 'backbone')
    assert result.arch == arch


def test_view_is_written_without_the_rest_of_its_storage(workplace):
    shared = torch.rand(10**6)
    weights = official_classifier()
    weights['head.bias'] = shared[:1000]
    torch.save({'state_dict': weights}, 'theirs.pth')
    assert (workplace / 'theirs.pth').stat().st_size > 22e6
    save_checkpoint(convert_checkpoint('theirs.pth'), 'ours.pth')
    assert (workplace / 'ours.pth').stat().st_size < 20e6


def test_custom_arch_needs_its_config(tool, workplace):
    arch = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1),
                attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
                expand_ratios=(2,))  # fmt: skip
    cfg = {**CLASSIFIER, 'backbone': {**CLASSIFIER['backbone'], 'arch': arch}}
    cfg['head'] = {**CLASSIFIER['head'], 'in_channels': 32}
    (workplace / 'own.py').write_text(
        f"default_scope = 'mmpretrain'\nmodel = {cfg}\n"
    )
    import_toolbox('mmpretrain')
    init_default_scope('mmpretrain')
    weights = MODELS.build(cfg).state_dict()
    torch.save({'state_dict': weights}, 'own.pth')
    with pytest.raises(CheckpointError, match=r'\(8, 16, 24, 32\) .*--config'):
        run(tool, 'own.pth', 'ours.pth')
    run(tool, 'own.pth', 'ours.pth', '--config', 'own.py')
    content = read('ours.pth')
    assert content['meta']['arch'] is None
    assert_close(content['state_dict'], dict(weights), rtol=0, atol=0)


def without(weights, *keys):
    return {k: v for k, v in weights.items() if k not in keys}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: without(w, 'norm.bias'), 'lacks norm.bias'),
        (
            lambda w: w | {'layers.0.blocks.0.extra': torch.zeros(1)},
            'has no stages.0.blocks.0.extra',
        ),
        (
            lambda w: w | {'patch_embed.norm.bias': torch.zeros(3)},
            r'stem.norm.bias is \(3,\) in the file',
        ),
        (
            lambda w: w | {'head.weight': torch.zeros(1000, 8)},
            'its head is .*1000, 8.* should be .*1000, 256',
        ),
        (lambda w: without(w, 'head.bias'), 'its head is'),
        (
            lambda w: w | {'stem.proj.weight': w['patch_embed.proj.weight']},
            'stem.proj.weight twice',
        ),
        (
            lambda w: {'conv1.weight': w['norm.bias'], 'fc': w['norm.bias']},
            'no EfficientMod.*begin with conv1, fc',
        ),
    ],
)  # fmt: skip
def test_file_that_does_not_fit_is_refused_and_nothing_written(
    tool, workplace, change, message
):
    torch.save({'state_dict': change(official_classifier())}, 'theirs.pth')
    with pytest.raises(CheckpointError, match=message):
        run(tool, 'theirs.pth', 'ours.pth')
    assert [p.name for p in workplace.glob('*.pth*')] == ['theirs.pth']


def test_file_of_another_model_is_refused(tool, workplace):
    torch.save({'state_dict': official_classifier()}, 'theirs.pth')
    with pytest.raises(CheckpointError, match='lacks .*has no .*head.fc'):
        run(tool, 'theirs.pth', 'ours.pth', '--config', SEGMENTOR)
    assert not (workplace / 'ours.pth').exists()


def test_existing_file_survives_a_refused_or_failed_conversion(
    tool, workplace, monkeypatch
):
    torch.save({'state_dict': official_classifier()}, 'theirs.pth')
    (workplace / 'ours.pth').write_text('mine')
    with pytest.raises(CheckpointError, match=r'ours.pth exists.*--force'):
        run(tool, 'theirs.pth', 'ours.pth')
    with pytest.raises(CheckpointError, match='is a folder'):
        run(tool, 'theirs.pth', '.')

    def full(content, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(CheckpointError, match='cannot be written.*No space'):
        run(tool, 'theirs.pth', 'ours.pth', '--force')
    assert (workplace / 'ours.pth').read_text() == 'mine'
    monkeypatch.undo()
    assert not [p for p in workplace.iterdir() if '.part' in p.name]


def test_missing_file_or_missing_ema_weights_are_refused(tool):
    with pytest.raises(CheckpointError, match=r'no.pth does not exist'):
        run(tool, 'no.pth', 'ours.pth')
    with pytest.raises(CheckpointError, match='download the file first'):
        run(tool, 'https://host/no.pth', 'ours.pth')
    torch.save(official_classifier(), 'theirs.pth')
    with pytest.raises(CheckpointError, match='no EMA weights'):
        run(tool, 'theirs.pth', 'ours.pth', '--use-ema')


def test_verbose_lists_every_tensor(tool, capsys):
    torch.save(official_classifier(), 'theirs.pth')
    run(tool, 'theirs.pth', 'ours.pth', '--verbose')
    shown = capsys.readouterr().out
    assert 'layers.2.blocks.0.gamma_1' in shown
    assert 'backbone.stages.2.blocks.0.gamma' in shown


def test_checkpoint_of_a_training_becomes_readable_with_weights_only(tool):
    weights = {f'backbone.{k}': v for k, v in EfficientMod(
        'xxs', final_norm=True).state_dict().items()}  # fmt: skip
    weights |= {
        'head.fc.weight': torch.rand(5, 256),
        'head.fc.bias': torch.rand(5),
    }
    torch.save(
        dict(
            meta=dict(dataset_meta=dict(classes=('a', 'b'))),
            message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))),
            state_dict=weights,
        ),
        'epoch_1.pth',
    )
    run(tool, 'epoch_1.pth', 'ours.pth')
    content = read('ours.pth')
    assert content['meta']['dataset_meta'] == dict(classes=('a', 'b'))
    assert_close(content['state_dict'], weights, rtol=0, atol=0)
