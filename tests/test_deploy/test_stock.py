"""Stock models of the toolboxes, exported for any size and compared."""

import copy

import pytest
import torch
from mmengine.model import revert_sync_batchnorm

from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import build_model
from mmefficientmod.deploy.checking import compare
from mmefficientmod.deploy.files import open_file
from mmefficientmod.deploy.layouts import lay_out
from mmefficientmod.deploy.onnx_files import write_onnx
from mmefficientmod.deploy.rewriting import fix_random_bases
from mmefficientmod.deploy.tasks import build_graph
from mmefficientmod.models.layers.deploy import switch_to_deploy
from mmefficientmod.swap.backbone import swap_backbone

SEGMENTORS = (
    'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
    'ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
    'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
)
CLASSIFIERS = (
    'resnet/resnet18_8xb32_in1k.py',
    'mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'swin_transformer/swin-tiny_16xb64_in1k.py',
    'efficientnet/efficientnet-b0_8xb32_in1k.py',
    'convnext/convnext-tiny_32xb128_in1k.py',
    'deit/deit-tiny_4xb256_in1k.py',
)


def largest_difference(cfg, scope, path, shapes):
    """Largest difference between the file and PyTorch, over the shapes."""
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build_model(cfg))
    model.eval()
    fix_random_bases(model)
    plain = build_graph(model, scope)
    deployed = copy.deepcopy(model)
    switch_to_deploy(deployed)
    graph = build_graph(lay_out(deployed, 'hybrid'), scope)
    write_onnx(
        graph, torch.randn(shapes[0]), path, graph.outputs, batch=True,
        size=True,
    )  # fmt: skip
    file = open_file(path)
    differences = []
    for shape in shapes:
        image = torch.randn(shape)
        with torch.no_grad():
            values = plain.reference(image)
        expected = dict(zip(plain.outputs, values, strict=True))
        difference = compare(
            file.run(image.numpy()),
            {name: value.numpy() for name, value in expected.items()},
        )
        differences.append(difference.largest)
    return max(differences)


@pytest.mark.slow
@pytest.mark.parametrize('backbone', [None, 'efficientmod_xxs'])
@pytest.mark.parametrize('name', SEGMENTORS)
def test_stock_segmentors(name, backbone, tmp_path):
    cfg = load_config(f'mmseg::{name}')
    if backbone:
        cfg = swap_backbone(cfg, backbone)
    shapes = [(1, 3, 147, 205), (1, 3, 184, 186), (2, 3, 128, 256)]
    path = tmp_path / 'model.onnx'
    assert largest_difference(cfg, 'mmseg', path, shapes) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('backbone', [None, 'efficientmod_xxs'])
@pytest.mark.parametrize('name', CLASSIFIERS)
def test_stock_classifiers(name, backbone, tmp_path):
    if backbone and name.startswith('deit'):
        pytest.skip('its head reads tokens, which a pyramid does not have')
    cfg = load_config(f'mmpretrain::{name}')
    if backbone:
        cfg = swap_backbone(cfg, backbone)
    shapes = [(1, 3, 224, 224), (3, 3, 224, 224)]
    path = tmp_path / 'model.onnx'
    assert largest_difference(cfg, 'mmpretrain', path, shapes) < 1e-5
