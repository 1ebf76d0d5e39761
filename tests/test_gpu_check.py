"""``tools/dev/gpu_check.py``: its dry run, limits, failures and settings."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from helpers import ROOT

from mmefficientmod.swap.names import BACKBONES

SCRIPT = ROOT / 'tools/dev/gpu_check.py'
PARTS = ['numbers', 'training', 'speed', 'inference', 'experiments', 'growth']


@pytest.fixture(scope='module')
def gpu_check():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        import gpu_check

        yield gpu_check


def read(folder):
    return json.loads((folder / 'results.json').read_text())


@pytest.fixture(scope='module')
def finished(gpu_check, tmp_path_factory):
    """A folder with the results of a whole dry run."""
    folder = tmp_path_factory.mktemp('gpu')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(ROOT))
        # On a busy machine, a part may take longer than a GPU would.
        gpu_check.main(
            ['--dry-run', '--out', str(folder), '--time-limit', '6000']
        )
    return folder


@pytest.mark.slow
def test_dry_run_has_rows_of_every_part(finished):
    written = read(finished)
    text = (finished / 'gpu.md').read_text()
    assert written['machine']['cpu'] in text
    assert list(written['parts']) == PARTS
    for name, part in written['parts'].items():
        assert part['state'] == 'finished'
        assert f'## {name}\n\nfinished after' in text
        for job in part['jobs'].values():
            assert job['rows']
            for row in job['rows']:
                assert row['failed'] is None
                assert f'**{row["table"]}**' in text
                numbers = [
                    isinstance(x, float) for x in row['values'].values()
                ]
                assert any(numbers) or row['values']['agrees within 1e-5']


@pytest.mark.slow
def test_finished_parts_do_not_run_again(finished, gpu_check, monkeypatch):
    before = (finished / 'results.json').read_bytes()
    # A process that runs jobs would fail.
    monkeypatch.setattr(gpu_check, 'SCRIPT', finished / 'missing.py')
    gpu_check.main(['--dry-run', '--out', str(finished)])
    assert (finished / 'results.json').read_bytes() == before


def test_jobs_on_a_gpu_have_different_names_and_all_backbones(gpu_check):
    setup = gpu_check.Setup(torch.device('cuda'), official='EfficientMod.py')
    for name, part in gpu_check.PARTS.items():
        names = [job.name for job in part.jobs(setup)]
        assert len(set(names)) == len(names) > 3, name
    for mode in ('infer', 'cuda-graph', 'compile'):
        jobs = [
            job
            for job in gpu_check.PARTS['inference'].jobs(setup)
            if job.name.startswith(f'1x224, {mode}, fp16,')
        ]
        measured = [model for job in jobs for model in job.run.args[3]]
        assert sorted(measured) == sorted(BACKBONES)


@pytest.fixture
def fork(gpu_check):
    """Start a worker that has the modules of this process, as changed."""

    def start(args, folder, scratch):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                gpu_check.work(args)
                code = 0
            except SystemExit as stop:
                code = stop.code
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return start


def test_failed_stopped_and_killed_jobs_do_not_stop_the_others(
    gpu_check, fork, tmp_path, monkeypatch, capfd
):
    lost = []

    def good():
        return [gpu_check.Row('Rows', dict(value=1.5))]

    def wrong():
        return [gpu_check.Row('Rows', dict(value=2.5), '2.5 is too much')]

    def raises():
        raise RuntimeError('no kernel\nfor this')

    def hangs():
        time.sleep(60)

    def dies():
        os.kill(os.getpid(), signal.SIGKILL)

    def loses():
        lost.append(True)  # in the process of the worker alone
        raise RuntimeError('an illegal memory access')

    def unprepared(setup):
        raise RuntimeError('no file')

    def part(seconds, *functions):
        jobs = [gpu_check.Job(f.__name__, f) for f in functions]
        return gpu_check.Part(lambda setup: jobs, seconds)

    parts = dict(
        first=part(1, good, raises, wrong, hangs),
        second=part(50, dies, loses, good),
        third=gpu_check.Part(unprepared, 9),
    )
    monkeypatch.setattr(gpu_check, 'PARTS', parts)
    monkeypatch.setattr(gpu_check, 'TOTAL', 60)
    monkeypatch.setattr(gpu_check, 'start_worker', fork)
    monkeypatch.setattr(gpu_check, 'gpu_works', lambda setup: not lost)
    with pytest.raises(SystemExit) as stop:
        gpu_check.main(['--dry-run', '--out', str(tmp_path)])
    assert stop.value.code == 1
    first, second, third = read(tmp_path)['parts'].values()
    assert first['state'] == 'stopped at its time limit'
    assert list(first['jobs']) == ['good', 'raises', 'wrong']
    assert first['left'] == 1
    assert second['state'] == third['state'] == 'finished'
    assert list(second['jobs']) == ['dies', 'loses', 'good']
    failed = [
        'first: raises: RuntimeError: no kernel',
        'first: 2.5 is too much',
        'second: dies: the process was ended by SIGKILL, see log.txt',
        'second: loses: RuntimeError: an illegal memory access',
        'third: preparation: RuntimeError: no file',
    ]
    assert capfd.readouterr().out.splitlines()[-6:] == ['5 failed:', *failed]
    text = (tmp_path / 'gpu.md').read_text()
    assert '| 1.5 |' in text
    assert '| 2.5 | failed |' in text


def test_failed_jobs_run_again_and_others_do_not(gpu_check, tmp_path):
    from gpu_parts.store import PartResult

    store = gpu_check.Store(tmp_path)
    store.parts['numbers'] = part = PartResult(gpu_check.FINISHED)
    for name, failed in (('good', None), ('bad', 'too much')):
        part.jobs[name] = gpu_check.JobResult(
            name, 1.0, [gpu_check.Row('T', {}, failed)]
        )
    store.save()
    again = gpu_check.Store(tmp_path)
    again.plan('numbers')
    assert list(again.parts['numbers'].jobs) == ['good']
    assert again.parts['numbers'].state == gpu_check.WAITING


def settings():
    cudnn = torch.backends.cudnn
    return (
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def test_settings_are_as_before_each_job(gpu_check):
    cudnn = torch.backends.cudnn

    def change():
        cudnn.enabled = not cudnn.enabled
        cudnn.benchmark = not cudnn.benchmark
        cudnn.deterministic = not cudnn.deterministic
        cudnn.allow_tf32 = not cudnn.allow_tf32
        products = torch.backends.cuda.matmul
        products.allow_tf32 = not products.allow_tf32
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_grad_enabled(False)
        random.seed(17)
        np.random.seed(17)
        torch.manual_seed(17)
        changed.append(settings())
        raise RuntimeError('after the changes')

    changed = []
    before = settings()
    result = gpu_check.run_job(gpu_check.Job('change', change))
    assert result.error == 'RuntimeError: after the changes'
    after = settings()
    assert after == before
    for one, two in zip(changed[0], before, strict=True):
        assert one != two


def test_differences_above_the_bound_fail(gpu_check):
    from gpu_parts import numbers

    arguments = ('s', 'fp32', (64, 64), 'features')
    assert numbers.make_row(*arguments, 1e-6, 1e-5).failed is None
    for difference in (2e-5, float('nan')):
        failed = numbers.make_row(*arguments, difference, 1e-5).failed
        assert failed.startswith('s, fp32, features: error')


def test_missing_gpu_and_results_of_another_machine_are_refused(
    gpu_check, tmp_path
):
    out = ['--out', str(tmp_path)]
    if not torch.cuda.is_available():
        with pytest.raises(gpu_check.ConfigError, match='there is no GPU'):
            gpu_check.main(out)
    path = tmp_path / 'results.json'
    path.write_text('[]')
    with pytest.raises(gpu_check.ConfigError, match='no file of this command'):
        gpu_check.main(['--dry-run', *out])
    part = dict(state='finished', jobs={})
    path.write_text(
        json.dumps(dict(machine=dict(cpu='other'), parts=dict(numbers=part)))
    )
    with pytest.raises(gpu_check.ConfigError, match='was measured on'):
        gpu_check.main(['--dry-run', *out])


@pytest.mark.slow
def test_detector_is_trained_and_resumed(gpu_check):
    from gpu_parts import training

    setup = gpu_check.Setup(torch.device('cpu'))
    for function in (training.learns, training.resumes):
        (row,) = function(setup, 'mask_rcnn')
        assert row.failed is None
        assert row.values['iterations'] == 2
