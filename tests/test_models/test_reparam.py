"""Parallel branches: training, loading, merging, conversion, configs."""

import copy
import functools
import logging
import pickle
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, official_weights, randomise
from mmengine.config import Config
from mmengine.model import (
    ExponentialMovingAverage,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from mmefficientmod import EfficientMod
from mmefficientmod.analysis.complexity import measure
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.toolbox import build_model
from mmefficientmod.models.backbones.efficientmod import ContextBranch
from mmefficientmod.models.layers.deploy import switch_to_deploy

KINDS = [(3, 'identity'), (5, 3, 1, 'identity'), ('identity',), [5]]
IMAGE = torch.rand(2, 3, 70, 64, generator=torch.Generator().manual_seed(2))


def norms_of(model):
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def settled(arch=TINY, seed=0, **kwargs):
    """A model in evaluation mode, with random weights and statistics."""
    kwargs = dict(reparam=True) | kwargs
    model = randomise(EfficientMod(arch, **kwargs), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for norm in norms_of(model):
        norm.running_mean.normal_(0, 0.5, generator=generator)
        norm.running_var.uniform_(0.2, 3, generator=generator)
    return model


def run(model, image=IMAGE):
    with torch.no_grad():
        return model(image)


def assert_same(outs, expected, tolerance=1e-5):
    for out, x in zip(outs, expected, strict=True):
        assert (out - x).abs().max() <= tolerance * x.abs().max()


def layout(model):
    """What a compiler or an exporter sees."""
    return [
        (name, type(m), [(n, p.shape) for n, p in m.named_parameters()])
        for name, m in model.named_modules()
    ]


# ------------------------------------------------------------ with and without


@pytest.mark.parametrize('reparam', [None, False, (), []])
def test_without_reparam_no_branch_is_built(reparam):
    assert layout(EfficientMod(TINY, reparam=reparam)) == layout(
        EfficientMod(TINY)
    )


def test_branches_are_beside_every_modulation_block():
    torch.manual_seed(0)
    plain = EfficientMod(TINY)
    torch.manual_seed(0)
    model = EfficientMod(TINY, reparam=True)
    assert model.reparam == (3, 'identity')
    contexts = [m for m in model.modules() if isinstance(m, ContextBranch)]
    assert len(contexts) == sum(TINY['depths'])
    for context in contexts:
        assert list(context.branches) == ['3x3', 'identity']
    # The other layers have the initial weights of the plain variant.
    state = {
        k: v for k, v in model.state_dict().items() if 'branches' not in k
    }
    assert_close(state, dict(plain.state_dict()), rtol=0, atol=0)
    assert all((norm.weight == 1).all() for norm in norms_of(model))


def test_context_adds_the_branches_to_the_convolution():
    context = settled(reparam=(5, 'identity')).stages[1].blocks[0].mlp.context
    x = torch.randn(2, 9, 8, 16)
    y = context.f(x).permute(0, 3, 1, 2)
    branch, norm = context.branches['5x5'], context.branches['identity'].norm
    out = context.conv(y) + branch.norm(branch.conv(y)) + norm(y)
    expected = context.g(nn.functional.gelu(out.permute(0, 2, 3, 1)))
    assert_close(context(x), expected)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(reparam=(7,)), r'be 1, 3, 5 \(odd kernel sizes below 7\)'),
        (dict(reparam=(4, 'identity')), r'reparam=\(4, .identity.\) does not'),
        (dict(reparam=(3, 3)), 'each once'),
        (dict(reparam=(True,)), 'does not name branches'),
        (dict(reparam=(3.0,)), 'does not name branches'),
        (dict(reparam='identity'), 'does not name branches'),
        (dict(reparam=3), 'such as'),
        (dict(arch='mbconv_xs', reparam=True), 'is for modulation blocks'),
    ],
)
def test_invalid_branches_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EfficientMod(**kwargs)


# ----------------------------------------------------------------- the merging


@pytest.mark.parametrize('reparam', KINDS, ids=str)
@pytest.mark.parametrize('size', [(64, 64), (97, 71), (7, 5)], ids=str)
def test_folded_outputs_are_equal(reparam, size):
    model = settled(reparam=reparam)
    image = torch.rand(2, 3, *size)
    expected = run(model, image)
    merged = copy.deepcopy(model).merge_branches()
    assert_same(run(merged, image), expected)
    assert_same(run(model.switch_to_deploy(), image), expected)
    assert model.deployed
    assert not merged.deployed
    assert not norms_of(model) + norms_of(merged)


