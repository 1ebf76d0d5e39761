"""The benchmark: what it measures, keeps and refuses; nothing is timed."""

import csv
import importlib.util
import itertools
import json
import os
import weakref
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from matplotlib.text import Text
from torch import nn
from torch.testing import assert_close
from torch.utils.benchmark import Measurement, TaskSpec

from mmefficientmod import EfficientMod
from mmefficientmod.analysis.memory import peak_bytes, saved_bytes
from mmefficientmod.benchmark import measure
from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.figures import (
    growth_figure,
    latency_figure,
    pareto,
)
from mmefficientmod.benchmark.inputs import give_proposals
from mmefficientmod.benchmark.measure import PARTS, Row, Settings, measure_case
from mmefficientmod.benchmark.model_specs import (
    WITHIN,
    find_model_specs,
    parse_model_spec,
)
from mmefficientmod.benchmark.official import weights_key
from mmefficientmod.benchmark.published import RIVALS, published
from mmefficientmod.benchmark.results import Result
from mmefficientmod.benchmark.tables import attention_crossover, overview
from mmefficientmod.benchmark.workloads import prepare
from mmefficientmod.config.files import find_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.backbones.efficientmod import ModulationMlp
from mmefficientmod.swap.names import BACKBONES

ROOT = Path(__file__).parents[1]
CASE = BenchmarkCase('infer', 1, 32, 32, 'fp32', 1)
SETTINGS = Settings(torch.device('cpu'), rounds=2, baselines=['own.py:Tiny'])
HAS_ORT = all(map(importlib.util.find_spec, ('onnx', 'onnxruntime')))

# A user's file.
OWN = """
import torch
from torch import nn

from mmefficientmod import EfficientMod


class Tiny(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.conv(x).relu()


class Other(Tiny):
    pass


class Broken(Tiny):
    def forward(self, x):
        raise RuntimeError('out of list[luck]\\n and more of it')


class Breaking(Tiny):
    def forward(self, x):
        x = self.conv(x)
        torch._dynamo.graph_break()
        return x.relu()


class Foldable(Tiny):
    scale = 3.0

    def forward(self, x):
        return self.conv(x) * self.scale

    def switch_to_deploy(self):
        self.conv.weight.data *= self.scale
        self.conv.bias.data *= self.scale
        self.scale = 1.0


class Misfolded(Foldable):
    def switch_to_deploy(self):
        self.scale = 1.0


class Derived(EfficientMod):
    pass


not_a_module = 1
"""

