"""One graph for all inputs: torch.jit.trace, torch.fx, torch.export."""

import pytest
import torch
from helpers import TINY, TINY_EDGEVIT, TINY_PHONE, randomise
from torch import fx
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor

from mmefficientmod import EdgeViT, EfficientMod
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    MBCONV_ARCHS,
)

NARROW = dict(dims=(8, 16, 24, 32))
MODELS = {
    # The variants' own depths, ratios and stochastic depth; few channels.
    **{
        arch: lambda settings=settings: EfficientMod({**settings, **NARROW})
        for arch, settings in (ARCHS | MBCONV_ARCHS).items()
    },
    'reparam': lambda: EfficientMod(TINY, reparam=True),
    'merged': lambda: EfficientMod(TINY, reparam=True).merge_branches(),
    'deployed': lambda: EfficientMod(TINY).switch_to_deploy(),
    'final norm': lambda: EfficientMod(
        TINY, final_norm=True, out_indices=(1, 3)
    ),
    'with_cp': lambda: EfficientMod(TINY, with_cp=True),
    'one stage': lambda: EfficientMod(TINY, out_indices=2, frozen_stages=1),
    'phone': lambda: EfficientMod(TINY_PHONE, final_norm=True),
    'phone, deployed': lambda: EfficientMod(TINY_PHONE).switch_to_deploy(),
    'EdgeViT': lambda: EdgeViT(TINY_EDGEVIT, final_norm=True),
}
IMAGE = torch.rand(1, 3, 64, 96)
OTHERS = torch.rand(2, 3, 97, 66), torch.rand(1, 3, 35, 40)

OLD_TORCH = pytest.mark.skipif(
    torch.__version__ < '2.5',
    reason="torch 2.1 cannot trace the random numbers of mmcv's DropPath",
)


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return randomise(MODELS[request.param]()).eval()


def assert_equal_outputs(traced, model):
    for image in (IMAGE, *OTHERS):
        assert_close(tuple(traced(image)), model(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('grad_mode', [True, False])
def test_jit_trace_passes_its_own_check(model, grad_mode):
    with torch.set_grad_enabled(grad_mode):
        traced = torch.jit.trace(model, IMAGE)  # checks by default
    assert_equal_outputs(traced, model)
    with torch.no_grad():
        assert_equal_outputs(traced, model)


def test_symbolic_trace_equals_the_model(model):
    traced = fx.symbolic_trace(model)
    assert_equal_outputs(traced, model)
    with torch.no_grad():
        assert_equal_outputs(traced, model)


@pytest.mark.parametrize('arch', ['xxs', 'mbconv_xs', 'reparam', 'EdgeViT'])
def test_symbolic_trace_in_training_mode_has_the_gradients(arch):
    torch.manual_seed(0)
    model = randomise(MODELS[arch]()).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0  # running statistics stay the same
    traced = fx.symbolic_trace(model)
    image = torch.rand(2, 3, 65, 50, dtype=torch.double)
    grads = []
    for one in (model, traced):
        sum(x.square().mean() for x in one(image)).backward()
        grads.append({name: p.grad for name, p in one.named_parameters()})
        model.zero_grad()  # the traced module has the same parameters
    assert_close(*grads, rtol=1e-6, atol=1e-8)


@OLD_TORCH
def test_symbolic_trace_in_training_mode_drops_paths():
    model = randomise(EfficientMod(TINY, drop_path_rate=0.5)).train()
    traced = fx.symbolic_trace(model)
    torch.manual_seed(0)
    expected = model(OTHERS[0])
    torch.manual_seed(0)
    assert_close(traced(OTHERS[0]), expected, rtol=1e-4, atol=1e-4)


def test_feature_extractor_returns_the_stages(model):
    # torchvision traces the training mode as well.
    if getattr(model, 'deployed', False):
        pytest.skip('a deployed model has no training mode')
    if torch.__version__ < '2.5':
        for module in model.modules():
            if hasattr(module, 'drop_prob'):
                module.drop_prob = 0.0
    names = [f'stages.{i}' for i in range(len(model.stages))]
    extractor = create_feature_extractor(model, names)
    for image in (IMAGE, *OTHERS):
        found = extractor(image)
        x = model.stem(image)
        for name, stage in zip(names, model.stages, strict=True):
            x = stage(x)  # (N, H, W, C)
            assert_close(found[name], x, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    torch.__version__ < '2.5', reason='torch.export settled in torch 2.5'
)
@pytest.mark.parametrize(
    ('arch', 'kwargs', 'grad_mode'),
    [
        (TINY, dict(), True),
        (TINY, dict(), False),
        (TINY, dict(reparam=True, with_cp=True), True),
        ({**TINY, 'block': 'mbconv'}, dict(final_norm=True), False),
    ],
    ids=['grad', 'no_grad', 'branches', 'mbconv'],
)
def test_export_takes_any_batch_and_size(arch, kwargs, grad_mode):
    model = randomise(EfficientMod(arch, **kwargs)).eval()
    # From 33 pixels on, the last level has more than one position; PyTorch
    # takes dimensions of size 1 as constant.
    batch = torch.export.Dim('batch', min=1, max=64)
    height, width = (
        torch.export.Dim(x, min=33, max=4096) for x in ('height', 'width')
    )
    with torch.set_grad_enabled(grad_mode):
        exported = torch.export.export(
            model,
            (torch.rand(2, 3, 64, 96),),
            dynamic_shapes=({0: batch, 2: height, 3: width},),
        )
    assert_equal_outputs(exported.module(), model)
