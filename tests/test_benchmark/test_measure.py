"""Turns, ratios, memory and errors of models that are measured."""

import os
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmefficientmod.analysis.memory import peak_bytes, saved_bytes
from mmefficientmod.benchmark.breakdown import BLOCK_KINDS
from mmefficientmod.benchmark.measure import measure_case
from mmefficientmod.benchmark.model_specs import find_model_specs
from mmefficientmod.benchmark.results import Result
from mmefficientmod.models.layers import matmul


def test_baseline_is_the_one_with_the_same_weights(
    place, case, settings, timer
):
    models = ['efficientmod_xxs', 'own.py:Derived(arch="xs")', 'own.py:Tiny']
    bases = ['own.py:Derived(arch="xxs")', 'efficientmod_xs']
    timer.plan = [[1, 1], [2, 2], [3, 3], [10, 10], [100, 100]]
    settings = replace(settings, baselines=bases)
    rows, _ = measure_case(find_model_specs(models + bases), case, settings)
    assert [row.baseline for row in rows] == [*bases, bases[0], *bases]
    assert [row.difference is not None for row in rows] == [
        True, True, False, True, True
    ]  # fmt: skip
    result = Result.planned([], case, settings, None)
    result.rows = rows
    assert [row.ratio_to(result.baseline_of(row)) for row in rows] == [
        0.1, 0.02, 0.3, 1, 1
    ]  # fmt: skip


def test_models_take_turns_and_ratios_are_of_rounds(
    place, case, settings, timer
):
    # The machine slows down by half each round; the second model always takes
    # twice as long as the first, but for one disturbed round.
    timer.plan = [[1, 2, 4, 8], [2, 4, 80, 16]]
    specs = find_model_specs(['own.py:Tiny', 'own.py:Other'])
    steps = []
    rows, finished = measure_case(
        specs, case, replace(settings, rounds=4), steps.append
    )
    assert finished
    assert timer.turns == [0, 1, 1, 0, 0, 1, 1, 0]
    assert len(steps) == 2 + 8
    first, second = rows
    assert second.ratio_to(first) == 2
    assert first.ratio_to(second) == 0.5
    assert first.median_ms == 3000
    assert first.iqr_ms == 5000 - 1750


def test_model_that_fails_in_a_round_is_not_timed_further(
    place, case, settings, timer
):
    timer.plan = [[1, 1], [1, RuntimeError('CUDA out of memory.\nTried')]]
    specs = find_model_specs(['own.py:Tiny', 'own.py:Other'])
    (first, second), finished = measure_case(specs, case, settings)
    assert finished
    assert first.times == [1, 1]
    assert second.times == []
    assert second.error == 'RuntimeError: CUDA out of memory.'
    assert second.median_ms is None
    assert second.ratio_to(first) is None
    assert first.ratio_to(second) is None


@pytest.mark.parametrize('stop', [None, RuntimeError])
def test_number_of_threads_is_restored(place, case, settings, timer, stop):
    timer.plan = [[1, 1]]
    before = torch.get_num_threads()
    seen = []

    def progress(name):
        seen.append(torch.get_num_threads())
        if stop is not None:
            raise stop

    specs = find_model_specs(['own.py:Tiny'])
    case = replace(case, threads=before + 1)
    if stop is None:
        measure_case(specs, case, settings, progress)
    else:
        with pytest.raises(stop):
            measure_case(specs, case, settings, progress)
    assert {*seen} == {before + 1}
    assert torch.get_num_threads() == before


def test_breakdown_times_each_kind_of_block(run_benchmark):
    (result,) = run_benchmark('efficientmod_xxs', 'own.py:Tiny', '--breakdown',
                              '--inputs', '1x32', '--rounds', '1')  # fmt: skip
    ours, tiny = result.rows
    assert ours.breakdown.keys() == BLOCK_KINDS.keys()
    assert all(seconds > 0 for seconds in ours.breakdown.values())
    assert tiny.breakdown is None


