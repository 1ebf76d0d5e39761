"""EfficientMod in other memory layouts: the same outputs, in fewer steps."""

import copy
import functools

import pytest
import torch
from helpers import TINY, TINY_EDGEVIT, randomise
from torch import nn

from mmefficientmod import EdgeViT, EfficientMod
from mmefficientmod.deploy.graph import BackboneGraph
from mmefficientmod.deploy.layouts import LAYOUTS, lay_out
from mmefficientmod.deploy.layouts.dimensions import name_dimensions
from mmefficientmod.deploy.onnx_files import IMAGE, write_onnx
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    MBCONV_ARCHS,
)

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

TWINS = [layout for layout in LAYOUTS if layout != 'today']
TINY_MBCONV = dict(
    TINY, attn_depths=(0, 0, 0, 0), expand_ratios=(1.3, 3), block='mbconv'
)
VARIANTS = dict(
    plain=dict(arch=TINY),
    wide=dict(arch=dict(TINY, expand_ratios=(1, 4))),
    mbconv=dict(arch=TINY_MBCONV, final_norm=True),
    merged=dict(arch=TINY, reparam=True, final_norm=True),
    no_layer_scale=dict(arch=TINY, layer_scale_init_value=0.0),
    one_channel=dict(arch=TINY, in_channels=1),
    middle_levels=dict(arch=TINY, out_indices=(1, 2)),
    last_level=dict(arch=TINY, out_indices=-1, final_norm=True),
    frozen=dict(arch=TINY, frozen_stages=2, with_cp=True),
)


@functools.cache
def folded(name='plain'):
    """A variant with random weights, and the same folded."""
    kwargs = VARIANTS.get(name) or dict(arch=name, final_norm=True)
    model = randomise(EfficientMod(**kwargs)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model, copy.deepcopy(model).switch_to_deploy()


def twin(layout, name='plain'):
    return lay_out(copy.deepcopy(folded(name)[1]), layout)


def images(name, batch, *size):
    channels = folded(name)[0].stem.proj.in_channels
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, *size, generator=generator)


def assert_equal(outputs, expected):
    assert len(outputs) == len(expected)
    for output, reference in zip(outputs, expected, strict=True):
        output = torch.as_tensor(output)
        assert output.shape == reference.shape
        difference = (output - reference).abs().max()
        assert difference <= 1e-5 * reference.abs().max()


def assert_equal_to_plain(layout, name, *batches):
    """The twin in PyTorch, on batches of any size."""
    model, _ = folded(name)
    laid_out = twin(layout, name)
    for batch in batches:
        with torch.no_grad():
            outputs = laid_out(batch)
            assert_equal(outputs, model(batch))
            assert all(x.is_contiguous() for x in outputs)


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('layout', TWINS)
def test_twin_has_the_outputs_of_the_plain_module(layout, name):
    assert_equal_to_plain(layout, name, images(name, 2, 97, 71))


def write(layout, name, path):
    levels = len(folded(name)[0].out_strides)
    graph = BackboneGraph(twin(layout, name), levels)
    image = images(name, 2, 64, 96)
    write_onnx(graph, image, path, graph.outputs, batch=True, size=True)
    return onnx.load(path)


def assert_file_equal_to_plain(layout, name, path, *batches):
    model, _ = folded(name)
    file = name_dimensions(write(layout, name, path))
    assert {x.domain for x in file.opset_import} <= {'', 'ai.onnx'}
    onnx.save(file, path)
    session = onnxruntime.InferenceSession(
        path, providers=['CPUExecutionProvider']
    )
    for batch in batches:
        with torch.no_grad():
            expected = model(batch)
        assert_equal(session.run(None, {IMAGE: batch.numpy()}), expected)


@pytest.mark.parametrize('name', ['merged', 'mbconv', 'middle_levels'])
@pytest.mark.parametrize('layout', TWINS)
def test_file_takes_other_sizes_and_batches(layout, name, tmp_path):
    batches = images(name, 1, 64, 64), images(name, 3, 33, 130)
    path = tmp_path / 'model.onnx'
    assert_file_equal_to_plain(layout, name, path, *batches)


@pytest.mark.slow
@pytest.mark.parametrize('arch', [*ARCHS, *MBCONV_ARCHS])
@pytest.mark.parametrize('layout', TWINS)
def test_real_variant_as_twin_and_as_file(layout, arch, tmp_path):
    batches = images(arch, 1, 224, 224), images(arch, 2, 97, 130)
    assert_equal_to_plain(layout, arch, *batches)
    path = tmp_path / 'model.onnx'
    assert_file_equal_to_plain(layout, arch, path, *batches)


