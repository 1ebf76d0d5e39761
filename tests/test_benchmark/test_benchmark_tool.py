"""``tools/benchmark.py`` from its arguments to its files."""

import csv
import json
import logging

import cv2
import pytest
import torch
from mmengine.logging import MMLogger

from mmefficientmod.benchmark.model_specs import HOSTS
from mmefficientmod.benchmark.published import published_accuracies
from mmefficientmod.benchmark.results import Result
from mmefficientmod.config.files import find_config
from mmefficientmod.config.nodes import ConfigError


def test_results_are_shown_and_written(run_benchmark, place, capsys):
    results = run_benchmark(
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
            # Only training saves tensors for the backward pass.
            assert bool(row.saved) == result.case.training
            assert row.published == published_accuracies('efficientmod_xxs')
        assert official.ratio_to(official) == 1
        assert broken.published == {}
        assert broken.error == 'RuntimeError: no [memory] left'
        assert not broken.times
    assert 'own.py:Broken: RuntimeError: no [memory] left' in shown

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
    assert rows[2]['error'] == 'RuntimeError: no [memory] left'
    assert all(row['cpu'] == written['machine']['cpu'] for row in rows)
    text = (out / 'results.md').read_text()
    assert written['machine']['cpu'] in text
    table = [x for x in text.splitlines() if x.startswith('|')]
    assert len({x.count('|') for x in table[:5]}) == 1
    for name in ('latency.png', 'growth.png'):
        assert cv2.imread(str(out / name)) is not None


def test_ctrl_c_keeps_complete_rounds(run_benchmark, place, timer, capsys):
    timer.plan = [[1, 1, 1], [2, KeyboardInterrupt(), 2]]
    argv = ['own.py:Tiny', 'own.py:Other', '--inputs', '1x32']
    argv += ['--rounds', '3', '--out', 'out']
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(*argv)
    assert 'ratio' in capsys.readouterr().out
    (result,) = json.loads((place / 'out/results.json').read_text())['results']
    assert not result['finished']
    assert [row['times'] for row in result['rows']] == [[1], [2]]
    assert '(stopped early)' in (place / 'out/results.md').read_text()
    # The same command measures the case again, from the first round.
    timer.plan, timer.made = [[1, 1, 1], [2, 2, 2]], 0
    (result,) = run_benchmark(*argv)
    assert result.finished
    assert result.rows[1].times == [2, 2, 2]


def test_narrow_output_says_which_columns_are_left_out(
    run_benchmark, timer, capsys, monkeypatch
):
    monkeypatch.setenv('COLUMNS', '40')
    timer.plan = [[1, 1]]
    run_benchmark('own.py:Tiny', '--inputs', '1x32', '--rounds', '2')
    words = ' '.join(capsys.readouterr().out.split())
    assert 'Columns left out to fit in 40 characters: ' in words
    assert '; --out DIR writes all columns' in words


def test_baseline_may_come_from_a_pattern(run_benchmark):
    (result,) = run_benchmark('mbconv_*', 'efficientmod_xxs', '--baseline',
                              'efficientmod_xxs', '--inputs', '1x32',
                              '--rounds', '1')  # fmt: skip
    assert [row.model for row in result.rows] == [
        'mbconv_xs', 'mbconv_s', 'efficientmod_xxs',
    ]  # fmt: skip
    assert {row.baseline for row in result.rows} == {'efficientmod_xxs'}


def test_log_level_is_restored(run_benchmark, timer):
    timer.plan = [[1]]
    logger = MMLogger.get_current_instance()
    logger.setLevel(logging.INFO)
    run_benchmark('own.py:Tiny', '--inputs', '1x32', '--rounds', '1')
    assert logger.level == logging.INFO


# -------------------------------------------------------------- whole models


def test_backbones_within_a_segmentor(run_benchmark):
    (result,) = run_benchmark(
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
    assert 'Tiny gives' in tiny.error  # not the levels of a pyramid


@pytest.mark.slow
def test_backbones_within_a_detector(run_benchmark, place):
    few = dict(nms_pre=20, max_per_img=20)
    model = dict(
        train_cfg=dict(rpn_proposal=few, rcnn=dict(sampler=dict(num=16))),
        test_cfg=dict(rpn=few),
    )
    base = find_config(HOSTS['mask_rcnn'].config)
    text = f'_base_ = {str(base)!r}\nmodel = {model}\n'
    (place / 'few.py').write_text(text)
    models = ['efficientmod_xxs', 'official:official.py:xxs']
    (result,) = run_benchmark(*models, '--within', 'few.py', '--mode', 'train',
                              '--inputs', '1x32x64', '--rounds', '1'
                              )  # fmt: skip
    ours, official = result.rows
    assert (ours.error, official.error) == (None, None)
    assert ours.params == official.params > 2e7
    # The heads have the same weights, so there are as many proposals.
    assert ours.flops == official.flops


def test_config_of_a_classifier(run_benchmark):
    name = 'efficientmod_xxs_in1k'
    results = run_benchmark(f'mmefficientmod::cls/{name}.py', '--inputs',
                            '2x64', '--mode', 'infer', 'train',
                            '--rounds', '1')  # fmt: skip
    for result in results:
        (row,) = result.rows
        assert row.error is None
        assert (row.model, row.params) == (name, 4736264)
        assert row.published.keys() == {'top1'}


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['efficientmod_m'], 'did you mean efficientmod_s'),
        (['own.py:Nobody'], 'no module class Nobody; it has Tiny, Other'),
        (['own.py:not_a_module'], 'no module class not_a_module'),
        (['own.py:Tiny(4)'], 'keywords only'),
        (['absent.py:Tiny'], 'absent.py does not exist'),
        (['absent.py'], 'absent.py does not exist'),
        (['official:absent.py:s'], 'absent.py does not exist'),
        (['official:own.py:s'], 'own.py does not define the variants'),
        (['official:official.py:m'], 'names no variant; the variants are xxs'),
        (["dict(type='Nothing')"], "type 'Nothing' is registered"),
        (['own.py:Tiny', 'own.py:Tiny'], 'own.py:Tiny is named twice'),
        (['own.py:Tiny', '--baseline', 'x'], '--baseline x is none of'),
        (['own.py:Tiny', '--inputs', '224'], '--inputs 224 is neither'),
        (['own.py:Tiny', '--inputs', '1x0'], '--inputs 1x0 is neither'),
        (['own.py:Tiny', '--rounds', '0'], 'must be 1 or more'),
        (['own.py:Tiny', '--device', 'tpu'], 'neither cpu nor cuda'),
        (['own.py:Tiny', '--within', 'absent.py'], 'absent.py does not'),
        (['mmefficientmod::cls/efficientmod_xxs_in1k.py', '--within', 'fpn'],
         'is a whole model'),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(run_benchmark, argv, message):
    with pytest.raises(ConfigError, match=message):
        run_benchmark(*argv)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_missing_gpu_is_refused(run_benchmark):
    with pytest.raises(ConfigError, match='there is no GPU'):
        run_benchmark('own.py:Tiny', '--device', 'cuda')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_all_dtypes_run_on_a_gpu(run_benchmark):
    results = run_benchmark('efficientmod_xxs', 'official:official.py:xxs',
                            '--inputs', '2x64', '--mode', 'infer', 'train',
                            '--dtype', 'fp32', 'bf16', 'fp16', '--device',
                            'cuda')  # fmt: skip
    for result in results:
        for row in result.rows:
            assert row.error is None
            assert row.peak > 4 * row.params  # which includes the weights


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda_graph_gives_the_outputs_of_the_model(run_benchmark):
    (result,) = run_benchmark('efficientmod_xxs', '--inputs', '2x64', '--mode',
                              'cuda-graph', '--device', 'cuda')  # fmt: skip
    (row,) = result.rows
    assert row.error is None
    assert row.difference <= 1e-5


def test_cuda_graph_is_refused_on_a_cpu(run_benchmark):
    (result,) = run_benchmark('efficientmod_xxs', '--inputs', '1x32',
                              '--mode', 'cuda-graph')  # fmt: skip
    assert 'needs a GPU' in result.rows[0].error