# Stands in for the authors' file: the same names, around our own blocks.
OFFICIAL = """
from torch import nn

from mmefficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod import PatchEmbed


class Embed(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.proj, self.norm = ours.proj, ours.norm

    def forward(self, x):
        return PatchEmbed.forward(self, x.permute(0, 3, 1, 2))


class Layer(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks = blocks
        self.downsample = downsample and Embed(downsample)


class Model(nn.Module):
    def __init__(self, arch):
        super().__init__()
        ours = EfficientMod(arch)
        downs = [stage.downsample for stage in ours.stages[1:]] + [None]
        self.patch_embed = Embed(ours.stem)
        self.layers = nn.ModuleList(
            Layer(stage.blocks, down)
            for stage, down in zip(ours.stages, downs)
        )
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)


def efficientMod_xxs(): return Model('xxs')
def efficientMod_xs(): return Model('xs')
def efficientMod_s(): return Model('s')
def efficientMod_s_Conv(): return Model('s_conv')
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a user's file and one like the authors'."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own.py').write_text(OWN)
    (tmp_path / 'official.py').write_text(OFFICIAL)
    return tmp_path


@pytest.fixture
def run(tool, place):
    def main(*argv):
        return tool('benchmark').main([*argv, '--threads', '1'])

    return main


class FakeTimer:
    """Takes as long as it was told, and keeps who had its turn.

    Attributes:
        plan: Seconds, or an error, for each turn, by the order of building.
        turns: Which of the models ran.
    """

    plan = ()
    turns = ()
    made = 0

    def __init__(self, stmt, globals, num_threads):
        self.number = FakeTimer.made
        FakeTimer.made += 1
        self.left = list(self.plan[self.number])

    def blocked_autorange(self, min_run_time):
        FakeTimer.turns.append(self.number)
        now = self.left.pop(0)
        if isinstance(now, BaseException):
            raise now
        return Measurement(1, [now], TaskSpec('run()', 'pass'))


@pytest.fixture
def timer(monkeypatch):
    monkeypatch.setattr(measure, 'Timer', FakeTimer)
    FakeTimer.turns, FakeTimer.made = [], 0
    return FakeTimer


# ------------------------------------------------------------------ measuring


def test_rows_and_files(run, place, capsys):
    results = run(
        'efficientmod_xxs', 'official:official.py:efficientMod_xxs',
        'own.py:Broken', '--mode', 'infer', 'train', '--inputs', '1x32',
        '1x32x64', '--rounds', '2', '--baseline', 'official:xxs',
        '--out', 'new/out',
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert [str(r.case) for r in results] == [
        'infer, 1x3x32x32, fp32, 1 thread',
        'train, 1x3x32x32, fp32, 1 thread',
        'infer, 1x3x32x64, fp32, 1 thread',
        'train, 1x3x32x64, fp32, 1 thread',
    ]
    for result in results:
        ours, official, broken = result.rows
        assert result.finished
        assert result.title in shown
        for row in (ours, official):
            assert len(row.times) == 2
            assert row.error is None
            assert row.params == 4478752
            assert row.flops == ours.flops > 0
            assert row.difference <= 1e-5
            assert row.compared_with == 'official:xxs'
            assert row.peak > 4 * row.params
            # Training is what saves memory for the way back.
            assert bool(row.saved) == result.case.training
        assert official.ratio_to(official) == 1
        assert ours.published == official.published
        assert ours.published['top1'] == 76.0
        assert broken.published == {}
        assert broken.error == 'RuntimeError: out of list[luck]'
        assert not broken.times
    assert 'own.py:Broken: RuntimeError: out of list[luck]' in shown

    out = place / 'new/out'
    written = json.loads((out / 'results.json').read_text())
    assert written['machine']['torch'] == torch.__version__.split('+')[0]
    assert written['machine']['cpu'] in shown
    assert [Result.from_dict(x) for x in written['results']] == results
    with (out / 'results.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[3]['mode'] == 'train'
    for kind in 'peak', 'saved':
        assert float(rows[3][f'{kind}_mb']) * 1e6 == pytest.approx(
            getattr(results[1].rows[0], kind)
        )
        assert rows[4][f'{kind}_ratio'] == '1.0'
    assert float(rows[1]['ratio']) == 1
    assert rows[2]['error'] == 'RuntimeError: out of list[luck]'
    assert all(row['cpu'] == written['machine']['cpu'] for row in rows)
    text = (out / 'results.md').read_text()
    assert written['machine']['cpu'] in text
    table = [x for x in text.splitlines() if x.startswith('|')]
    assert len({x.count('|') for x in table[:5]}) == 1
    for name in ('latency.png', 'growth.png'):
        assert cv2.imread(str(out / name)) is not None


def test_each_has_the_baseline_of_its_weights(place, timer):
    models = ['efficientmod_xxs', 'own.py:Derived(arch="xs")', 'own.py:Tiny']
    bases = ['own.py:Derived(arch="xxs")', 'efficientmod_xs']
    timer.plan = [[1, 1], [2, 2], [3, 3], [10, 10], [100, 100]]
    settings = replace(SETTINGS, baselines=bases)
    rows, _ = measure_case(find_model_specs(models + bases), CASE, settings)
    assert [row.baseline for row in rows] == [*bases, bases[0], *bases]
    assert [row.difference is not None for row in rows] == [
        True, True, False, True, True
    ]  # fmt: skip
    result = Result.planned([], CASE, settings, None)
    result.rows = rows
    assert [row.ratio_to(result.baseline_of(row)) for row in rows] == [
        0.1, 0.02, 0.3, 1, 1
    ]  # fmt: skip


def test_models_take_turns_and_ratios_are_of_rounds(place, timer):
    # The machine slows down by half each round; the second always takes
    # twice as long as the first but for one disturbed round.
    timer.plan = [[1, 2, 4, 8], [2, 4, 80, 16]]
    candidates = find_model_specs(['own.py:Tiny', 'own.py:Other'])
    steps = []
    rows, finished = measure_case(
        candidates, CASE, replace(SETTINGS, rounds=4), steps.append
    )
    assert finished
    assert timer.turns == [0, 1, 1, 0, 0, 1, 1, 0]
    assert len(steps) == 2 + 8
    first, second = rows
    assert second.ratio_to(first) == 2
    assert first.ratio_to(second) == 0.5
    assert first.measurement.median == 3
    assert first.measurement.iqr == 5 - 1.75


def test_who_fails_in_a_round_leaves(place, timer):
    timer.plan = [[1, 1], [1, RuntimeError('CUDA out of memory.\nTried')]]
    candidates = find_model_specs(['own.py:Tiny', 'own.py:Other'])
    (first, second), finished = measure_case(candidates, CASE, SETTINGS)
    assert finished
    assert first.times == [1, 1]
    assert second.times == []
    assert second.error == 'RuntimeError: CUDA out of memory.'
    assert second.ratio_to(first) is None
    assert first.ratio_to(second) is None


def test_ctrl_c_leaves_what_is_there(run, place, timer, capsys):
    timer.plan = [[1, 1, 1], [2, KeyboardInterrupt(), 2]]
    argv = ['own.py:Tiny', 'own.py:Other', '--inputs', '1x32']
    argv += ['--rounds', '3', '--out', 'out']
    with pytest.raises(KeyboardInterrupt):
        run(*argv)
    assert 'ratio' in capsys.readouterr().out
    (result,) = json.loads((place / 'out/results.json').read_text())['results']
    assert not result['finished']
    assert [row['times'] for row in result['rows']] == [[1], [2]]
    assert '(stopped early)' in (place / 'out/results.md').read_text()
    # It is measured again, from the beginning.
    timer.plan, timer.made = [[1, 1, 1], [2, 2, 2]], 0
    (result,) = run(*argv)
    assert result.finished
    assert result.rows[1].times == [2, 2, 2]


def test_saved_bytes():
    # ReLU saves its output; the linear layer its input and weights, which
    # are there anyway.
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    image = torch.rand(3, 4)
    known = [*model.parameters(), image]
    assert saved_bytes(lambda: model(image), known) == 3 * 8 * 4
    assert saved_bytes(lambda: model(image), known[:-1]) == 3 * (8 + 4) * 4
    with torch.no_grad():
        assert saved_bytes(lambda: model(image), []) == 0


def test_peak_bytes():
    x = torch.ones(100, 100)
    kept = []

    def run():
        y = x.exp()
        for _ in range(3):
            y = y.exp()  # there are two at a time
        kept.append(y)

    for _ in range(2):  # what was kept the first time does not count
        assert peak_bytes(run) == 2 * x.nbytes
    assert peak_bytes(lambda: None) == 0


def test_peak_of_a_training_step(place, capfd):
    candidates = find_model_specs(['own.py:Tiny'])
    case = replace(CASE, mode='train')
    (row,), _ = measure_case(candidates, case, SETTINGS)
    # What ReLU gave is saved. Some as large come and go on the way back.
    output = 4 * 4 * 30 * 30
    there = 4 * (3 * 32 * 32 + row.params) + row.saved
    assert output <= row.saved < 3 * output
    assert there + output <= row.peak < there + 8 * output
    assert 'profiler' not in capfd.readouterr().err.lower()


def test_nothing_is_kept_of_what_was_saved():
    given = []

    def forward():
        # The exponential function keeps what it gives.
        out = torch.ones(8, requires_grad=True).mul(2).exp()
        given.append(weakref.ref(out))
        return out.sum()

    assert saved_bytes(forward, []) == 8 * 4
    assert given[0]() is None


def test_saved_bytes_under_autocast(place):
    (row,), _ = measure_case(
        find_model_specs(['own.py:Tiny']),
        replace(CASE, mode='train', dtype='bf16'),
        SETTINGS,
    )
    # Image, weights and output of the convolution in half of the bytes; the
    # square of the loss and what PyTorch puts beside them comes on top.
    least = 2 * (3 * 32 * 32 + 4 * 3 * 9 + 4 * 30 * 30)
    assert least <= row.saved <= 3 * least


def test_dtype_arrives(place):
    model = parse_model_spec('own.py:Tiny').build()
    image = torch.rand(1, 3, 32, 32)
    for dtype, expected in (('fp32', torch.float32), ('bf16', torch.bfloat16)):
        work = prepare(model, replace(CASE, dtype=dtype), image)
        (out,) = work.run()
        assert out.dtype == expected
        assert not out.requires_grad


def test_compiled(place, monkeypatch):
    compiler = torch.compile
    monkeypatch.setattr(
        torch, 'compile', lambda model: compiler(model, backend='eager')
    )
    candidates = find_model_specs(['own.py:Tiny', 'own.py:Breaking'])
    for mode in ('compile', 'compile-train'):
        case = replace(CASE, mode=mode)
        (whole, broken), _ = measure_case(candidates, case, SETTINGS)
        assert (whole.error, broken.error) == (None, None)
        assert whole.graph_breaks == 0 < broken.graph_breaks
        assert whole.compared_with == 'own.py:Tiny'
        assert whole.difference == 0
        assert whole.peak > 0
        assert bool(whole.saved) == case.training


def test_onnxruntime(place):
    candidates = find_model_specs(['efficientmod_xxs', 'own.py:Tiny'])
    settings = replace(SETTINGS, baselines=['efficientmod_xxs'])
    case = replace(CASE, mode='onnxruntime')
    ours, tiny = measure_case(candidates, case, settings)[0]
    if HAS_ORT:
        assert (ours.error, tiny.error) == (None, None)
        assert len(ours.times) == 2
        assert 0 < ours.difference < 1e-5
        assert tiny.compared_with == 'own.py:Tiny'
        case = replace(case, dtype='bf16')
        ours, _ = measure_case(candidates, case, settings)[0]
        assert 'runs the exported model in fp32, not bf16' in ours.error
    else:
        assert "pip install 'mmefficientmod[export]'" in ours.error
        assert tiny.error == ours.error


def test_deployed_models_are_checked(run):
    argv = ['--deploy', '--inputs', '1x32', '--rounds', '1']
    (result,) = run('own.py:Tiny', 'own.py:Foldable', *argv)
    tiny, folded = result.rows
    assert tiny.difference is None
    assert folded.difference < 1e-6
    with pytest.raises(SystemExit) as stop:
        run('own.py:Tiny', 'own.py:Misfolded', *argv)
    message = str(stop.value.code)
    assert 'own.py:Misfolded differs from own.py:Misfolded by' in message
    # Folded, it still has the weights of the authors' module.
    (result,) = run('own.py:Tiny', 'official:official.py:xxs',
                    'efficientmod_xxs', '--baseline', 'own.py:Tiny',
                    'official:xxs', *argv)  # fmt: skip
    ours = result.rows[2]
    assert ours.baseline == ours.compared_with == 'official:xxs'
    assert 0 < ours.difference < 1e-5


@pytest.mark.skipif(not HAS_ORT, reason='needs onnxruntime')
def test_deployed_models_are_exported(run):
    (result,) = run('efficientmod_xxs', 'repvit_m0_9', '--deploy', '--mode',
                    'onnxruntime', '--inputs', '1x32',
                    '--rounds', '1')  # fmt: skip
    for row in result.rows:
        assert row.error is None
        assert 0 < row.difference < 1e-5


def test_breakdown(run):
    (result,) = run('efficientmod_xxs', 'own.py:Tiny', '--breakdown',
                    '--inputs', '1x32', '--rounds', '1')  # fmt: skip
    ours, tiny = result.rows
    assert ours.breakdown.keys() == PARTS.keys()
    assert all(seconds > 0 for seconds in ours.breakdown.values())
    assert tiny.breakdown is None


@pytest.mark.parametrize(
    ('attention', 'text'),
    [
        ((1, 2, 4), 'more time than the modulation blocks from 64x64 on'),
        ((1, 1, 1), 'less time than the modulation blocks at each size'),
    ],
)
def test_where_attention_overtakes(attention, text):
    results = []
    for seconds, side in zip(attention, (32, 48, 64), strict=True):
        parts = dict(zip(PARTS, (1.0, 3.0, float(seconds)), strict=True))
        row = Row('some', times=[1.0], breakdown=parts)
        case = replace(CASE, height=side, width=side)
        results.append(make_result([row], case=case, breakdown=True))
    (found,) = attention_crossover(results[::-1])
    assert text in found
    assert found.startswith('infer, 1x3xHxW, fp32, 1 thread, cpu: in some,')
    assert growth_figure(results) is not None
    assert growth_figure(results[:1]) is None


def make_result(rows, **changes):
    """A finished result of rows that were not measured."""
    settings = dict(
        case=CASE, device='cpu', within=None, deploy=False, breakdown=False,
        baselines=[rows[0].model], rounds=1, sources={}, finished=True,
    )  # fmt: skip
    return Result(**settings | changes, rows=rows)


def test_overview():
    infer = make_result(
        [
            Row('a', 'a', [0.002], peak=5 * 10**6, params=9 * 10**6),
            Row('b', 'a', [0.003], params=10**7, published=dict(top1=80.0)),
        ],
        deploy=True,
    )
    train = make_result(
        [
            Row('a', 'a', [0.01], saved=3 * 10**6, params=10**7),
            Row('c', error='no'),
        ],
        case=replace(CASE, mode='train'),
    )
    titles, *lines = overview([infer, train])
    case = '1x3x32x32, fp32, 1 thread'
    assert titles == [
        'model', 'M params', 'top-1', f'infer, {case}, deployed',
        f'infer, {case}, deployed, peak MB',
        f'train, {case}', f'train, {case}, saved MB',
    ]  # fmt: skip
    assert lines == [
        ['a', '10.00', '', '2.0 (1.00)', '5', '10.0 (1.00)', '3'],
        ['b', '10.00', '80.0', '3.0 (1.50)', '', '', ''],
        ['c', '', '', '', '', '', ''],
    ]


def test_growth_shows_what_is_known():
    results = [
        make_result(
            [Row('a', times=[side], peak=side, saved=saved)],
            case=replace(CASE, mode=mode, height=side, width=side),
        )
        for side in (32, 64)
        for mode, saved in (('infer', None), ('train', side))
    ]
    labels = [x.get_ylabel() for x in growth_figure(results).axes]
    assert sorted(labels) == ['ms', 'ms', 'peak MB', 'peak MB', 'saved MB']


def test_names_in_pictures_do_not_hide_each_other():
    rows = [
        Row(f'model_{n}', times=[1 + n / 100], params=10**7 + n,
            published=dict(top1=80 + n / 10, top1_distilled=82.0))
        for n in range(6)
    ]  # fmt: skip
    infer, train = make_result(rows), replace(CASE, mode='train')
    figure = latency_figure([infer, make_result(rows, case=train)])
    time, params = figure.axes
    assert (time.get_xlabel(), params.get_xlabel()) == ('ms', 'M parameters')
    for ax in figure.axes:
        assert {x.get_text() for x in ax.texts} == {x.model for x in rows}
        boxes = [Text.get_window_extent(x) for x in ax.texts]
        assert not any(
            a.overlaps(b) for a, b in itertools.combinations(boxes, 2)
        )
        assert all(ax.bbox.fully_overlaps(box) for box in boxes)
    assert latency_figure([make_result(rows, within='own.py')]) is None


def test_pareto():
    points = [(3, 70), (1, 60), (2, 60), (2, 75), (4, 76)]
    assert pareto(points) == [(1, 60), (2, 75), (4, 76)]


# ---------------------------------------------------------------- whole models


def test_within_a_segmentor(run):
    (result,) = run(
        'official:official.py:xxs', 'efficientmod_xxs', 'own.py:Tiny',
        '--within', 'fpn', '--mode', 'train', '--inputs', '2x32',
        '--rounds', '1',
    )  # fmt: skip
    official, ours, tiny = result.rows
    assert (official.error, ours.error) == (None, None)
    assert ours.flops == official.flops
    assert ours.params == official.params > 8e6
    assert ours.peak > ours.saved > 0
    assert 'own.py:Tiny' in tiny.model
    assert 'Tiny gives' in tiny.error  # no pyramid


@pytest.mark.slow
def test_within_a_detector(run, place):
    few = dict(nms_pre=20, max_per_img=20)
    model = dict(
        train_cfg=dict(rpn_proposal=few, rcnn=dict(sampler=dict(num=16))),
        test_cfg=dict(rpn=few),
    )
    base = find_config(WITHIN['mask_rcnn'][0])
    text = f'_base_ = {str(base)!r}\nmodel = {model}\n'
    (place / 'few.py').write_text(text)
    models = ['efficientmod_xxs', 'official:official.py:xxs']
    (result,) = run(*models, '--within', 'few.py', '--mode', 'train',
                    '--inputs', '1x32x64', '--rounds', '1')  # fmt: skip
    ours, official = result.rows
    assert (ours.error, official.error) == (None, None)
    assert ours.params == official.params > 2e7
    # The heads have the same weights, so as many proposals.
    assert ours.flops == official.flops


def test_proposals_are_the_same_for_each_model():
    config = str(find_config(WITHIN['mask_rcnn'][0]))
    case = BenchmarkCase('train', 2, 96, 128, 'fp32', 1)
    found = []
    for name in ('mobilenetv2_100', 'efficientmod_xxs'):
        model = parse_model_spec(name, config).build()
        model.train_cfg.rcnn.sampler.num = 16
        give_proposals(model, case)
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


def test_a_classifier(run):
    name = 'efficientmod_xxs_in1k'
    results = run(f'mmefficientmod::cls/{name}.py', '--inputs', '2x64',
                  '--mode', 'infer', 'train', '--rounds', '1')  # fmt: skip
    for result in results:
        (row,) = result.rows
        assert row.error is None
        assert (row.model, row.params) == (name, 4736264)
        assert row.published == dict(top1=76.0)


# ------------------------------------------------------------------- keeping


def test_finished_cases_are_kept(run, place):
    argv = ['own.py:Tiny', '--rounds', '1', '--out', 'out']
    first = run(*argv, '--inputs', '1x32')
    both = run(*argv, '--inputs', '1x32', '1x48')
    assert both[0] == first[0]
    again = run(*argv, '--inputs', '1x48', '1x32')
    assert again == both[::-1]
    fresh = run(*argv, '--inputs', '1x32', '--fresh')
    assert fresh[0] != first[0]
    # What is measured in another way is another result, and so is what is
    # measured of another code.
    argv[2] = '2'
    (more,) = run(*argv, '--inputs', '1x32')
    assert len(more.rows[0].times) == 2
    # Other models at the same size are kept beside it.
    run('efficientmod_xxs', *argv[1:], '--inputs', '1x32')
    (kept,) = run(*argv, '--inputs', '1x32')
    assert kept == more
    (place / 'own.py').write_text(OWN + '\n# changed')
    (changed,) = run(*argv, '--inputs', '1x32')
    assert changed.rows[0].times != more.rows[0].times
    written = json.loads((place / 'out/results.json').read_text())
    assert len(written['results']) == 2


def test_other_machines_do_not_mix(run, place):
    argv = ['own.py:Tiny', '--rounds', '1', '--out', 'out', '--inputs', '1x32']
    run(*argv)
    path = place / 'out/results.json'
    written = json.loads(path.read_text())
    written['machine']['torch'] = '1.0'
    path.write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r'torch 1\.0, now .*--fresh'):
        run(*argv)
    path.write_text('{}')
    with pytest.raises(ConfigError, match='no file of this benchmark'):
        run(*argv)
    run(*argv, '--fresh')


# ---------------------------------------------------------------- candidates


def test_every_efficientmod_has_the_same_weights(place):
    ours = parse_model_spec('efficientmod_s').build()
    official = parse_model_spec('official:official.py:s').build()
    assert weights_key(ours) == weights_key(official)
    derived = parse_model_spec('own.py:Derived(arch="s")').build()
    assert weights_key(derived) == weights_key(ours)
    xxs = parse_model_spec('efficientmod_xxs').build()
    assert weights_key(ours) != weights_key(xxs) != weights_key(nn.ReLU())
    assert_close(
        ours.stages[1].downsample.proj.weight,
        official.model.layers[0].downsample.proj.weight,
        rtol=0,
        atol=0,
    )
    # Far from the initial weights, and without noise.
    assert ours.stages[0].blocks[0].gamma.mean() > 0.3
    assert not any(getattr(m, 'drop_prob', 0) for m in ours.modules())
    assert EfficientMod('s').stages[0].blocks[1].drop_path.drop_prob > 0


def test_timm(place):
    candidate = parse_model_spec('timm:regnety_004')
    (row,), _ = measure_case([candidate], CASE, SETTINGS)
    assert row.error is None
    assert len(candidate.build()(torch.rand(1, 3, 33, 40))) == 4
    with pytest.raises(ConfigError, match='did you mean .*mobilenetv2_100'):
        parse_model_spec('timm:mobilenetv2_10')


def test_patterns():
    found = find_model_specs(['mbconv_*', 'efficientmod_s', '*vit_xxs'])
    names = [candidate.name for candidate in found]
    assert names == ['mbconv_xs', 'mbconv_s', 'efficientmod_s', 'edgevit_xxs']
    assert [c.name for c in find_model_specs(['*'])] == list(BACKBONES)
    with pytest.raises(ConfigError, match='none of the names .*repvit_m0_9'):
        find_model_specs(['repvot_*'])


def test_baseline_among_those_of_a_pattern(run):
    (result,) = run('mbconv_*', 'efficientmod_xxs', '--baseline',
                    'efficientmod_xxs', '--inputs', '1x32',
                    '--rounds', '1')  # fmt: skip
    assert [row.model for row in result.rows] == [
        'mbconv_xs', 'mbconv_s', 'efficientmod_xxs',
    ]  # fmt: skip
    assert {row.baseline for row in result.rows} == {'efficientmod_xxs'}


def test_published():
    assert published('efficientmod_s') == dict(
        top1=81.0, top1_distilled=81.9, miou=46.0, box_ap=43.6
    )
    assert published('efficientmod_s_distill_in1k') == dict(
        top1_distilled=81.9
    )
    assert published('repvit_m1_1')['top1_distilled'] == 80.7
    assert published('mobilenetv2_100') == dict(top1=71.8)
    assert published(None) == published('own.py:Tiny') == {}
    # Of each there is something.
    assert all(map(published, BACKBONES))
    assert set(RIVALS) < set(BACKBONES)


@pytest.mark.parametrize(
    'name', ['Repeat', 'Reshape', 'Broadcast', 'BroadcastInPlace']
)
def test_products_are_the_same(name):
    ours = parse_model_spec('efficientmod_xxs').build()
    path = ROOT / 'tools/dev/product.py'
    other = parse_model_spec(f'{path}:{name}(arch="xxs")').build()
    assert type(other.stages[0].blocks[0].mlp) is not ModulationMlp
    image = torch.rand(1, 3, 32, 32)
    assert_close(other(image), ours(image))
    with torch.no_grad():
        assert_close(other(image), ours(image))
    grads = []
    for model in (ours, other):
        model(image)[-1].sum().backward()
        grads.append(model.stem.proj.weight.grad)
    assert_close(*grads)


@pytest.mark.skipif(
    'EFFICIENTMOD_OFFICIAL' not in os.environ,
    reason="EFFICIENTMOD_OFFICIAL names no copy of the authors' file",
)
def test_the_authors_own_file(run):
    path = os.environ['EFFICIENTMOD_OFFICIAL']
    for arch in ('xxs', 's_conv'):
        results = run(f'official:{path}:{arch}', f'efficientmod_{arch}',
                      '--inputs', '1x64', '--rounds', '1',
                      '--mode', 'infer', 'train')  # fmt: skip
        for result in results:
            assert 0 < result.rows[1].difference < 1e-5


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['efficientmod_m'], 'did you mean efficientmod_s'),
        (['own.py:Nobody'], 'no module class Nobody; it has Tiny, Other'),
        (['own.py:not_a_module'], 'no module class not_a_module'),
        (['own.py:Tiny(4)'], 'only keywords'),
        (['absent.py:Tiny'], 'absent.py does not exist'),
        (['absent.py'], 'absent.py does not exist'),
        (['official:absent.py:s'], 'absent.py does not exist'),
        (['official:own.py:s'], 'own.py does not define the variants'),
        (['official:official.py:m'], 'names no variant; they are xxs'),
        (["dict(type='Nothing')"], "type 'Nothing' is registered"),
        (['own.py:Tiny', 'own.py:Tiny'], 'own.py:Tiny is named twice'),
        (['own.py:Tiny', '--baseline', 'x'], '--baseline x is none of'),
        (['own.py:Tiny', '--inputs', '224'], '--inputs 224 is neither'),
        (['own.py:Tiny', '--inputs', '1x0'], '--inputs 1x0 is neither'),
        (['own.py:Tiny', '--rounds', '0'], 'start at 1'),
        (['own.py:Tiny', '--device', 'tpu'], 'neither cpu nor cuda'),
        (['own.py:Tiny', '--within', 'absent.py'], 'absent.py does not'),
        (['mmefficientmod::cls/efficientmod_xxs_in1k.py', '--within', 'fpn'],
         'is a whole model'),
    ],
)  # fmt: skip
def test_refuses(run, argv, message):
    with pytest.raises(ConfigError, match=message):
        run(*argv)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_refuses_a_gpu_that_is_not_there(run):
    with pytest.raises(ConfigError, match='there is no GPU'):
        run('own.py:Tiny', '--device', 'cuda')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu(run):
    results = run('efficientmod_xxs', 'official:official.py:xxs', '--inputs',
                  '2x64', '--mode', 'infer', 'train', '--dtype', 'fp32',
                  'bf16', 'fp16', '--device', 'cuda')  # fmt: skip
    for result in results:
        for row in result.rows:
            assert row.error is None
            # The weights are in it.
            assert row.peak > 4 * row.params