@pytest.mark.parametrize('layout', ['conv', 'hybrid'])
def test_equal_sizes_in_a_file_have_one_name(layout, tmp_path):
    graph = name_dimensions(write(layout, 'plain', tmp_path / 'x.onnx')).graph
    shapes = {
        x.name: [
            d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim
        ]
        for x in [*graph.value_info, *graph.output]
    }
    found = {'Add': 0, 'Mul': 0, 'Concat': 0}
    for node in graph.node:
        inputs = [shapes[x] for x in node.input if len(shapes.get(x, ())) == 4]
        if node.op_type in found and len(inputs) > 1:
            assert all(inputs[0]), node.name
            assert inputs == inputs[:1] * len(inputs), node.name
            found[node.op_type] += 1
    assert shapes['level_0'] == ['batch', 8, 'height_0', 'width_0']
    # The sums of all branches, the products with the context, and GELU's.
    assert found['Add'] == sum(TINY['depths']) + 2 * sum(TINY['attn_depths'])
    assert found['Mul'] >= sum(TINY['depths'])


def operations(layout, name, path):
    return [node.op_type for node in write(layout, name, path).graph.node]


def test_only_whole_blocks_of_channels_are_concatenated(tmp_path):
    graph = name_dimensions(write('conv', 'wide', tmp_path / 'x.onnx')).graph
    channels = {
        x.name: x.type.tensor_type.shape.dim[1].dim_value
        for x in graph.value_info
        if len(x.type.tensor_type.shape.dim) == 4
    }
    found = [
        [channels[x] for x in node.input]
        for node in graph.node
        if node.op_type == 'Concat' and node.input[0] in channels
    ]
    # One block in two has a ratio above 1; 8 and 24 channels are doubled by
    # the convolution before.
    assert found == [[16] * 2, [16] * 4]


def test_means_need_no_permutes(tmp_path):
    found = operations('conv_means', 'mbconv', tmp_path / 'model.onnx')
    assert 'Conv' in found
    assert not {'Transpose', 'LayerNormalization'} & set(found)


def test_tokens_need_no_linear_layer_of_more_dimensions(tmp_path):
    found = operations('tokens', 'plain', tmp_path / 'model.onnx')
    attention = sum(TINY['attn_depths'])
    modulation = sum(TINY['depths'])
    assert found.count('MatMul') == 2 * attention  # with keys, with values
    assert found.count('Gemm') == 6 * attention + 4 * modulation
    assert found.count('Conv') == 4 + modulation


def test_twin_has_what_necks_read():
    model, _ = folded('middle_levels')
    for layout in TWINS:
        laid_out = twin(layout, 'middle_levels')
        for name in ('out_indices', 'out_channels', 'out_strides'):
            assert getattr(laid_out, name) == getattr(model, name)


def test_only_the_backbones_of_a_model_are_replaced():
    class Other(EfficientMod):
        pass

    model = nn.Module()
    model.backbone = EfficientMod(TINY)
    model.parts = nn.ModuleList(
        [EdgeViT(TINY_EDGEVIT), Other(TINY), EfficientMod(TINY)]
    )
    kept = model.parts[0], model.parts[1]
    assert lay_out(model, 'conv') is model
    assert not isinstance(model.backbone, EfficientMod)
    assert not isinstance(model.parts[2], EfficientMod)
    assert (model.parts[0], model.parts[1]) == kept
    image = images('plain', 1, 64, 64)
    with torch.no_grad():
        assert [x.shape[1] for x in model.backbone(image)] == [8, 16, 24, 32]


def test_model_that_is_not_folded_is_folded():
    model = randomise(EfficientMod(TINY)).eval()
    image = images('plain', 1, 64, 64)
    with torch.no_grad():
        expected = model(image)
        assert_equal(lay_out(model, 'tokens')(image), expected)


def test_today_leaves_the_model_as_it_is():
    _, model = folded()
    assert lay_out(model, 'today') is model
    assert isinstance(model, EfficientMod)


def test_unknown_layout_is_refused():
    with pytest.raises(ValueError, match='no layout .*; there are today, '):
        lay_out(folded()[1], 'fastest')


@pytest.mark.parametrize('place', ['stem.proj', 'stages.1.downsample.norm'])
def test_layer_that_computes_something_else_is_refused(place):
    model = copy.deepcopy(folded()[1])
    layer = model.get_submodule(place)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(RuntimeError, match='needs plain layers'):
        lay_out(model, 'conv')