@pytest.mark.parametrize('arch', ['s', 's_conv'])
def test_folded_outputs_of_a_real_variant(arch):
    model = settled(arch, seed=1)
    expected = run(model)
    assert_same(run(model.switch_to_deploy()), expected)


@pytest.mark.parametrize('size', [(12, 12), (5, 3), (1, 1)], ids=str)
def test_merging_is_exact_at_borders(size):
    """The input is constant, so that outputs differ by the padding only."""
    model = settled(reparam=(5, 3, 1, 'identity')).double()
    context = model.stages[0].blocks[0].mlp.context
    x = torch.full((1, *size, 8), 1.5, dtype=torch.float64)
    expected = run(context, x)
    context.merge_branches()
    assert_close(run(context, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_merged_in_float64(dtype):
    model = settled().to(dtype)
    exact = copy.deepcopy(model).double().merge_branches().state_dict()
    expected = {k: v.to(dtype) for k, v in exact.items()}
    merged = dict(model.merge_branches().state_dict())
    assert_close(merged, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('arch', 'fold'),
    [
        (TINY, 'merge_branches'),
        (TINY, 'switch_to_deploy'),
        ('s', 'merge_branches'),
        ('s_conv', 'switch_to_deploy'),
    ],
    ids=str,
)
def test_merged_and_folded_models_equal_the_plain_variant(arch, fold):
    model = EfficientMod(arch, reparam=True)
    before = measure(model, (32, 32))
    plain = EfficientMod(arch)
    for one in (model, plain):
        if fold == 'switch_to_deploy' or one is model:
            getattr(one, fold)()
    assert layout(model) == layout(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert repr(model) == repr(plain)
    counts = [measure(m, (32, 32)) for m in (model, plain)]
    assert counts[0] == counts[1]
    assert before.flops > counts[1].flops
    assert before.params > counts[1].params


def test_merged_model_can_be_trained_and_folded():
    model = settled()
    parameter = model.stages[0].blocks[0].mlp.context.conv.weight
    model.merge_branches()
    assert model.reparam == ()
    # The same parameter, which an optimizer may hold.
    assert model.stages[0].blocks[0].mlp.context.conv.weight is parameter
    sum(x.square().mean() for x in model.train()(IMAGE)).backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    expected = run(model.eval())
    assert_same(run(model.merge_branches()), expected)  # no branch is left
    assert_same(run(model.switch_to_deploy()), expected)


def hooked(model):
    context = model.stages[1].blocks[0].mlp.context
    context.branches['3x3'].conv.register_forward_hook(lambda *_: None)


def of_another_class(model):
    class Lora(nn.Conv2d):
        pass

    model.stages[0].blocks[0].mlp.context.conv = Lora(8, 8, 7)


def without_statistics(model):
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    model.stages[0].blocks[1].mlp.context.branches['identity'].norm = norm


def another_norm(model):
    norm = nn.GroupNorm(2, 8)
    model.stages[0].blocks[1].mlp.context.branches['identity'].norm = norm


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (hooked, 'this Conv2d is not plain: .* or it has a hook'),
        (of_another_class, 'this Lora is not plain'),
        (without_statistics, 'the model has .*track_running_stats=False'),
        (another_norm, 'the model has GroupNorm'),
    ],
)
def test_model_that_cannot_be_merged_is_refused_and_unchanged(change, message):
    model = EfficientMod(TINY, reparam=True)
    change(model)
    before = copy.deepcopy(model.state_dict())
    for fold in (model.merge_branches, model.switch_to_deploy):
        with pytest.raises(RuntimeError, match=message):
            fold()
        assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.deployed


# ------------------------------------------------------------------- the start


@functools.cache
def official():
    return {k: v.float() for k, v in official_weights('xxs').items()}


def by_init_cfg(model, weights):
    torch.save({'state_dict': weights}, 'plain.pth')
    model.init_cfg = dict(type='Pretrained', checkpoint='plain.pth')
    model.init_weights()


def by_torch(model, weights):
    model.load_state_dict(weights, strict=True)


def by_mmengine(model, weights):
    whole = nn.ModuleDict(dict(backbone=model))
    weights = {f'module.backbone.{k}': v for k, v in weights.items()}
    load_state_dict(nn.ModuleDict(dict(module=whole)), weights, strict=True)


@pytest.mark.parametrize('load', [by_init_cfg, by_torch, by_mmengine])
def test_a_plain_checkpoint_starts_a_training(
    load, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    plain = randomise(EfficientMod(TINY))
    model = settled()  # as after another training
    with caplog.at_level(logging.INFO):
        load(model, dict(plain.state_dict()))
    for norm in norms_of(model):
        assert not norm.weight.any()
        assert not norm.bias.any()
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()
    for mode in (False, True):
        outs = model.train(mode)(IMAGE)
        assert_close(outs, plain.train(mode)(IMAGE), rtol=0, atol=0)
    sum(x.square().mean() for x in outs).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        if name.endswith(('branches.3x3.norm.weight', 'identity.norm.bias')):
            assert p.grad.abs().max() > 0, name


def test_a_checkpoint_of_the_authors_starts_a_training(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': official()}, 'theirs.pth')
    init_cfg = dict(type='Pretrained', checkpoint='theirs.pth')
    plain, model = (
        EfficientMod('xxs', reparam=reparam, init_cfg=init_cfg)
        for reparam in (None, True)
    )
    plain.init_weights()
    model.init_weights()
    # Stages that are not built are not asked for.
    first = EfficientMod(
        'xxs', reparam=True, out_indices=(0, 1), init_cfg=init_cfg
    )
    first.init_weights()
    for mode in (False, True):
        outs, expected = model.train(mode)(IMAGE), plain.train(mode)(IMAGE)
        assert_close(outs, expected, rtol=0, atol=0)
        assert_close(first.train(mode)(IMAGE), expected[:2])


def test_partial_weights_do_not_change_the_branches():
    model = settled()
    before = copy.deepcopy(model.state_dict())
    stem = {k: v + 1 for k, v in before.items() if k.startswith('stem.')}
    model.load_state_dict(stem, strict=False)
    assert_close(dict(model.state_dict()), dict(before) | stem)


def test_a_training_checkpoint_loads_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = settled().state_dict()
    for load in (by_init_cfg, by_torch, by_mmengine):
        model = EfficientMod(TINY, reparam=('identity', 3))
        load(model, weights)
        assert_close(dict(model.state_dict()), dict(weights))
        part = EfficientMod(TINY, reparam=True, out_indices=(0, 1))
        if load is by_init_cfg:
            load(part, weights)
            assert_close(run(part.eval()), run(settled())[:2])


def drop(weights, *parts):
    return {k: v for k, v in weights.items() if not any(p in k for p in parts)}


@pytest.mark.parametrize('load', [by_init_cfg, by_torch, by_mmengine])
def test_weights_of_branches_may_lack_counters(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = drop(settled().state_dict(), 'num_batches_tracked')
    model = EfficientMod(TINY, reparam=True)
    load(model, weights)
    loaded = model.state_dict()
    assert_close({k: loaded[k] for k in weights}, weights)


@pytest.mark.parametrize('load', [by_init_cfg, by_torch, by_mmengine])
@pytest.mark.parametrize(
    ('reparam', 'change', 'message'),
    [
        (None, dict, 'convert_checkpoint.py FILE NEW_FILE --deploy, or build'),
        ((5,), dict, r"reparam=\(3, 'identity'\), and the model .*=\(5,\)"),
        (
            True,
            lambda w: drop(w, '.identity.'),
            r'have the parallel branches reparam=\(3,\), and the model',
        ),
        (
            True,
            lambda w: drop(w, 'stages.0.blocks.1.mlp.context.branches'),
            'part of .* 9 are missing, such as stages.0.blocks.1.mlp',
        ),
        (True, lambda w: drop(w, '0.mlp.context.branches.3x3.norm.bias'),
         'are missing, such as .*norm.bias'),
    ],
)  # fmt: skip
def test_other_branches_are_refused(
    load, reparam, change, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    weights = change(settled().state_dict())
    model = randomise(EfficientMod(TINY, reparam=reparam))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load(model, weights)
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_folded_model_takes_no_training_checkpoint():
    weights = settled().state_dict()
    model = settled().switch_to_deploy()
    with pytest.raises(RuntimeError, match='was folded for inference'):
        load_state_dict(model, weights)
    model = settled().merge_branches()
    with pytest.raises(CheckpointError, match='--deploy'):
        load_state_dict(model, weights)


# ---------------------------------------------------------------- the training


def test_float32_gradients_agree_with_float64():
    """For every parameter, with batch norms in training mode."""
    double = settled(reparam=(5, 3, 1, 'identity')).double().train()
    single = copy.deepcopy(double).float()
    for model in (double, single):
        weight = next(model.parameters())
        outs = model(IMAGE.to(weight))
        sum(x.square().mean() for x in outs).backward()
    for (name, p), q in zip(
        single.named_parameters(), double.parameters(), strict=True
    ):
        # The batch norm undoes the scale of a 1x1 kernel, whose gradient is
        # therefore 0 but for rounding.
        if '1x1.conv' not in name:
            scale = q.grad.abs().max().item()
            assert scale > 0, name
            assert_close(p.grad.double(), q.grad, rtol=0, atol=1e-3 * scale)
    single_buffers = {k: v.double() for k, v in single.named_buffers()}
    buffers = {k: v.double() for k, v in double.named_buffers()}
    assert_close(single_buffers, buffers, rtol=1e-4, atol=1e-5)


def test_recomputation_counts_a_batch_once():
    states, grads = [], []
    for with_cp in (False, True):
        model = settled(with_cp=with_cp).train()
        sum(x.square().mean() for x in model(IMAGE)).backward()
        states.append(dict(model.state_dict()))
        grads.append([p.grad for p in model.parameters()])
        assert {int(n.num_batches_tracked) for n in norms_of(model)} == {1}
    assert_close(states[0], states[1])
    assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_norm_eval_and_frozen_stages():
    for kwargs in (dict(norm_eval=True), dict(frozen_stages=2)):
        model = settled(**kwargs).train()
        before = copy.deepcopy(model.state_dict())
        sum(x.square().mean() for x in model(IMAGE)).backward()
        now = model.state_dict()
        stages = range(4 if model.norm_eval else 2)
        kept = tuple(f'stages.{i}.' for i in stages)
        for name, value in before.items():
            if 'running' in name:
                same = bool((value == now[name]).all())
                assert same == name.startswith(kept), name
        for name, p in model.named_parameters():
            frozen = name.startswith(('stem.', 'stages.0.', 'stages.1.'))
            assert p.requires_grad != (frozen and model.frozen_stages == 2)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights_are_folded(update_buffers):
    torch.manual_seed(0)
    model = EfficientMod(TINY, reparam=True)
    average = ExponentialMovingAverage(
        model, momentum=0.3, update_buffers=update_buffers
    )
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    means = []
    for seed in range(4):
        torch.manual_seed(seed)
        loss = sum(x.square().mean() for x in model(torch.rand(2, 3, 64, 64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        means.append(norms_of(model)[0].running_mean.clone())
    expected = means[0]
    for mean in means[1:]:
        expected = expected.lerp(mean, 0.3) if update_buffers else mean
    assert_close(norms_of(average)[0].running_mean, expected)
    outs = run(average.eval())
    assert switch_to_deploy(average) == ['module']
    assert_same(run(average), outs)


def test_synchronised_batch_norms_are_folded():
    model = settled()
    expected = run(model)
    names = list(model.state_dict())
    synchronised = convert_sync_batchnorm(copy.deepcopy(model), 'torch')
    kinds = {type(norm) for norm in norms_of(synchronised)}
    assert kinds == {nn.SyncBatchNorm}
    reverted = revert_sync_batchnorm(copy.deepcopy(synchronised))
    assert not kinds & {type(norm) for norm in norms_of(reverted)}
    for converted in (synchronised, reverted):
        assert list(converted.state_dict()) == names
        assert_same(run(converted.eval()), expected)
        assert_same(run(converted.switch_to_deploy()), expected)


def test_autocast_is_close_to_float32():
    model = settled().train()
    expected = copy.deepcopy(model)(IMAGE)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = model(IMAGE)
        sum(x.float().square().mean() for x in outs).backward()
    for out, x in zip(outs, expected, strict=True):
        scale = x.abs().max().item()
        assert_close(out.float(), x, rtol=0, atol=0.1 * scale)
    assert all(p.grad.isfinite().all() for p in model.parameters())


# -------------------------------------------------------------- the conversion


def classifier(reparam=True):
    """A checkpoint as MMEngine saves it, and its backbone."""
    model = settled('xxs', reparam=reparam, final_norm=True)
    weights = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    head = {
        'head.fc.weight': torch.rand(5, 256),
        'head.fc.bias': torch.rand(5),
    }
    return dict(state_dict=weights | head), model


@pytest.mark.parametrize('counters', [True, False])
@pytest.mark.parametrize('part', ['model', 'backbone'])
def test_a_training_checkpoint_converts(
    tool, tmp_path, monkeypatch, capsys, part, counters
):
    monkeypatch.chdir(tmp_path)
    checkpoint, model = classifier()
    if not counters:
        checkpoint['state_dict'] = drop(
            checkpoint['state_dict'], 'num_batches_tracked'
        )
    torch.save(checkpoint, 'training.pth')
    argv = ['training.pth', 'plain.pth', '--part', part, '--deploy']
    result = tool('convert_checkpoint').main(argv)
    printed = capsys.readouterr().out
    assert "the parallel branches of reparam=(3, 'identity')" in printed
    assert result.merged == (3, 'identity')
    weights = torch.load('plain.pth', weights_only=True)['state_dict']
    plain = EfficientMod('xxs', final_norm=True)
    prefix = 'backbone.' if part == 'model' else ''
    backbone = {k: v for k, v in weights.items() if k.startswith(prefix)}
    plain.load_state_dict(
        {k.removeprefix(prefix): v for k, v in backbone.items()}
    )
    assert_same(run(plain.eval()), run(model))
    assert_close(plain.state_dict(), model.merge_branches().state_dict())
    assert len(weights) - len(backbone) == (2 if part == 'model' else 0)
    # Without branches, the conversion changes nothing.
    argv = ['plain.pth', 'again.pth', '--part', part, '--deploy']
    tool('convert_checkpoint').main(argv)
    assert 'there are no parallel branches' in capsys.readouterr().out
    again = torch.load('again.pth', weights_only=True)['state_dict']
    assert_close(again, weights, rtol=0, atol=0)


def test_a_training_checkpoint_is_kept_without_the_flag(
    tool, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    checkpoint, _ = classifier((5, 'identity'))
    torch.save(checkpoint, 'training.pth')
    tool('convert_checkpoint').main(['training.pth', 'same.pth'])
    assert "with reparam=(5, 'identity')" in capsys.readouterr().out
    weights = torch.load('same.pth', weights_only=True)['state_dict']
    assert_close(weights, checkpoint['state_dict'], rtol=0, atol=0)


def test_half_precision_converts(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint, model = classifier()
    # Statistics in float32, as autocast and some trainers leave them.
    half = {
        k: v if 'running' in k or not v.is_floating_point() else v.half()
        for k, v in checkpoint['state_dict'].items()
    }
    torch.save(dict(state_dict=half), 'half.pth')
    result = tool('convert_checkpoint').main(['half.pth', 'x.pth', '--deploy'])
    assert {v.dtype for v in result.weights.values()} == {torch.float16}
    name = 'stages.0.blocks.0.mlp.context.conv.weight'
    merged = model.merge_branches().state_dict()[name]
    got = result.weights[f'backbone.{name}'].float()
    assert_close(got, merged, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ('change', 'flags', 'message'),
    [
        (
            lambda w: drop(w, 'stages.1.blocks.0.mlp.context.branches'),
            ['--deploy'],
            'cannot be merged in backbone.stages.1.blocks.0.*: .*Missing',
        ),
        (
            lambda w: drop(w, '.3x3.norm.running_var'),
            ['--deploy'],
            'training.pth has parallel branches.*running_var',
        ),
        (
            lambda w: {k.replace('3x3', '9x9'): v for k, v in w.items()},
            ['--deploy'],
            r'reparam=\(9, .*cannot be merged.*odd kernel sizes below 7',
        ),
        (
            lambda w: drop(w, 'stages.1.blocks.0.mlp.context.branches'),
            [],
            'the file lacks stages.1.blocks.0.mlp.context.branches',
        ),
        (dict, ['--config', 'plain.py'], 'training.pth does not.*--deploy'),
    ],
)
def test_checkpoint_that_cannot_be_converted_is_refused(
    tool, tmp_path, monkeypatch, change, flags, message
):
    monkeypatch.chdir(tmp_path)
    Path('plain.py').write_text(
        f"_base_ = '{ROOT}/configs/cls/efficientmod_xxs_in1k.py'\n"
    )
    checkpoint, _ = classifier()
    weights = change(checkpoint['state_dict'])
    torch.save(dict(state_dict=weights), 'training.pth')
    with pytest.raises(CheckpointError, match=message):
        tool('convert_checkpoint').main(['training.pth', 'x.pth', *flags])
    assert not Path('x.pth').exists()


def test_conversion_by_either_config_gives_one_result(
    tool, tmp_path, monkeypatch
):
    """By the plain one or that with branches; the arch is a dict."""
    monkeypatch.chdir(tmp_path)
    text = """
_base_ = '{}/configs/cls/efficientmod_xxs_in1k.py'
model = dict(
    backbone=dict(arch={}, reparam={}),
    head=dict(in_channels=32, num_classes=5),
)
"""
    for name, reparam in ('plain', None), ('branches', True):
        arch = dict(TINY, _delete_=True)
        Path(f'{name}.py').write_text(text.format(ROOT, arch, reparam))
    model = build_model(Config.fromfile('branches.py'))
    torch.save(dict(state_dict=model.state_dict()), 'training.pth')
    convert = tool('convert_checkpoint').main
    for name in 'plain', 'branches':
        argv = ['training.pth', f'{name}.pth', '--deploy', '--config']
        convert([*argv, f'{name}.py'])
    one, two = (
        torch.load(f'{name}.pth', weights_only=True)['state_dict']
        for name in ('plain', 'branches')
    )
    assert_close(one, two, rtol=0, atol=0)
    # A plain checkpoint fits a model with branches, as when it is loaded.
    convert(['plain.pth', 'same.pth', '--config', 'branches.py'])


# ----------------------------------------------------------------- the configs

# Two steps and two images.
FEW = [
    'train_cfg.max_epochs=1',
    'train_dataloader.dataset.indices=4',
    'train_dataloader.batch_size=2',
    'test_dataloader.dataset.indices=2',
    'val_cfg=None',
    'val_dataloader=None',
    'val_evaluator=None',
]
RUNS = {
    'cls/efficientmod_{}_in1k.py': FEW,
    'seg/fpn_efficientmod_{}_ade20k.py': [
        'train_cfg.max_iters=2',
        'default_hooks.checkpoint.interval=2',
        *FEW[1:],
    ],
    # The scores of an untrained model are low.
    'det/mask_rcnn_efficientmod_{}_fpn_1x_coco.py': [
        *FEW,
        'model.test_cfg.rcnn.score_thr=0',
        'model.test_cfg.rcnn.max_per_img=3',
        'model.train_cfg.rcnn.sampler.num=32',
    ],
}


def train(tool, config, *options):
    """Two steps; the runner and the checkpoint."""
    runner = tool('train').main(
        [config, '--mini', '--work-dir', 'run', '--cfg-options', *options]
    )
    assert runner.iter == 2
    (path,) = map(str, Path('run').glob('*_[12].pth'))
    return runner, path


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(
            name,
            id=name[:3],
            marks=[pytest.mark.slow] if name.startswith('det') else [],
        )
        for name in RUNS
    ],
)
@pytest.mark.parametrize(
    'arch', ['s', pytest.param('s_conv', marks=pytest.mark.slow)]
)
def test_trained_checkpoint_converts_for_the_plain_config(
    tool, mini_place, name, arch
):
    config = str(ROOT / 'configs' / name.format(f'{arch}_reparam'))
    plain = str(ROOT / 'configs' / name.format(arch))
    runner, path = train(tool, config, *RUNS[name])
    assert runner.model.backbone.reparam == (3, 'identity')
    argv = [path, 'plain.pth', '--deploy', '--config', plain]
    result = tool('convert_checkpoint').main(argv)
    assert result.merged == (3, 'identity')


def test_checkpoints_are_tested_with_and_without_branches(tool, mini_place):
    """Scores are equal, and the plain config refuses branches."""
    name = 'cls/efficientmod_{}_in1k.py'
    plain = str(ROOT / 'configs' / name.format('xxs'))
    Path('branches.py').write_text(
        f"_base_ = '{plain}'\nmodel = dict(backbone=dict(reparam=True))\n"
    )
    options = ['--mini', '--cfg-options', *RUNS[name]]

    def scores(*argv):
        tool('test').main([*argv, '--out', 'out', *options])
        predictions = Path('out/predictions/predictions.pkl').read_bytes()
        return [x['pred_score'] for x in pickle.loads(predictions)]

    _, path = train(tool, 'branches.py', *RUNS[name])
    tool('convert_checkpoint').main([path, 'plain.pth', '--deploy'])
    expected = scores('branches.py', path)
    for argv in (
        ['branches.py', path, '--deploy'],
        [plain, 'plain.pth'],
        # Its branches start at zero, not from random weights.
        ['branches.py', 'plain.pth'],
    ):
        assert_close(scores(*argv), expected, rtol=1e-5, atol=1e-8)
    with pytest.raises(CheckpointError, match='--deploy, or build the model'):
        scores(plain, path)
