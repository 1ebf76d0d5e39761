"""Loading weights: the forms of the authors' files, and misfits."""

import argparse
import copy
import logging
import os
import pickle
import shutil
from contextlib import nullcontext

import pytest
import torch
from helpers import TINY, load_pretrained
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, PretrainedInit
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from mmefficientmod import EfficientMod
from mmefficientmod.checkpoint import reading
from mmefficientmod.checkpoint.loading import (
    drop_classes,
    load_strictly,
    load_whole,
)
from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    read_checkpoint,
    trust_files,
)
from mmefficientmod.config.nodes import ConfigError


def to_official(name):
    """Our name of a tensor to that of the authors."""
    if name.startswith('stages.'):
        _, i, part, rest = name.split('.', 3)
        if part == 'downsample':
            return f'layers.{int(i) - 1}.downsample.{rest}'
        rest = rest.replace('context.conv', 'context_layer.context_list.0')
        rest = rest.replace('context.', 'context_layer.')
        return f'layers.{i}.{part}.{rest}'.replace('.gamma', '.gamma_1')
    return name.replace('stem.', 'patch_embed.')


@pytest.fixture
def source():
    torch.manual_seed(1)
    return EfficientMod(TINY, final_norm=True)


@pytest.fixture
def official(source):
    weights = {to_official(k): v for k, v in source.state_dict().items()}
    assert any('context_list' in k for k in weights)
    return {
        **weights,
        'head.weight': torch.zeros(1000, 32),
        'head.bias': torch.zeros(1000),
    }


def build(path, arch=TINY, **kwargs):
    return load_pretrained(EfficientMod, path, arch, **kwargs)


def assert_loaded(model, source):
    own = model.state_dict()
    expected = {k: source.state_dict()[k] for k in own}
    assert_close(dict(own), expected, rtol=0, atol=0)


@pytest.mark.parametrize('key', ['state_dict', 'model', 'state_dict_ema', ''])
@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.'])
@pytest.mark.parametrize('names', ['official', 'ours'])
@pytest.mark.parametrize('head', [True, False])
def test_file_is_loaded_whatever_its_keys_and_prefixes(
    tmp_path, source, official, key, prefix, names, head
):
    weights = official if names == 'official' else source.state_dict()
    weights = {
        prefix + k: v
        for k, v in weights.items()
        if head or not k.startswith('head')
    }
    if prefix == 'backbone.':
        weights['neck.conv.weight'] = torch.zeros(3)
    torch.save({key: weights} if key else weights, tmp_path / 'c.pth')
    assert_loaded(build(tmp_path / 'c.pth'), source)
    assert_loaded(build(tmp_path / 'c.pth', final_norm=True), source)


def test_prefix_selects_a_part_of_the_file(tmp_path, source):
    weights = {f'student.{k}': v for k, v in source.state_dict().items()}
    torch.save({'state_dict': weights}, tmp_path / 'c.pth')
    assert_loaded(build(tmp_path / 'c.pth', prefix='student.'), source)
    with pytest.raises(CheckpointError, match="begins with 'teacher.'"):
        build(tmp_path / 'c.pth', prefix='teacher')


@pytest.fixture
def messages():
    """Messages of the current logger."""
    logger = MMLogger.get_instance(f'test-{os.urandom(4).hex()}')
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    return lines


def test_plain_weights_are_taken_unless_use_ema_is_set(
    tmp_path, source, official, messages
):
    ema = {k: v + 1 for k, v in official.items()}
    torch.save(
        {'state_dict': official, 'state_dict_ema': ema}, tmp_path / 'c.pth'
    )
    assert_loaded(build(tmp_path / 'c.pth'), source)
    assert "'state_dict', plain weights" in messages[-1]
    assert "others are under 'state_dict_ema'" in messages[-1]
    averaged = build(tmp_path / 'c.pth', use_ema=True)
    assert_close(averaged.stem.norm.bias, source.stem.norm.bias + 1)
    assert "'state_dict_ema', EMA weights" in messages[-1]
    torch.save({'state_dict': official}, tmp_path / 'plain.pth')
    with pytest.raises(CheckpointError, match='no EMA weights'):
        build(tmp_path / 'plain.pth', use_ema=True)


def test_file_may_lack_the_final_norm(tmp_path, source, messages):
    weights = source.state_dict()
    weights = {k: v for k, v in weights.items() if not k.startswith('norm.')}
    torch.save(weights, tmp_path / 'c.pth')
    build(tmp_path / 'c.pth', final_norm=True)
    assert 'new: norm.weight, norm.bias' in messages[-1]


def test_backbone_with_fewer_stages_takes_only_theirs(
    tmp_path, source, official
):
    torch.save(official, tmp_path / 'c.pth')
    assert_loaded(build(tmp_path / 'c.pth', out_indices=(0, 1)), source)


