"""What can be checked of a GPU without one: shapes, dtypes and devices."""

import copy
import functools
import importlib
import itertools
import math

import numpy as np
import pytest
import stock
import torch
from fake_gpu import (
    NEEDS_FAKES,
    WithoutValues,
    backward,
    fake_gpu,
    to_fake_gpu,
)
from helpers import ROOT, TINY, TINY_EDGEVIT
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData, instance_data
from rivals import EFFICIENTFORMERS, FAMILIES, build
from torch import nn

from mmefficientmod import EdgeViT, EfficientMod
from mmefficientmod.config.files import load_config
from mmefficientmod.models.backbones import edgevit, efficientmod
from mmefficientmod.models.layers.fast_path import FastPath
from mmefficientmod.models.layers.memory_efficient import norm_linear
from mmefficientmod.swap.names import BACKBONES

SIZES = ((64, 64), (97, 97), (512, 768))
DTYPES = (None, torch.float16, torch.bfloat16)
# float16 has branches of its own, and autocast finds more than float32.
FAST_DTYPES = [
    pytest.param(
        dtype, marks=() if dtype == torch.float16 else pytest.mark.slow
    )
    for dtype in DTYPES
]
# One size of each family; other sizes run the same code.
SMALLEST = {*FAMILIES, 'efficientmod_xxs', 'mbconv_xs', 'edgevit_xxs'}
WITHOUT_CP = ('poolformer', 'van')
# Every kind of block of this package.
OWN = {
    'modulation': lambda: EfficientMod(TINY, drop_path_rate=0.1),
    'reparam': lambda: EfficientMod(TINY, reparam=True, final_norm=True),
    'mbconv': lambda: EfficientMod({**TINY, 'block': 'mbconv'}),
    'no layer scale': lambda: EfficientMod(TINY, layer_scale_init_value=0),
    'EdgeViT': lambda: EdgeViT(
        TINY_EDGEVIT, final_norm=True, drop_path_rate=0.1
    ),
}
DEPLOYED = {
    'deployed': lambda: EfficientMod(TINY, reparam=True).switch_to_deploy(),
    'merged': lambda: EfficientMod(TINY, reparam=True).merge_branches(),
    'repvit': lambda: build('repvit_m0_9').switch_to_deploy(),
}


@pytest.fixture
def on_path(monkeypatch):
    """Call a function with the fast path of each block on or off.

    With fake tensors it would be off, as with each other subclass of Tensor.
    """

    def call(is_fast, function, *args):
        calls = []
        run = FastPath.__call__

        def record(self, block, x):
            calls.append(block)
            return run(self, block, x)

        with monkeypatch.context() as patch:
            patch.setattr(FastPath, '__call__', record)
            for module in edgevit, efficientmod:
                patch.setattr(module, 'may_run', lambda *_: is_fast)
            result = function(*args)
        assert bool(calls) == is_fast
        return result

    return call


@functools.cache
def backbone(name, with_cp=False):
    """The backbone of a name on the fake GPU; it takes no memory."""
    options = dict(with_cp=True) if with_cp else {}
    return to_fake_gpu(train(build(name, **options)))


def train(model):
    """The model in training mode; ``train`` of some toolboxes gives None."""
    model.train()
    return model


def image(size, device='cuda', dtype=torch.float32):
    return torch.empty(2, 3, *size, device=device, dtype=dtype)


def layouts(tensors):
    return [(x.device.type, x.dtype, x.shape) for x in tensors]


def run(model, size, dtype, grad=True):
    """Device, dtype and shape of each output."""
    with fake_gpu(dtype), torch.set_grad_enabled(grad):
        return layouts(model(image(size)))


def is_own(name):
    return name.startswith(('efficientmod_', 'mbconv', 'edgevit'))


def cases():
    """Names with all sizes, dtypes and options; a part of them is fast."""
    for name in BACKBONES:
        has_cp = not name.startswith(WITHOUT_CP)
        fast = [((97, 97), torch.float16, has_cp)]
        if name == 'efficientmod_xxs':
            fast += [
                ((64, 64), None, False),
                ((512, 768), torch.bfloat16, False),
            ]
        options = (False, True) if has_cp else (False,)
        for case in itertools.product(SIZES, DTYPES, options):
            size, dtype, with_cp = case
            is_fast = name in SMALLEST and case in fast
            yield pytest.param(
                name,
                *case,
                marks=() if is_fast else pytest.mark.slow,
                id=f'{name}-{size}-{dtype}' + '-with_cp' * with_cp,
            )


