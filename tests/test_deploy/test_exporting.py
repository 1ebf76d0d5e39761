"""tools/export.py: the files, their descriptions and checks; running them."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import ROOT
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from mmpretrain.models import ImageClassifier

from mmefficientmod import EfficientMod
from mmefficientmod.apis.inference import build_inferencer
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.checking import compare
from mmefficientmod.deploy.coreml_files import count_operators, write_coreml
from mmefficientmod.deploy.exported.base import shared_file
from mmefficientmod.deploy.exported.config import use_exported
from mmefficientmod.deploy.files import open_file
from mmefficientmod.deploy.layouts import lay_out


@pytest.fixture
def export(tool, small, tmp_path):
    """Exports a tiny model; returns the result and the file."""

    def run(task, *argv, name='model.onnx'):
        config, checkpoint, *backbone = small(task)
        path = tmp_path / name
        result = tool('export').main(
            [config, checkpoint, *backbone, '--out', str(path), *argv]
        )
        return result, path

    return run


def test_classifier_takes_any_number_of_raw_images(export, small, capsys):
    result, path = export(
        'cls', '--size', '64', '--batch', 'dynamic', '--preprocess'
    )
    assert [check.shape for check in result.checks] == [
        (1, 64, 64), (3, 64, 64),
    ]  # fmt: skip
    assert all(c.difference.largest < 1e-5 for c in result.checks)
    assert '3 x 64x64: scores: ' in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(path))
    (given,) = session.get_inputs()
    assert given.shape == ['batch', 64, 64, 3]
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (scores,) = session.run(None, {given.name: np.stack([image] * 2)})
    config, checkpoint, *backbone = small('cls')
    assert scores.shape == (2, 1000)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_description_is_in_the_file(export):
    _, path = export('seg', '--size', '64x96')
    file = open_file(path)
    assert file.described('task') == 'seg'
    assert file.described('classes')[:2] == ['wall', 'building']
    assert file.described('palette')[0] == [120, 120, 120]
    assert file.described('mean') == pytest.approx([123.675, 116.28, 103.53])
    assert file.described('channel_order') == 'rgb'
    assert file.described('size') == [64, 96]
    assert file.described('licence') == 'Apache-2.0'
    assert file.described('backbone') == 'EfficientMod'
    assert len(file.described('config_sha256')) == 64
    assert len(file.described('checkpoint_sha256')) == 64
    assert 'torch' in file.described('versions')
    assert file.input_shape == (1, 3, 64, 96)
    model = onnx.load(str(path))
    domains = {node.domain for node in model.graph.node}
    assert domains <= {'', 'ai.onnx'}


def test_segmentor_of_any_size_is_tested_as_its_checkpoint(
    export, tool, small, mini_place
):
    _, path = export('seg', '--cfg-options', 'crop_size=(64,96)')
    config, checkpoint, *backbone = small('seg')
    metrics = [
        tool('test').main([config, file, *backbone, '--mini', '--threads=1'])
        for file in (checkpoint, str(path))
    ]
    assert metrics[0] == metrics[1]
    assert 'mIoU' in metrics[0]


def test_classifier_is_tested_under_a_hook_that_copies_models(
    export, tool, small, mini_place
):
    _, path = export('cls', '--size', '64')
    config, checkpoint, *backbone = small('cls')
    assert 'EMAHook' in str(load_config(config).custom_hooks)
    metrics = [
        tool('test').main([config, file, *backbone, '--mini'])
        for file in (checkpoint, str(path))
    ]
    assert metrics[0] == pytest.approx(metrics[1])


def test_labels_of_a_segmentor(export, tool, small):
    options = ['--size', '64x96', '--preprocess', '--batch', '2']
    _, labels = export('seg', *options, '--output', 'labels')
    _, logits = export('seg', *options, name='logits.onnx')
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    found = open_file(labels).run(image)['labels']
    assert found.shape == (2, 64, 96)
    assert found.dtype == np.uint8
    expected = open_file(logits).run(image)['logits'].argmax(1)
    assert (found == expected).mean() > 0.999


@pytest.mark.parametrize('preprocess', [[], ['--preprocess']])
def test_predictions_are_those_of_the_checkpoint(export, small, preprocess):
    from mmefficientmod.swap.backbone import swap_backbone

    _, path = export('cls', *preprocess)
    config, checkpoint, _, backbone = small('cls')
    cfg = swap_backbone(load_config(config), backbone)
    image = np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)
    scores = [
        build_inferencer(cfg, file)(image)[0]['pred_scores']
        for file in (checkpoint, str(path))
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)


def test_backbone_alone(export, small):
    _, path = export('cls', '--part', 'backbone', '--size', '64')
    (level,) = open_file(path).run(torch.zeros(1, 3, 64, 64).numpy()).values()
    assert level.shape == (1, 32, 2, 2)


def test_float16_is_half_as_large(export):
    result, path = export('cls', '--size', '64', '--half', name='half.onnx')
    _, whole = export('cls', '--size', '64')
    assert path.stat().st_size < 0.7 * whole.stat().st_size
    assert result.checks[0].difference.largest < 2e-2


def test_openvino(export):
    pytest.importorskip('openvino')
    size = ['--batch', '2', '--size', '64x96']
    result, path = export('seg', *size, name='model.xml')
    assert {file.suffix for file in result.files} == {'.bin', '.xml'}
    assert result.checks[0].difference.largest < 1e-5
    file = open_file(path, threads=1)
    assert file.described('task') == 'seg'
    image = np.random.default_rng(0).normal(size=(2, 3, 64, 96))
    found = file.run(image.astype(np.float32))['logits']
    _, other = export('seg', *size)
    expected = open_file(other).run(image.astype(np.float32))['logits']
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


@pytest.mark.slow
def test_openvino_of_any_size_is_tested_as_its_checkpoint(
    export, tool, small, mini_place
):
    pytest.importorskip('openvino')
    _, path = export(
        'seg', '--cfg-options', 'crop_size=(64,96)', name='model.xml'
    )
    config, checkpoint, *backbone = small('seg')
    metrics = [
        tool('test').main([config, file, *backbone, '--mini'])
        for file in (checkpoint, str(path))
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=0.02)


def test_ncnn(export):
    pytest.importorskip('ncnn')
    pytest.importorskip('pnnx')
    result, path = export('seg', '--size', '64x96', name='model.param')
    assert {x.suffix for x in result.files} == {'.bin', '.json', '.param'}
    assert result.checks[0].difference.largest < 1e-5
    file = open_file(path)
    assert file.described('classes')[0] == 'wall'
    with pytest.raises(ConfigError, match='another shape'):
        file.run(np.zeros((1, 3, 32, 64), np.float32))


@pytest.mark.parametrize('half', [[], ['--half']])
def test_coreml(export, half):
    coremltools = pytest.importorskip('coremltools')
    result, path = export('cls', *half, name='model.mlpackage')
    export('cls', *half, name='model.mlpackage')  # in its place
    (written,) = result.files
    assert written == path
    spec = coremltools.utils.load_spec(str(path))
    assert [x.name for x in spec.description.output] == ['scores']
    metadata = spec.description.metadata.userDefined
    assert json.loads(metadata['task']) == 'cls'


@pytest.mark.parametrize(
    ('arch', 'most'),
    [('s', 8), ('xxs', 3), ('s_conv', 0), ('xxs_conv', 0), ('xxs_phone', 0)],
)
def test_coreml_needs_few_transposes(arch, most, tmp_path):
    pytest.importorskip('coremltools')
    backbone = EfficientMod(arch).eval()
    program = write_coreml(
        lay_out(backbone, 'conv_means'),
        torch.zeros(1, 3, 64, 64),
        tmp_path / 'model.mlpackage',
        [f'level_{i}' for i in range(4)],
        {},
    )
    assert count_operators(program).get('transpose', 0) <= most


@pytest.mark.parametrize('name', ['model.param', 'model.mlpackage'])
@pytest.mark.parametrize(
    'argv', [['--size', 'dynamic'], ['--batch', '2'], ['--preprocess']]
)
def test_phones_take_one_normalised_image_of_one_size(export, name, argv):
    with pytest.raises(ConfigError, match='takes (one|normalised)'):
        export('cls', *argv, name=name)


def test_file_that_differs_is_not_written(export, tmp_path):
    with pytest.raises(ConfigError, match='differs from PyTorch for 1 images'):
        export('cls', '--size', '64', '--tolerance', '0')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--size', '12x'], '--size 12x is neither SIDE'),
        (['--size', '0'], '--size 0 is neither'),
        (['--batch', '0'], '--batch 0 is neither'),
        (['--batch', 'many'], '--batch many is neither'),
        (['--images', 'nowhere'], 'nowhere has no images'),
        (['--to', 'openvino'], 'must end in .xml for --to openvino'),
    ],
)
def test_wrong_arguments_end_in_one_sentence(export, argv, message):
    with pytest.raises(ConfigError, match=message):
        export('cls', *argv)


def test_file_of_another_task_is_refused(export, tool, small):
    _, path = export('cls', '--size', '64')
    config, _, *backbone = small('seg')
    with pytest.raises(ConfigError, match='is an export of the kind cls'):
        build_inferencer(config, str(path))


def foreign_file(path, inputs, **metadata):
    """An ONNX file that another program wrote."""
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    names = [f'input_{i}' for i in range(inputs)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('Identity', names[:1], ['y'])],
        'graph',
        [value(name, kind, [1, 3, 8, 8]) for name in names],
        [value('y', kind, [1, 3, 8, 8])],
    )
    opsets = [onnx.helper.make_opsetid('', 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, str(path))
    return str(path)


@pytest.mark.parametrize(
    ('inputs', 'metadata', 'message'),
    [
        (1, {}, 'has no description by tools/export.py'),
        (1, dict(task='detect'), 'has no description by tools/export.py'),
        (2, {}, 'has 2 inputs, and a file of'),
    ],
)
def test_file_of_another_program_is_refused(
    inputs, metadata, message, small, tmp_path
):
    path = foreign_file(tmp_path / 'other.onnx', inputs, **metadata)
    with pytest.raises(ConfigError, match=message):
        build_inferencer(small('cls')[0], path)


def test_exported_file_runs_a_config_without_scope(export, small, tmp_path):
    _, path = export('cls', '--size', '64')
    cfg = load_config(small('cls')[0])
    cfg.default_scope = None
    cfg.model.type = ImageClassifier
    file = use_exported(cfg, str(path))
    assert cfg.model.type == 'mmefficientmod.ExportedClassifier'
    assert shared_file(str(path)) is file


def test_options_of_a_checkpoint_are_refused(
    export, tool, small, mini_place, mini_root
):
    _, path = export('seg', '--size', '64x96')
    config, _, *backbone = small('seg')
    argv = [config, str(path), *backbone]
    for option in ('--deploy', '--fast-linear', '--tta'):
        with pytest.raises(ConfigError, match=f'{option} changes the model'):
            tool('test').main([*argv, '--mini', option])
    image = str(next(mini_root.rglob('*.jpg')))
    with pytest.raises(ConfigError, match='--fast-linear changes the model'):
        tool('predict').main([*argv, image, '--fast-linear'])
    with pytest.raises(ConfigError, match='on the CPU, not on cuda:0'):
        tool('predict').main([*argv, image, '--device', 'cuda:0'])


def test_description_beside_a_file_of_ncnn_is_checked(tmp_path):
    pytest.importorskip('ncnn')
    path = tmp_path / 'model.param'
    path.touch()
    with pytest.raises(ConfigError, match='cannot be run without'):
        open_file(path)
    for text in ('nothing', '[]', '{}'):
        path.with_suffix('.json').write_text(text)
        with pytest.raises(ConfigError, match='is not the description'):
            open_file(path)


def test_wrong_size_is_one_sentence(export):
    _, path = export('cls', '--size', '64')
    with pytest.raises(ConfigError, match=r'it takes \(1, 3, 64, 64\)'):
        open_file(path).run(np.zeros((1, 3, 32, 64), np.float32))


def test_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / 'model.onnx'
    path.write_text('nothing')
    with pytest.raises(ConfigError, match='cannot be read by ONNX Runtime'):
        open_file(path)


def test_equal_objects_in_another_order_are_equal():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (20, 2)).astype(np.float32)
    objects = dict(
        boxes=np.concatenate([low, low + 20], 1),
        scores=np.full(20, 0.5, np.float32),
        labels=np.arange(20) % 3,
    )
    order = rng.permutation(20)
    other = {k: v[order] for k, v in objects.items()}
    assert compare(other, objects).largest == 0
    assert compare(other, objects).within(1e-6)
    fewer = {k: v[:15] for k, v in objects.items()}
    assert not compare(fewer, objects).within(1e-2)
    moved = objects | dict(boxes=objects['boxes'] + 0.5)
    assert not compare(moved, objects).within(1e-3)
    assert compare(moved, objects).within(2e-2)


def test_nan_is_never_within_the_tolerance():
    expected = dict(scores=np.ones(3))
    assert not compare(dict(scores=np.full(3, np.nan)), expected).within(1e9)


def test_example_of_the_page_needs_numpy_and_onnxruntime_alone(
    export, monkeypatch, tmp_path
):
    export('cls', '--preprocess')
    page = (ROOT / 'docs/deploy.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', page, re.S)
    assert len([line for line in code.splitlines() if line]) <= 10
    run = subprocess.run(
        [sys.executable, '-X', 'importtime', '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() in IMAGENET_CATEGORIES
    assert 'torch' not in run.stderr


def test_description_is_json(export):
    _, path = export('cls', '--size', '64')
    for value in open_file(path).metadata.values():
        json.loads(value)