def test_file_without_a_common_name_is_refused(tmp_path):
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path / 'resnet.pth')
    with pytest.raises(CheckpointError) as error:
        build(tmp_path / 'resnet.pth')
    text = str(error.value)
    assert 'resnet.pth does not fit EfficientMod' in text
    assert '0 of the' in text
    assert 'file lacks stem.proj.weight' in text
    assert 'model has no conv1.weight' in text


def test_file_of_another_variant_is_refused_with_both_shapes(
    tmp_path, official
):
    torch.save(official, tmp_path / 'c.pth')
    with pytest.raises(
        CheckpointError,
        match=r'stem.proj.weight is \(8, 3, 7, 7\) in the file and '
        r'\(12, 3, 7, 7\) in the model',
    ):
        build(tmp_path / 'c.pth', {**TINY, 'dims': (12, 16, 24, 32)})


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_namespace_in_the_authors_files_is_read(
    tmp_path, source, official, legacy
):
    args = argparse.Namespace(model='efficientMod_s', lr=4e-3, opt=None)
    torch.save(
        {'state_dict': official, 'args': args, 'epoch': 299, 'metric': 81.0},
        tmp_path / 'c.pth',
        _use_new_zipfile_serialization=not legacy,
    )
    assert read_checkpoint(str(tmp_path / 'c.pth'))['args'] == args
    assert_loaded(build(tmp_path / 'c.pth'), source)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('namespace', [False, True])
def test_code_in_a_file_is_not_run(tmp_path, official, namespace):
    trap = tmp_path / 'trap'
    content = {'state_dict': official, 'meta': Evil(str(trap))}
    if namespace:  # which is allowed, must not allow other objects
        content = {'args': argparse.Namespace(a=1), **content}
    torch.save(content, tmp_path / 'c.pth')
    with pytest.raises(CheckpointError, match=r'trust .* --trust ') as error:
        build(tmp_path / 'c.pth')
    assert 'mkdir' in str(error.value)
    assert not trap.exists()
    # The remedy that the message names works, and for this file alone.
    trust_files([str(tmp_path / 'c.pth')])
    shutil.copy(tmp_path / 'c.pth', tmp_path / 'd.pth')
    with pytest.raises(CheckpointError, match='not read'):
        build(tmp_path / 'd.pth')
    assert not trap.exists()
    build(tmp_path / 'c.pth')
    assert trap.exists()
    trust_files([])
    with pytest.raises(CheckpointError, match='not read'):
        build(tmp_path / 'c.pth')


class Finder:
    """Unpickling it finds all functions of Python, but calls none."""

    def __reduce__(self):
        return getattr, (getattr, '__self__')


def test_file_that_finds_functions_is_refused(tmp_path):
    torch.save({'meta': Finder()}, tmp_path / 'c.pth')
    with pytest.raises(
        CheckpointError, match=r'weights \(builtins\.getattr\)'
    ):
        read_checkpoint(str(tmp_path / 'c.pth'))


def test_remedy_for_a_url_loads_the_downloaded_file(tmp_path, monkeypatch):
    torch.save({'meta': Evil('trap')}, tmp_path / 'c.pth')
    monkeypatch.setattr(
        reading, 'get_local_path', lambda _: nullcontext(tmp_path / 'c.pth')
    )
    remedy = r'download it and name it by --trust c\.pth'
    with pytest.raises(CheckpointError, match=remedy):
        read_checkpoint('https://host/files/c.pth?download=1')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'not a checkpoint', 'cannot be read.* in no format of PyTorch'),
        (b'', 'is empty'),
        ({'epoch': 3}, 'has no weights.*epoch'),
        ([1, 2], 'has no weights'),
        (None, r'c\.pth does not exist'),
        ('folder', r'c\.pth is a folder'),
    ],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content, message):
    path = tmp_path / 'c.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == 'folder':
        path.mkdir()
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        build(path)