@NEEDS_FAKES
@pytest.mark.parametrize(('name', 'size', 'dtype', 'with_cp'), [*cases()])
def test_backbones_run_on_a_gpu(name, size, dtype, with_cp, on_path):
    model = backbone(name, with_cp)
    args = model, size, dtype
    found = on_path(True, run, *args) if is_own(name) else run(*args)
    # The stem of PoolFormer pads less than half of its kernel.
    step = math.floor if name.startswith('poolformer') else math.ceil
    for (device, _, shape), level in zip(found, range(4), strict=True):
        assert device == 'cuda'
        assert shape[2:] == tuple(step(x / 4 / 2**level) for x in size)
    if is_own(name):
        assert found == on_path(False, run, *args)
    else:  # layers of PyTorch, timm and MMPretrain
        assert {x[1] for x in found} <= {torch.float32, dtype}


@NEEDS_FAKES
def test_tensor_on_the_cpu_is_found():
    class Shift(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + torch.ones(3, 1, 1)

    model = to_fake_gpu(Shift(3, 3, 1))
    with fake_gpu(), pytest.raises(RuntimeError, match='cuda.*cpu'):
        model(image((8, 8)))


@NEEDS_FAKES
@pytest.mark.parametrize('dtype', FAST_DTYPES)
@pytest.mark.parametrize(
    'name',
    [
        pytest.param('efficientformer_l1', marks=pytest.mark.slow),
        'efficientformerv2_s0',
    ],
)
def test_resized_biases_keep_the_dtypes_of_timm(name, dtype):
    import timm

    model = to_fake_gpu(timm.create_model(name, num_classes=0))
    with fake_gpu(dtype):
        expected = model.forward_intermediates(
            image((224, 224)), intermediates_only=True
        )
    assert run(backbone(name), (224, 224), dtype) == layouts(expected)


@NEEDS_FAKES
@pytest.mark.parametrize('dtype', FAST_DTYPES)
@pytest.mark.parametrize('kind', OWN)
def test_backward_passes_run_on_a_gpu(kind, dtype, on_path):
    model = to_fake_gpu(OWN[kind]())
    with fake_gpu(dtype):
        outs = on_path(True, model, image((65, 50)))
    with fake_gpu():  # gradients are computed outside of autocast
        grads = backward(outs)
    assert layouts(grads[p] for p in model.parameters()) == layouts(
        model.parameters()
    )


@NEEDS_FAKES
def test_half_precision_is_normalised_in_float32_as_by_autocast():
    norm, layer = map(to_fake_gpu, (nn.LayerNorm(8), nn.Linear(8, 8)))
    with fake_gpu(torch.float16):
        x = torch.empty(2, 8, device='cuda', dtype=torch.float16)
        (out,) = norm_linear(x.requires_grad_(), norm, layer)
        # The backward pass normalises it again, outside of autocast.
        saved, *_ = out.grad_fn.saved_tensors
        assert norm(x).dtype == saved.dtype == torch.float32
    with fake_gpu():
        assert backward([out])[x].dtype == torch.float16


@NEEDS_FAKES
@pytest.mark.parametrize('dtype', FAST_DTYPES)
@pytest.mark.parametrize('kind', OWN | DEPLOYED)
def test_inference_runs_on_a_gpu(kind, dtype, on_path):
    model = to_fake_gpu((OWN | DEPLOYED)[kind]().eval())
    args = model, (97, 97), dtype, False
    if kind == 'repvit':
        assert {x[0] for x in run(*args)} == {'cuda'}
        return
    found = on_path(True, run, *args)
    assert {x[0] for x in found} == {'cuda'}
    assert found == on_path(False, run, *args)


# ---------------------------------------------------------- models to the loss


def seg_samples(device):
    from mmseg.structures import SegDataSample

    labels = torch.zeros(2, 1, 64, 64, dtype=torch.long, device=device)
    samples = []
    for label in labels:
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    return samples


def cls_samples(device):
    from mmpretrain.structures import DataSample

    labels = torch.zeros(2, 1, dtype=torch.long, device=device)
    return [DataSample().set_gt_label(label) for label in labels]


def det_samples(device):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1, 1)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(3, 4, device=device),
            labels=torch.zeros(3, dtype=torch.long, device=device),
            masks=BitmapMasks(np.zeros((3, 64, 64), np.uint8), 64, 64),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4, device=device),
            labels=torch.zeros(0, dtype=torch.long, device=device),
        )
        samples.append(sample)
    return samples


