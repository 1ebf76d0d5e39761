"""What the tests of the benchmark share."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.benchmark import Measurement, TaskSpec

from mmefficientmod.benchmark import measure
from mmefficientmod.benchmark.cases import BenchmarkCase, Settings
from mmefficientmod.benchmark.results import Result
from mmefficientmod.benchmark.training import runs as training

MODELS = Path(__file__).with_name('models')


@pytest.fixture
def case():
    return BenchmarkCase('infer', 1, 32, 32, 'fp32', 1)


@pytest.fixture
def settings():
    cpu = torch.device('cpu')
    return Settings(cpu, rounds=2, baselines=['own.py:Tiny'])


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    """Each model is timed more briefly: no test is about how fast one is."""
    monkeypatch.setattr(measure, 'ROUND_SECONDS', 0.01)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a user's file and one like the authors'."""
    monkeypatch.chdir(tmp_path)
    for path in MODELS.glob('*.py'):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def run_benchmark(tool, place, monkeypatch):
    """``tools/benchmark.py`` with one thread, on a wide terminal."""
    monkeypatch.setenv('COLUMNS', '200')

    def main(*argv):
        return tool('benchmark').main([*argv, '--threads', '1'])

    return main


@pytest.fixture
def make_result(case):
    """Make a finished result of rows that were not measured."""

    def make(rows, **changes):
        settings = dict(
            case=case, device='cpu', within=None, deploy=False,
            breakdown=False, fast_linear=False, baselines=[rows[0].model],
            rounds=1, sources={}, finished=True,
        )  # fmt: skip
        return Result(**settings | changes, rows=rows)

    return make


class ScriptedTimer:
    """Stands in for PyTorch's timer, and takes as long as it is told.

    Attributes:
        plan: For each model, in the order of building, seconds or an error
            for each round.
        turns: Numbers of the models in the order in which they were timed.
    """

    plan = ()
    turns = ()
    made = 0

    def __init__(self, stmt, globals, num_threads):
        self.number = ScriptedTimer.made
        ScriptedTimer.made += 1
        self.left = list(self.plan[self.number])

    def blocked_autorange(self, min_run_time):
        ScriptedTimer.turns.append(self.number)
        now = self.left.pop(0)
        if isinstance(now, BaseException):
            raise now
        return Measurement(1, [now], TaskSpec('run()', 'pass'))


@pytest.fixture
def timer(monkeypatch):
    monkeypatch.setattr(measure, 'Timer', ScriptedTimer)
    ScriptedTimer.turns, ScriptedTimer.made = [], 0
    return ScriptedTimer


@pytest.fixture
def finish():
    """Fill a planned run with figures as if it had been trained."""

    def fill(run, miou=40.0, time=0.5, memory=3e6):
        run.params, run.memory = 2_500_000, memory
        run.times = [9.0] * training.WARM_UP + [time] * (training.WARM_UP + 1)
        run.losses = [3.0, 1.0]
        run.miou = {1: miou / 2, 2: miou}
        run.finished = True
        return run

    return fill
