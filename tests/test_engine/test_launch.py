"""Several processes: one fails, hangs, is killed, or all are told to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from mmengine.hooks import Hook
from tiny_training import ITERATIONS, config
from torch.testing import assert_close

from mmefficientmod import cli
from mmefficientmod.datasets import DataError
from mmefficientmod.engine import distributed
from mmefficientmod.engine.resume import choose_checkpoint
from mmefficientmod.engine.runner import build_runner

LENGTH = 40


class Trouble(Hook):
    """What happens in the second process after the third iteration."""

    priority = 'VERY_HIGH'

    def __init__(self, kind):
        self.kind = kind

    def after_train_iter(self, runner, *args, **kwargs):
        if self.kind == 'slow':
            Path('started').touch()
            time.sleep(0.2)
        if runner.rank == 0 or runner.iter != 2:
            return
        if self.kind == 'raise':
            raise DataError('image 3.png cannot be read')
        if self.kind == 'hang':
            time.sleep(1000)
        if self.kind == 'kill' and not Path('killed').exists():
            Path('killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)


def train(kind, timeout):
    """The training in one of two processes."""
    distributed.start('pytorch', timeout)
    length = dict(ITERATIONS['train_cfg'], max_iters=LENGTH)
    loop = dict(ITERATIONS, train_cfg=length)
    cfg = config(
        'run', loop, launcher='pytorch', randomness=dict(seed=3), resume=True
    )
    choose_checkpoint(cfg)
    runner = build_runner(cfg)
    runner.register_hook(Trouble(kind))
    runner.train()
    if runner.rank == 0:
        weights = runner.model.module.linear.weight.detach()
        Path('weights').write_text(repr(weights.flatten().tolist()))


def launch(kind, *options, timeout=10.0):
    """Start two processes in the working directory."""
    return subprocess.Popen(
        [
            *[sys.executable, '-m', 'mmefficientmod.engine.launch'],
            *['--standalone', '--local-addr', '127.0.0.1'],
            *['--nproc-per-node', '2', *options],
            *[__file__, kind, str(timeout)],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'GLOO_SOCKET_IFNAME': 'lo',
            'PYTHONPATH': os.pathsep.join(
                [str(ROOT / 'tests'), str(ROOT), *sys.path]
            ),
        },
    )


def errors(text):
    return [line for line in text.splitlines() if 'rror' in line]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_mistake_of_one_process_is_one_line(place):
    run = launch('raise')
    _, shown = run.communicate(timeout=120)
    assert run.returncode == 2, shown
    assert errors(shown) == ['error: image 3.png cannot be read']
    assert 'Traceback' not in shown


@pytest.mark.slow
def test_signal_to_the_launcher_stops_all_with_a_checkpoint(place):
    run = launch('slow')
    deadline = time.monotonic() + 100
    while not Path('started').exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    run.send_signal(signal.SIGTERM)
    printed, shown = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM, shown
    assert 'this command continues' in printed
    assert 'Traceback' not in shown
    last = Path(Path('run/last_checkpoint').read_text())
    done = int(last.stem.removeprefix('iter_'))
    assert 0 < done < LENGTH
    assert f'after iteration {done}, saved in {last}' in printed


@pytest.mark.slow
def test_killed_process_is_named(place):
    run = launch('kill')
    _, shown = run.communicate(timeout=200)
    assert run.returncode == 128 + signal.SIGKILL
    assert shown.splitlines()[-1] == 'error: process 1 was ended by signal 9'


@pytest.mark.slow
def test_killed_process_is_started_again_and_the_run_continues(place):
    run = launch('kill', '--max-restarts', '1')
    printed, shown = run.communicate(timeout=200)
    assert run.returncode == 0, shown
    restarted = Path('weights').read_text()
    os.rename('run', 'first')
    run = launch('none')
    _, shown = run.communicate(timeout=200)
    assert run.returncode == 0, shown
    assert_close(eval(restarted), eval(Path('weights').read_text()))


@pytest.mark.slow
def test_process_that_hangs_ends_the_run_after_the_timeout(place):
    run = launch('hang', timeout=0.1)
    _, shown = run.communicate(timeout=200)
    assert run.returncode == 2, shown
    (line,) = errors(shown)
    assert 'another process did not answer in time' in line


def test_variables_of_torchrun_are_checked(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(
        distributed.ConfigError,
        match='RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set',
    ):
        distributed.start('pytorch', 10)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('WORLD_SIZE', 'two', "WORLD_SIZE is 'two', which is no number"),
        ('MASTER_PORT', '-1', "MASTER_PORT is '-1', which is no number"),
        ('RANK', '2', 'RANK=2 must be less than the number of processes'),
    ],
)
def test_numbers_of_processes_are_checked(name, value, message, monkeypatch):
    numbers = dict(RANK=0, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_PORT=29500)
    for key, number in numbers.items():
        monkeypatch.setenv(key, str(number))
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv(name, value)
    with pytest.raises(distributed.ConfigError, match=message):
        distributed.start('pytorch', 10)


if __name__ == '__main__':
    kind, timeout = sys.argv[1:]
    cli.run(lambda _: train(kind, float(timeout)))