CONFIGS = {
    'fpn': 'seg/fpn_efficientmod_s_reparam_ade20k.py',
    'classifier': 'cls/efficientmod_xxs_in1k.py',
    'mask_rcnn': 'det/mask_rcnn_efficientmod_s_fpn_1x_coco.py',
    'distilled classifier': 'cls/efficientmod_xxs_in1k.py',
    'distilled segmentor': 'seg/fpn_efficientmod_xxs_ade20k.py',
}
SAMPLES = {'seg': seg_samples, 'cls': cls_samples, 'det': det_samples}


def tiny(name):
    """A config with the smallest backbone."""
    cfg = load_config(str(ROOT / 'configs' / name))
    cfg.model.backbone.arch = TINY
    if 'neck' in cfg.model and 'in_channels' in cfg.model.neck:
        cfg.model.neck.in_channels = list(TINY['dims'])
    else:
        cfg.model.head.in_channels = TINY['dims'][-1]
    if 'rpn_head' in cfg.model:
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
    return cfg


def build_task(kind):
    """The model of a task in training mode, with its teacher."""
    cfg = tiny(CONFIGS[kind])
    if kind.startswith('distilled'):
        teacher = copy.deepcopy(cfg.model)
        cfg.model.type = {
            'mmseg': 'mmefficientmod.DistilledSegmentor',
            'mmpretrain': 'mmefficientmod.DistilledClassifier',
        }[cfg.default_scope]
        cfg.model.teacher = dict(model=teacher, checkpoint='random')
    model = stock.build(cfg).train()
    if hasattr(model, 'teacher'):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model.teacher(torch.zeros(1, 3, 64, 64))  # builds the network
    return model


@pytest.fixture(params=CONFIGS)
def task(request, monkeypatch):
    """A model in training mode, and a function for its annotations."""
    if request.param == 'mask_rcnn':
        # NumPy cuts the masks of proposals out, and needs values. The module
        # has the name of a function in its package.
        monkeypatch.setattr(
            importlib.import_module('mmdet.structures.mask.mask_target'),
            'mask_target_single',
            lambda proposals, *_: proposals.new_zeros(len(proposals), 28, 28),
        )
        # MMEngine knows indices on a CPU and a GPU only.
        known = instance_data.IndexType
        monkeypatch.setattr(instance_data, 'IndexType', known | torch.Tensor)
    return build_task(request.param), SAMPLES[CONFIGS[request.param][:3]]


def loss_of(model, samples, device):
    """The sum of the losses of two images."""
    losses = model.loss(image((64, 64), device), samples(device))
    return model.parse_losses(losses)[0]


@NEEDS_FAKES
@pytest.mark.parametrize('dtype', FAST_DTYPES)
def test_models_compute_their_loss_on_a_gpu(task, dtype, on_path):
    model, samples = task
    to_fake_gpu(model)
    if hasattr(model, 'teacher'):
        to_fake_gpu(model.teacher.network)

    with fake_gpu(dtype):
        loss = on_path(True, loss_of, model, samples, 'cuda')
    assert (loss.device.type, loss.dtype) == ('cuda', torch.float32)


# ------------------------------------------------------------ backward on meta


def assert_has_gradients(model):
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert layouts([p.grad]) == layouts([p]), key


@pytest.mark.parametrize(
    'name',
    [
        # The others have layers of PyTorch, timm and MMPretrain only.
        pytest.param(
            name,
            marks=()
            if name in SMALLEST and (is_own(name) or name in EFFICIENTFORMERS)
            else pytest.mark.slow,
        )
        for name in BACKBONES
    ],
)
def test_backbones_have_gradients_on_meta(name):
    model = train(build(name).to('meta'))
    outs = model(image((97, 97), 'meta'))
    sum(x.mean() for x in outs).backward()
    assert_has_gradients(model)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('kind', OWN)
def test_blocks_have_gradients_on_meta(kind, dtype):
    model = OWN[kind]().to('meta', dtype).train()
    x = image((65, 50), 'meta', dtype).requires_grad_()
    sum(y.mean() for y in model(x)).backward()
    assert_has_gradients(model)
    assert layouts([x.grad]) == layouts([x])


def test_models_have_gradients_on_meta(task):
    model, samples = task
    if torch.__version__ < '2.3' and samples is cls_samples:
        pytest.skip('torch 2.1 has no one_hot on meta')
    model.to('meta')
    with WithoutValues():
        loss_of(model, samples, 'meta').backward()
    assert_has_gradients(model)
