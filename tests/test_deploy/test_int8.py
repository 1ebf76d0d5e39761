"""tools/export.py --int8: calibration, check, report; what stays in float."""

import numpy as np
import onnx
import pytest
import stock
import torch
from small_data import write_image

from mmefficientmod.apis.calibrating import prepare_images
from mmefficientmod.apis.inference import build_inferencer
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model
from mmefficientmod.deploy import noise
from mmefficientmod.deploy.files import open_file
from mmefficientmod.deploy.images import spread_images
from mmefficientmod.deploy.int8 import LEAST_OPSET, check_int8, quantize_onnx
from mmefficientmod.deploy.noise import measure_noise
from mmefficientmod.deploy.onnx_files import OPSET, write_onnx
from mmefficientmod.swap.backbone import swap_backbone

pytest.importorskip('onnxruntime')
needs_opset = pytest.mark.skipif(
    OPSET < LEAST_OPSET, reason='this PyTorch writes no file for int8'
)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of images, whose colours differ."""
    folder = tmp_path_factory.mktemp('photos')
    for i in range(4):
        write_image(folder / f'{i:02}.png', 80 + i, 96)
    return folder


@pytest.fixture
def export(tool, small, photos, tmp_path):
    """Exports a tiny model in 8 bits; returns the result and the file."""

    def run(task, *argv, name='model.onnx', folder=photos):
        config, checkpoint, *backbone = small(task)
        path = tmp_path / 'out' / name
        path.parent.mkdir(exist_ok=True)
        result = tool('export').main(
            [config, checkpoint, *backbone, '--out', str(path), *argv]
            + ['--int8', '--calibrate', str(folder)]
        )
        return result, path

    return run


def quantised_nodes(path):
    """Layers of a file whose weights are 8 bits, and those in float."""
    graph = onnx.load(str(path)).graph
    types = {x.name: x.data_type for x in graph.initializer}
    made = {x: node for node in graph.node for x in node.output}
    int8, floats = [], []
    for node in graph.node:
        if node.op_type not in ('Conv', 'Gemm', 'MatMul'):
            continue
        weight = made.get(node.input[1])
        weight = weight.input[0] if weight is not None else node.input[1]
        is_int8 = types.get(weight) == onnx.TensorProto.INT8
        (int8 if is_int8 else floats).append(node)
    return int8, floats


@needs_opset
def test_classifier_with_a_report(export, capsys):
    result, path = export('cls', '--size', '64', '--report')
    file = open_file(path)
    assert file.described('precision') == 'int8'
    assert result.noise.ratios['scores'] > 20
    report = result.report
    assert set(report.outputs) == {'level_0', 'scores'}
    assert report.outputs['level_0'] > 20
    assert sum(x.share for x in report.slowest) == pytest.approx(1)
    int8, floats = quantised_nodes(path)
    assert len(report.worst) == len(int8)
    assert [x for _, x in report.worst] == sorted(x for _, x in report.worst)
    printed = capsys.readouterr().out
    for text in ('level_0', 'Slowest layers', 'Noisiest layers', ' dB'):
        assert text in printed
    model = onnx.load(str(path))
    assert {node.domain for node in model.graph.node} <= {'', 'ai.onnx'}
    assert [x.name for x in model.graph.output] == ['scores']
    # The first convolution, two products of the attention, and the
    # depth-wise 7x7 convolutions of the four other blocks, of both kinds.
    shapes = {x.name: list(x.dims) for x in model.graph.initializer}
    kept = [shapes.get(node.input[1], []) for node in floats]
    assert sum(shape == [] for shape in kept) == 2
    assert sum(shape[1:2] == [3] for shape in kept) == 1
    others = [x for x in kept if x and x[1] != 3]
    assert others
    assert all(shape[1:] == [1, 7, 7] for shape in others)


@needs_opset
def test_report_does_not_change_the_file(export):
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    image = image.astype(np.float32)
    scores = [
        open_file(export('cls', '--size', '64', *report)[1]).run(image)
        for report in ([], ['--report'])
    ]
    np.testing.assert_array_equal(scores[0]['scores'], scores[1]['scores'])


@needs_opset
def test_segmentor_of_any_size_and_raw_images(export):
    result, path = export(
        'seg', '--batch', 'dynamic', '--preprocess',
        '--cfg-options', 'crop_size=(64,96)',
        'test_dataloader.dataset.pipeline.1.scale=(96,64)',
    )  # fmt: skip
    assert result.noise.ratios['logits'] > 20
    assert len(result.checks) == 5  # of the float32 form
    image = np.zeros((2, 45, 70, 3), np.uint8)
    assert open_file(path).run(image)['logits'].shape[2:] == (45, 70)


@needs_opset
@pytest.mark.slow
def test_labels_and_several_images_at_once(export):
    result, path = export(
        'seg', '--size', '64x96', '--batch', '2', '--output', 'labels'
    )
    assert result.noise.equal > 0.8
    assert open_file(path).input_shape == (2, 3, 64, 96)


@needs_opset
@pytest.mark.slow
def test_openvino(export):
    pytest.importorskip('openvino')
    pytest.importorskip('nncf')
    result, path = export('cls', '--size', '64', '--report', name='model.xml')
    assert open_file(path).described('precision') == 'int8'
    assert result.noise.ratios['scores'] > 20
    assert set(result.report.outputs) == {'level_0', 'scores'}
    assert list(open_file(path).run(np.zeros((1, 3, 64, 64), np.float32))) == [
        'scores'
    ]
    assert result.report.slowest
    assert result.report.worst


@needs_opset
@pytest.mark.slow
def test_detector_computes_boxes_in_float(tmp_path):
    stock.import_toolbox('mmdet')
    from test_detection import RETINANET, image, small

    from mmefficientmod.deploy.detection import DetectorGraph

    graph = DetectorGraph(small(RETINANET))
    source, path = tmp_path / 'float.onnx', tmp_path / 'int8.onnx'
    write_onnx(graph, image(96, 64), source, graph.outputs, size=True)
    images = [image(96, 64, seed=i).numpy() for i in range(4)]
    quantize_onnx(source, path, images)
    found = open_file(path).run(images[0])
    assert len(found['boxes']) == len(found['scores']) > 0
    model = onnx.load(str(path))
    made = {x: node for node in model.graph.node for x in node.output}
    for node in model.graph.node:
        if node.op_type in ('NonMaxSuppression', 'Exp', 'TopK'):
            source_node = made[node.input[0]]
            assert source_node.op_type != 'DequantizeLinear'
    int8, _ = quantised_nodes(path)
    assert any('cls_convs' in node.name for node in int8)
    # They are a part of the layers before them.
    assert not any(node.op_type == 'Relu' for node in model.graph.node)


@needs_opset
def test_file_with_too_much_noise_is_not_written(
    export, tmp_path, monkeypatch
):
    # With random weights, ranges do not depend on the images, so that no
    # images make a file bad.
    monkeypatch.setattr(noise, 'LEAST_SQNR', 100.0)
    with pytest.raises(ConfigError, match='int8 differs too much .* dB'):
        export('cls', '--size', '64')
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--int8'], '--int8 needs --calibrate FOLDER'),
        (['--int8', '--half', '--calibrate', '.'], '--int8 and --half are'),
        (['--calibrate', '.'], '--calibrate has an effect with --int8 only'),
        (['--report'], '--report has an effect with --int8 only'),
        pytest.param(
            ['--size', '64', '--int8', '--calibrate', 'nowhere'],
            'nowhere has no images',
            marks=needs_opset,
        ),
    ],
)
def test_wrong_arguments_end_in_one_sentence(
    tool, small, tmp_path, argv, message
):
    out = ['--out', str(tmp_path / 'model.onnx')]
    with pytest.raises(ConfigError, match=message):
        tool('export').main([*small('cls'), *out, *argv])


@pytest.mark.skipif(OPSET >= LEAST_OPSET, reason='this PyTorch has the opset')
def test_older_pytorch_is_one_sentence():
    with pytest.raises(ConfigError, match='--int8 needs opset 20 of ONNX'):
        check_int8()


def test_images_are_those_that_the_test_gives_to_the_model(small, photos):
    config, checkpoint, _, backbone = small('cls')
    cfg = swap_backbone(load_config(config), backbone)
    path = photos / '00.png'
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    ((raw, normalised),) = prepare_images(
        cfg, 'mmpretrain', model.data_preprocessor, [path]
    )
    with torch.no_grad():
        scores = model(torch.from_numpy(normalised), mode='tensor').softmax(1)
    expected = build_inferencer(cfg, checkpoint)(str(path))[0]['pred_scores']
    np.testing.assert_allclose(scores[0], expected, rtol=1e-4)
    assert raw.shape == (1, 224, 224, 3)
    assert raw.dtype == np.uint8
    mean, std = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    again = ((raw - np.array(mean)) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(again, normalised, atol=1e-4)


def test_images_get_the_size_of_the_file_without_padding(small, photos):
    config, _, _, backbone = small('seg')
    cfg = swap_backbone(load_config(config), backbone)
    preprocessor = build_model(cfg).data_preprocessor
    paths = sorted(photos.iterdir())[:2]
    shapes = [
        [x.shape for x in pair]
        for pair in prepare_images(cfg, 'mmseg', preprocessor, paths, (33, 65))
    ]
    assert shapes == [[(1, 33, 65, 3), (1, 3, 33, 65)]] * 2


def test_images_are_taken_from_all_folders(tmp_path):
    for name in 'abc':
        for i in range(4):
            write_image(tmp_path / name / f'{i}.png', 2, 2)
    found = spread_images(str(tmp_path), 3)
    assert [path.parent.name for path in found] == ['a', 'b', 'c']
    assert len(spread_images(str(tmp_path), 100)) == 12


def test_noise_is_a_ratio_of_powers():
    exact = np.full((2, 5), 10.0, np.float32)
    pairs = [
        (dict(x=exact + 1), dict(x=exact)),
        (dict(x=exact), dict(x=exact)),
    ]
    first = measure_noise(pairs[:1])
    assert first.ratios['x'] == pytest.approx(20, abs=1e-4)
    assert measure_noise(pairs).ratios['x'] == pytest.approx(23.01, abs=0.01)
    assert first.is_low
    assert not measure_noise([(dict(x=exact * 2), dict(x=exact))]).is_low
    assert not measure_noise([(dict(x=exact * np.nan), dict(x=exact))]).is_low


def test_noise_of_objects_is_the_share_that_is_found():
    low = np.arange(10, dtype=np.float32)[:, None] * 30 + np.zeros((1, 2))
    objects = dict(
        boxes=np.concatenate([low, low + 20], 1),
        scores=np.array([0.9] * 8 + [0.2] * 2),
        labels=np.zeros(10, int),
    )
    moved = objects | dict(boxes=objects['boxes'] + 2)
    assert measure_noise([(moved, objects)]).equal == 1
    half = {k: v[4:] for k, v in objects.items()}
    assert measure_noise([(half, objects)]).equal == 0.5
    other = objects | dict(labels=np.ones(10, int))
    assert not measure_noise([(other, objects)]).is_low
    more = {k: np.concatenate([v, v + 900])[:14] for k, v in objects.items()}
    assert measure_noise([(more, objects)]).equal < 1
