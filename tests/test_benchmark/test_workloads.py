"""What is run of a model, and what it gets as input."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.inputs import (
    fix_proposals,
    fixed_boxes,
    random_annotations,
)
from mmefficientmod.benchmark.measure import measure_case
from mmefficientmod.benchmark.model_specs import (
    HOSTS,
    find_model_specs,
    parse_model_spec,
)
from mmefficientmod.benchmark.workloads import prepare
from mmefficientmod.config.files import find_config
from mmefficientmod.config.nodes import ConfigError

HAS_ONNXRUNTIME = all(map(importlib.util.find_spec, ('onnx', 'onnxruntime')))


def test_model_runs_in_the_dtype_of_the_case(place, case):
    model = parse_model_spec('own.py:Tiny').build()
    image = torch.rand(1, 3, 32, 32)
    for dtype, expected in (('fp32', torch.float32), ('bf16', torch.bfloat16)):
        work = prepare(model, replace(case, dtype=dtype), image)
        (out,) = work.run()
        assert out.dtype == expected
        assert not out.requires_grad


def test_compiled_models_are_compared_and_graph_breaks_counted(
    place, case, settings, monkeypatch
):
    compiler = torch.compile
    monkeypatch.setattr(
        torch, 'compile', lambda model: compiler(model, backend='eager')
    )
    specs = find_model_specs(['own.py:Tiny', 'own.py:Breaking'])
    for mode in ('compile', 'compile-train'):
        compiled = replace(case, mode=mode)
        (whole, broken), _ = measure_case(specs, compiled, settings)
        assert (whole.error, broken.error) == (None, None)
        assert whole.graph_breaks == 0 < broken.graph_breaks
        assert whole.compared_with == 'own.py:Tiny'
        assert whole.difference == 0
        assert whole.peak > 0
        assert bool(whole.saved) == compiled.training


@pytest.mark.skipif(not HAS_ONNXRUNTIME, reason='needs onnxruntime')
def test_exported_models_are_compared_with_themselves(place, case, settings):
    specs = find_model_specs(['efficientmod_xxs', 'own.py:Tiny'])
    settings = replace(settings, baselines=['efficientmod_xxs'])
    case = replace(case, mode='onnxruntime')
    ours, tiny = measure_case(specs, case, settings)[0]
    assert (ours.error, tiny.error) == (None, None)
    assert len(ours.times) == 2
    assert 0 < ours.difference < 1e-5
    assert tiny.compared_with == 'own.py:Tiny'
    case = replace(case, dtype='bf16')
    ours, _ = measure_case(specs, case, settings)[0]
    assert 'runs the exported model in fp32, not bf16' in ours.error


@pytest.mark.parametrize('mode', ['openvino', 'ncnn'])
def test_other_programs_run_the_same_model(place, case, settings, mode):
    for module in dict(openvino=('openvino', 'onnx'), ncnn=('ncnn', 'pnnx'))[
        mode
    ]:
        pytest.importorskip(module)
    specs = find_model_specs(['own.py:Tiny'])
    settings = replace(settings, baselines=['own.py:Tiny'])
    case = replace(case, mode=mode, batch=1)
    (tiny,) = measure_case(specs, case, settings)[0]
    assert tiny.error is None
    assert tiny.difference < 1e-5
    case = replace(case, dtype='fp16')
    (tiny,) = measure_case(specs, case, settings)[0]
    assert f'{mode} runs ' in tiny.error


@pytest.mark.skipif(not HAS_ONNXRUNTIME, reason='needs onnxruntime')
def test_layouts_of_exported_models(run_benchmark):
    (result,) = run_benchmark(
        'efficientmod_xxs@today', 'efficientmod_xxs@hybrid',
        'efficientmod_xxs', '--layout', 'tokens', '--mode', 'onnxruntime',
        '--inputs', '1x32', '--rounds', '1',
    )  # fmt: skip
    assert [row.model for row in result.rows] == [
        'efficientmod_xxs@today', 'efficientmod_xxs@hybrid',
        'efficientmod_xxs',
    ]  # fmt: skip
    sources = list(result.sources.values())
    assert [x.rpartition('@')[2] for x in sources] == [
        'today', 'hybrid', 'tokens',
    ]  # fmt: skip
    for row in result.rows:
        assert row.error is None
        assert row.published  # as that of the plain name
        assert 0 < row.difference < 1e-5


@pytest.mark.skipif(HAS_ONNXRUNTIME, reason='onnxruntime is installed')
def test_missing_onnxruntime_is_named(place, case, settings):
    specs = find_model_specs(['efficientmod_xxs', 'own.py:Tiny'])
    case = replace(case, mode='onnxruntime')
    for row in measure_case(specs, case, settings)[0]:
        assert "pip install 'mmefficientmod[export]'" in row.error


@pytest.mark.skipif(not HAS_ONNXRUNTIME, reason='needs onnxruntime')
def test_deployed_models_are_exported(run_benchmark):
    (result,) = run_benchmark('efficientmod_xxs', 'repvit_m0_9', '--deploy',
                          '--mode', 'onnxruntime', '--inputs', '1x32',
                          '--rounds', '1')  # fmt: skip
    for row in result.rows:
        assert row.error is None
        assert 0 < row.difference < 1e-5


def test_annotations_are_the_same_in_each_call_and_keep_the_rng_state():
    config = str(find_config(HOSTS['fpn'].config))
    model = parse_model_spec('resnet18', config).build()
    case = BenchmarkCase('train', 2, 16, 24, 'fp32', 1)
    before = torch.get_rng_state()
    first, second = (
        random_annotations(model, case, torch.device('cpu')) for _ in range(2)
    )
    assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    assert len(first) == 2
    for one, two in zip(first, second, strict=True):
        classes = one.gt_sem_seg.data
        assert classes.shape == (1, 16, 24)
        assert 0 <= classes.min() < classes.max() < model.num_classes
        assert torch.equal(classes, two.gt_sem_seg.data)


def test_model_of_no_toolbox_gets_no_annotations(case):
    with pytest.raises(ConfigError, match='Identity cannot be trained here'):
        random_annotations(torch.nn.Identity(), case, torch.device('cpu'))


def test_boxes_are_inside_an_image_of_few_pixels():
    boxes = fixed_boxes(50, 8, 40)
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= torch.tensor([40, 8]) + 1e-4).all()
    assert (boxes[:, 2:] - boxes[:, :2]).amin(0).tolist() == pytest.approx(
        [16, 8], rel=0.2
    )


@pytest.mark.slow
def test_proposals_are_the_same_for_each_model():
    config = str(find_config(HOSTS['mask_rcnn'].config))
    case = BenchmarkCase('train', 2, 96, 128, 'fp32', 1)
    found = []
    for name in ('mobilenetv2_100', 'efficientmod_xxs'):
        model = parse_model_spec(name, config).build()
        for few in model.train_cfg.rpn_proposal, model.rpn_head.test_cfg:
            few.max_per_img = 60
        fix_proposals(model, case)
        for mode, method in (('infer', 'forward'), ('train', 'loss')):
            work = prepare(
                model, replace(case, mode=mode), torch.rand(2, 3, 96, 128)
            )
            second_stage = getattr(model.roi_head, method)

            def spy(x, results, *others, second_stage=second_stage):
                found.append([result.bboxes for result in results])
                return second_stage(x, results, *others)

            setattr(model.roi_head, method, spy)
            work.run()
    assert len(found) == 4
    for images in found:
        for boxes in images:
            count = min(len(boxes), len(found[0][0]))
            assert count > 50
            assert_close(boxes[:count], found[0][0][:count])
            assert boxes.min() >= 0
            assert (boxes[:, 2:] - boxes[:, :2]).min() >= 15.9
            assert boxes[:, 2].max() <= 128
            assert boxes[:, 3].max() <= 96