def test_deployed_models_are_compared_with_themselves(run_benchmark):
    argv = ['--deploy', '--inputs', '1x32', '--rounds', '1']
    (result,) = run_benchmark('own.py:Tiny', 'own.py:Foldable', *argv)
    tiny, folded = result.rows
    assert tiny.difference is None
    assert folded.difference < 1e-6
    with pytest.raises(SystemExit) as stop:
        run_benchmark('own.py:Tiny', 'own.py:Misfolded', *argv)
    message = str(stop.value.code)
    assert 'own.py:Misfolded differs from own.py:Misfolded by' in message


def test_fast_linear_layers_are_compared_with_pytorchs(run_benchmark):
    argv = ['--fast-linear', '--matmul', 'onednn', '--inputs', '1x32']
    try:
        (result,) = run_benchmark('resnet18', 'pvt_v2_b0', *argv)
    finally:
        matmul.use_library(None)
    assert result.title.endswith(', fast linear layers')
    for row in result.rows:
        assert row.error is None
        assert row.compared_with == row.model
        assert row.difference < 1e-4
    assert result.rows[1].difference > 0


def test_deployed_model_has_the_weights_of_the_authors_model(run_benchmark):
    (result,) = run_benchmark(
        'own.py:Tiny', 'official:official.py:xxs', 'efficientmod_xxs',
        '--baseline', 'own.py:Tiny', 'official:xxs', '--deploy', '--inputs',
        '1x32', '--rounds', '1',
    )  # fmt: skip
    ours = result.rows[2]
    assert ours.baseline == ours.compared_with == 'official:xxs'
    assert 0 < ours.difference < 1e-5


# ------------------------------------------------------------------- memory


def test_saved_bytes_counts_neither_weights_nor_input():
    # ReLU saves its output; the linear layer its input and weights.
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    image = torch.rand(3, 4)
    known = [*model.parameters(), image]
    assert saved_bytes(lambda: model(image), known) == 3 * 8 * 4
    assert saved_bytes(lambda: model(image), known[:-1]) == 3 * (8 + 4) * 4
    with torch.no_grad():
        assert saved_bytes(lambda: model(image), []) == 0


def test_saved_bytes_keeps_no_tensor_alive():
    given = []

    def forward():
        # The exponential function saves its output.
        out = torch.ones(8, requires_grad=True).mul(2).exp()
        given.append(weakref.ref(out))
        return out.sum()

    assert saved_bytes(forward, []) == 8 * 4
    assert given[0]() is None


def test_saved_bytes_under_autocast(place, case, settings):
    (row,), _ = measure_case(
        find_model_specs(['own.py:Tiny']),
        replace(case, mode='train', dtype='bf16'),
        settings,
    )
    # Image, weights and output of the convolution take half of the bytes;
    # the square of the loss and what PyTorch adds come on top.
    least = 2 * (3 * 32 * 32 + 4 * 3 * 9 + 4 * 30 * 30)
    assert least <= row.saved <= 3 * least


def test_peak_bytes_counts_what_exists_at_one_time(monkeypatch):
    monkeypatch.delenv('KINETO_LOG_LEVEL', raising=False)
    x = torch.ones(100, 100)
    kept = []

    def run():
        y = x.exp()
        for _ in range(3):
            y = y.exp()  # two tensors exist at one time
        kept.append(y)

    for _ in range(2):  # what the first run keeps does not count
        assert peak_bytes(run) == 2 * x.nbytes
    assert peak_bytes(lambda: None) == 0
    assert 'KINETO_LOG_LEVEL' not in os.environ  # set for the profiler


def test_peak_of_a_training_step(place, case, settings, capfd):
    specs = find_model_specs(['own.py:Tiny'])
    (row,), _ = measure_case(specs, replace(case, mode='train'), settings)
    # The output of ReLU is saved. A few tensors of its size are allocated in
    # the backward pass.
    output = 4 * 4 * 30 * 30
    there = 4 * (3 * 32 * 32 + row.params) + row.saved
    assert output <= row.saved < 3 * output
    assert there + output <= row.peak < there + 8 * output
    assert 'profiler' not in capfd.readouterr().err.lower()