def test_checkpoint_of_mmengine_is_read(tmp_path, source):
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = source

        def forward(self, x, mode='loss'):
            return dict(loss=sum(o.mean() for o in self.backbone(x)))

    Runner(
        model=Model(),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(
            TensorDataset(torch.rand(2, 3, 32, 32)),
            collate_fn=lambda x: dict(x=x[0][0][None]),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        # Its state has a Counter, which torch 2.1 does not read by itself.
        param_scheduler=dict(type='MultiStepLR', milestones=[2]),
        experiment_name='saved',
    ).train()
    with pytest.raises(pickle.UnpicklingError):  # torch alone refuses it
        torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    assert_loaded(build(tmp_path / 'epoch_1.pth'), source)


@pytest.mark.parametrize('wrap', [list, tuple])
def test_init_cfg_in_a_list_is_loaded_strictly(
    tmp_path, source, official, wrap
):
    torch.save(official, tmp_path / 'c.pth')
    init_cfg = dict(type=PretrainedInit, checkpoint=str(tmp_path / 'c.pth'))
    model = EfficientMod(TINY, init_cfg=wrap([init_cfg]))
    model.init_weights()
    assert_loaded(model, source)


def test_unknown_key_of_init_cfg_is_refused():
    model = EfficientMod(
        TINY, init_cfg=dict(type='Pretrained', checkpoint='x', ema=True)
    )
    with pytest.raises(ConfigError, match=r"unknown keys \['ema'\].*use_ema"):
        model.init_weights()


def test_init_weights_without_a_checkpoint_keeps_the_weights(source):
    before = {k: v.clone() for k, v in source.state_dict().items()}
    source.init_weights()
    assert_close(dict(source.state_dict()), before, rtol=0, atol=0)


def without_counters(weights):
    """Weights as converted from TensorFlow, with PyTorch's version marks."""
    weights = copy.copy(weights)
    for name in [k for k in weights if k.endswith('num_batches_tracked')]:
        del weights[name]
    return weights


def batch_norms():
    """A new model with random weights and statistics of two batch norms."""
    layers = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    model = nn.Sequential(*layers)
    model(torch.rand(4, 3, 2, 2))
    return model


@pytest.mark.parametrize('as_dict', [False, True])
def test_counters_of_batch_norms_may_be_missing_in_the_file(as_dict):
    source, model, whole = batch_norms(), batch_norms(), batch_norms()
    weights = without_counters(source.state_dict())
    with pytest.raises(RuntimeError, match='num_batches_tracked'):
        model.load_state_dict(weights)  # PyTorch alone refuses it
    weights = dict(weights) if as_dict else weights
    assert load_strictly(model, weights, 'c.pth') == ([], [])
    load_whole(whole, dict(state_dict=weights), 'c.pth')
    for loaded in model.state_dict(), whole.state_dict():
        assert_close({k: loaded[k] for k in weights}, dict(weights))


def test_counters_of_batch_norms_may_be_missing_in_the_model():
    weights = batch_norms().state_dict()
    model = batch_norms()
    for norm in model[1:]:
        norm.num_batches_tracked = None
    assert load_strictly(model, weights, 'c.pth') == ([], [])
    assert_close(model[1].running_var, weights['1.running_var'])


def test_other_buffers_of_batch_norms_may_not_be_missing():
    weights = without_counters(batch_norms().state_dict())
    del weights['1.running_var']
    message = '9 of the 10 keys of the model match; the file lacks 1.running_v'
    with pytest.raises(CheckpointError, match=message):
        load_strictly(batch_norms(), weights, 'c.pth')
    with pytest.raises(CheckpointError, match='lacks 1.running_var'):
        load_whole(batch_norms(), weights, 'c.pth')
    counters = {
        k: v
        for k, v in batch_norms().state_dict().items()
        if k.endswith('num_batches_tracked')
    }
    with pytest.raises(CheckpointError, match='0 of the 10 keys'):
        load_strictly(batch_norms(), counters, 'c.pth')


def test_message_of_a_misfit_is_made_of_sentences():
    def message(model, weights):
        with pytest.raises(CheckpointError) as error:
            load_whole(model, weights, 'c.pth')
        start, end = 'c.pth does not fit Sequential: ', 'of the same config?'
        assert str(error.value).startswith(start)
        assert str(error.value).endswith(f'. Is it a checkpoint {end}')
        return str(error.value)[len(start) :].partition('. Is it')[0]

    model = batch_norms()
    weights = model.state_dict()
    bias = weights.pop('0.bias')
    assert message(model, weights) == 'the file lacks 0.bias'
    lacks = 'the file lacks 0.bias; the model has no 0.offset'
    assert message(model, {**weights, '0.offset': bias}) == lacks
    narrow = {k: v[:1] if v.ndim else v for k, v in weights.items()}
    assert message(model, narrow).endswith(' and 5 more')

    def refuse(*args):
        raise RuntimeError('no such version')

    model[0]._register_load_state_dict_pre_hook(refuse)
    assert message(model, weights) == 'no such version'


def test_only_layers_with_another_number_of_outputs_are_dropped():
    """Not those of the backbone, nor those that take other inputs."""

    def model(width, classes):
        parts = dict(
            backbone=nn.Linear(4, width),
            hidden=nn.Linear(width, 8),
            fc_cls=nn.Linear(8, classes),
        )
        return nn.ModuleDict(parts)

    weights = dict(model(4, 3).state_dict())
    wrapped = {f'module.{name}': w for name, w in weights.items()}
    new = model(4, 2)
    for given in weights, wrapped:
        kept = dict(given)
        left_out = drop_classes(new, kept)
        assert left_out == ['fc_cls.weight', 'fc_cls.bias']
        load_whole(new, kept, 'c.pth', left_out)
        assert_close(new['hidden'].weight, weights['hidden.weight'])
        with pytest.raises(CheckpointError, match='lacks fc_cls.weight'):
            load_whole(new, kept, 'c.pth')
    other = model(6, 2)
    kept = dict(weights)
    left_out = drop_classes(other, kept)
    with pytest.raises(CheckpointError, match='size mismatch for backbone'):
        load_whole(other, kept, 'c.pth', left_out)
