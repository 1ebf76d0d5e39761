"""Trainings that are stopped, killed, or cannot go on lose nothing."""

import multiprocessing
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import (
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
)
from tiny_training import ITERATIONS, LOOPS, Dropped, config
from torch.testing import assert_close

from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.engine import interrupt, work_dir
from mmefficientmod.engine.finite import TrainingError
from mmefficientmod.engine.resume import choose_checkpoint, nothing_left
from mmefficientmod.engine.runner import build_runner

EPOCHS = LOOPS['epochs']


@HOOKS.register_module(force=True)
class At(Hook):
    """Calls a function after an iteration, or within a validation."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration, call, in_val=False):
        self.iteration, self.call, self.in_val = iteration, call, in_val

    def after_train_iter(self, runner, *args, **kwargs):
        if not self.in_val and runner.iter + 1 == self.iteration:
            self.call()

    def after_val_iter(self, runner, *args, **kwargs):
        if self.in_val and runner.iter == self.iteration:
            self.call()


def at(iteration, call, **more):
    return dict(type='At', iteration=iteration, call=call, **more)


def build(cfg, *hooks):
    """A runner with hooks that have no place in the text of a config."""
    runner = build_runner(cfg)
    for hook in hooks:
        runner.register_hook(HOOKS.build(hook))
    return runner


def send(number):
    return lambda: os.kill(os.getpid(), number)


def saved(folder):
    return {path.name for path in Path(folder).glob('*.pth')}


# ------------------------------------------------------------------- signals


@pytest.mark.parametrize('name', ['iterations', 'epochs'])
@pytest.mark.parametrize(
    ('number', 'workers'), [(signal.SIGTERM, 0), (signal.SIGINT, 2)]
)
def test_signal_saves_and_the_resumed_run_equals_an_unstopped_one(
    tmp_path, name, number, workers, capfd
):
    loop = LOOPS[name]
    seeded = dict(randomness=dict(seed=3))
    whole = build(config(tmp_path / 'whole', loop, workers, **seeded))
    whole.train()
    cfg = config(tmp_path / 'run', loop, workers, **seeded)
    before = signal.getsignal(number)
    stopped = build(cfg.copy(), at(5, send(number)))
    with pytest.raises(SystemExit) as stop:
        stopped.train()
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert 'iter_5.pth' in saved(tmp_path / 'run')
    printed = capfd.readouterr()
    assert 'this command continues' in printed.out
    assert 'a second signal stops at once' in printed.err
    cfg.resume = True
    rest = build(cfg)
    rest.train()
    assert stopped.model.seen == whole.model.seen[:5]
    assert rest.model.seen == whole.model.seen[5:]
    assert_close(rest.model.state_dict(), whole.model.state_dict())
    # The next regular checkpoint replaced the one of the signal.
    assert saved(tmp_path / 'run') == saved(tmp_path / 'whole')


def test_signal_stops_only_after_a_step_of_the_optimizer(tmp_path):
    optim = dict(
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
        accumulative_counts=2,
    )
    cfg = config(
        tmp_path, ITERATIONS, optim_wrapper=optim, randomness=dict(seed=3)
    )
    stopped = build(cfg, at(3, send(signal.SIGTERM)))
    with pytest.raises(SystemExit):
        stopped.train()
    assert len(stopped.model.seen) == 4


@METRICS.register_module(force=True)
class Score(BaseMetric):
    """A metric that is better after each evaluation."""

    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.count += 1
        return {'score': self.count}


def validating(folder, **more):
    cfg = config(
        folder,
        dict(EPOCHS, train_cfg=dict(by_epoch=True, max_epochs=2)),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        randomness=dict(seed=3),
        **more,
    )
    cfg.val_cfg = dict()
    cfg.val_dataloader = dict(
        cfg.train_dataloader, sampler=dict(type='DefaultSampler')
    )
    cfg.val_evaluator = dict(type='Score')
    return cfg


def test_signal_within_a_validation_saves_the_weights_of_the_training(
    tmp_path, monkeypatch
):
    """A validation exchanges the weights with the averaged ones."""
    monkeypatch.setattr(Dropped, 'val_step', lambda self, data: [0], False)
    whole = build(validating(tmp_path / 'whole'))
    whole.train()
    stopped = build(
        validating(tmp_path / 'run'),
        at(3, send(signal.SIGTERM), in_val=True),
    )
    with pytest.raises(SystemExit):
        stopped.train()
    rest = build(validating(tmp_path / 'run', resume=True))
    rest.train()
    assert rest.model.seen == whole.model.seen[3:]
    assert_close(rest.model.state_dict(), whole.model.state_dict())


def test_second_signal_stops_at_once(tmp_path):
    def train():
        twice = [send(signal.SIGINT), send(signal.SIGINT)]
        runner = build(
            config(tmp_path, ITERATIONS), *[at(3, call) for call in twice]
        )
        runner.train()

    assert in_process(train) == -signal.SIGINT
    assert saved(tmp_path) == {'iter_2.pth'}


def in_process(function):
    """Exit code of a process that calls a function."""
    process = multiprocessing.get_context('fork').Process(target=function)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize(
    ('words', 'command'),
    [
        ('train.py c.py', 'train.py c.py --resume'),
        ('train.py c.py --overwrite --mini', 'train.py c.py --mini --resume'),
        ('train.py c.py --resume', 'train.py c.py --resume'),
        ('train.py --resume a.pth c.py', 'train.py --resume c.py'),
        ("-m x 'a b'", "-m x 'a b' --resume"),
    ],
)
def test_command_that_continues(words, command, monkeypatch):
    argv = ['python', *interrupt.shlex.split(words)]
    monkeypatch.setattr(sys, 'orig_argv', argv)
    assert interrupt.resume_command() == f'python {command}'


def test_command_that_continues_is_that_of_the_script(monkeypatch):
    monkeypatch.setenv(interrupt.COMMAND, 'tools/dist_train.sh c.py 8 ')
    assert interrupt.resume_command() == 'tools/dist_train.sh c.py 8 --resume'


def test_several_optimizers_are_trained(tmp_path):
    """None of them says when the gradients of all are used."""
    optim = dict(
        constructor='BySide',
        optimizer=dict(type='SGD', lr=0.01),
    )
    cfg = config(
        tmp_path,
        ITERATIONS,
        model=dict(type='SteppedApart'),
        optim_wrapper=optim,
    )
    runner = build(cfg, at(3, send(signal.SIGTERM)))
    with pytest.raises(SystemExit):
        runner.train()
    assert len(runner.model.seen) == 3
    assert 'iter_3.pth' in saved(tmp_path)


@MODELS.register_module(force=True)
class SteppedApart(Dropped):
    def train_step(self, data, optim_wrapper):
        losses = self(data, mode='loss')
        losses['loss'].backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
            wrapper.zero_grad()
        return losses


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class BySide:
    """Optimizers for the weight and the bias."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        return OptimWrapperDict(
            **{
                name: OptimWrapper(torch.optim.SGD([parameter], lr=0.01))
                for name, parameter in model.linear.named_parameters()
            }
        )


# ------------------------------------------------------- killed while writing


@pytest.mark.parametrize('most', [1, 2])
@pytest.mark.parametrize('write', [2, 3])
def test_kill_within_a_write_loses_no_whole_checkpoint(tmp_path, most, write):
    loop = dict(
        ITERATIONS,
        checkpoint=dict(ITERATIONS['checkpoint'], max_keep_ckpts=most),
    )
    put, count = LocalBackend.put, 0

    def killed(self, content, path):
        nonlocal count
        count += 1
        if count == write:
            Path(path).write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, content, path)

    def train():
        LocalBackend.put = killed
        build(config(tmp_path, loop)).train()

    assert in_process(train) == -signal.SIGKILL
    found = work_dir.newest_checkpoint(str(tmp_path))
    assert Path(found).name == f'iter_{2 * (write - 1)}.pth'
    assert not list(tmp_path.glob('.*.part'))
    resumed = build(config(tmp_path, loop, resume=True))
    resumed.train()
    numbers = [6] if most == 1 else [4, 6]
    assert saved(tmp_path) == {f'iter_{n}.pth' for n in numbers}


def test_previous_best_checkpoint_goes_after_the_new_one_was_saved(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(Dropped, 'val_step', lambda self, data: [0], False)
    present = []
    put = LocalBackend.put

    def watched(self, content, path):
        present.append(sorted(x for x in saved(tmp_path) if 'best' in x))
        put(self, content, path)

    monkeypatch.setattr(LocalBackend, 'put', watched)
    cfg = validating(tmp_path)
    cfg.default_hooks.checkpoint.update(save_best='score', rule='greater')
    build(cfg).train()
    assert ['best_score_epoch_1.pth'] in present
    assert [] not in present[2:]
    best = {x for x in saved(tmp_path) if 'best' in x}
    assert best == {'best_score_epoch_2.pth'}


def test_full_disk_ends_in_one_sentence_and_keeps_the_last_checkpoint(
    tmp_path, capfd
):
    def limit():
        size = (tmp_path / 'iter_2.pth').stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    def train():
        runner = build(config(tmp_path, ITERATIONS), at(4, limit))
        with pytest.raises(CheckpointError) as error:
            runner.train()
        print(f'error: {error.value}')

    assert in_process(train) == 0
    (message,) = [
        line
        for line in capfd.readouterr().out.splitlines()
        if line.startswith('error: ')
    ]
    assert f'{tmp_path}/iter_4.pth cannot be written: File too la' in message
    assert 'MB are free' in message
    assert f'whole checkpoint is {tmp_path}/iter_2.pth' in message
    assert saved(tmp_path) == {'iter_2.pth'}
    assert not list(tmp_path.glob('.*.part'))
    found = work_dir.newest_checkpoint(str(tmp_path))
    assert Path(found).name == 'iter_2.pth'


# ----------------------------------------------- the newest whole checkpoint


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Work dirs of whole trainings."""
    folder = tmp_path_factory.mktemp('trained')
    for name in 'iterations', 'epochs':
        build(config(folder / name, LOOPS[name])).train()
    return folder


@pytest.fixture
def run_dir(trained, tmp_path):
    return shutil.copytree(trained / 'iterations', tmp_path / 'moved')


def make_folder(path):
    path.unlink()
    path.mkdir()


POINTERS = {
    'missing': lambda last: last.unlink(),
    'empty': lambda last: last.write_text(''),
    'binary': lambda last: last.write_bytes(bytes(range(256))),
    'a folder': make_folder,
    'of a moved folder': lambda last: last.write_text('/gone/iter_6.pth'),
    'of a file that is gone': lambda last: last.write_text('iter_9.pth'),
    'of an older file': lambda last: last.write_text('iter_2.pth'),
    'too long': lambda last: last.write_text('x' * 10000),
}


@pytest.mark.parametrize('pointer', POINTERS)
def test_newest_checkpoint_is_found_with_any_pointer(run_dir, pointer):
    POINTERS[pointer](run_dir / 'last_checkpoint')
    found = work_dir.newest_checkpoint(str(run_dir))
    assert found == str(run_dir / 'iter_6.pth')


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


DAMAGES = {
    'half': lambda path: cut(path, 0.5),
    'one byte': lambda path: path.write_bytes(b'P'),
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('not found'),
    'weights only': lambda path: torch.save(
        {
            key: value
            for key, value in torch.load(path, weights_only=False).items()
            if key != 'optimizer'
        },
        path,
    ),
    'a list': lambda path: torch.save([1], path),
    'meta is a list': lambda path: torch.save(
        {'meta': [1], 'optimizer': {}, 'state_dict': {}}, path
    ),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_checkpoint_is_named_and_passed_over(
    run_dir, damage, tmp_path, capsys
):
    # A logger writes to the terminal of when it was made.
    MMLogger.get_instance(str(tmp_path))
    DAMAGES[damage](run_dir / 'iter_6.pth')
    found = work_dir.newest_checkpoint(str(run_dir))
    assert found == str(run_dir / 'iter_4.pth')
    assert 'passed over: ' in capsys.readouterr().out
    for path in run_dir.glob('iter_*.pth'):
        DAMAGES[damage](path)
    with pytest.raises(CheckpointError, match='from none of them'):
        work_dir.newest_checkpoint(str(run_dir))


def test_newest_checkpoint_is_the_one_of_most_iterations(trained, tmp_path):
    # Times are those of a copy.
    shutil.copy(trained / 'iterations/iter_6.pth', tmp_path / 'iter_10.pth')
    shutil.copy(trained / 'iterations/iter_4.pth', tmp_path / 'iter_9.pth')
    for name in 'epoch_1.pth', 'epoch_3.pth':
        shutil.copy(trained / 'epochs' / name, tmp_path / name)
    shutil.copy(tmp_path / 'iter_9.pth', tmp_path / 'best_mIoU_iter_50.pth')
    found = work_dir.newest_checkpoint(str(tmp_path))
    assert Path(found).name == 'epoch_3.pth'  # iteration 9


def test_checkpoints_in_another_folder_are_found(trained, tmp_path):
    last = trained / 'iterations/iter_6.pth'
    (tmp_path / 'last_checkpoint').write_text(str(last))
    assert work_dir.newest_checkpoint(str(tmp_path)) == str(last)


def test_run_without_a_checkpoint_starts_at_the_beginning(tmp_path, capsys):
    # A logger writes to the terminal of when it was made.
    MMLogger.get_instance(str(tmp_path))
    cfg = config(tmp_path / 'run', ITERATIONS, resume=True)
    assert choose_checkpoint(cfg) is None
    assert cfg.resume is False
    assert 'starts at the beginning' in capsys.readouterr().out


def test_resumed_run_at_its_end_has_nothing_left(trained):
    for name, length in ('iterations', 'max_iters'), ('epochs', 'max_epochs'):
        cfg = config(trained / name, LOOPS[name], resume=True)
        path = choose_checkpoint(cfg)
        assert f'--cfg-options train_cfg.{length}=N' in nothing_left(cfg, path)
        cfg.train_cfg[length] += 1
        assert nothing_left(cfg, path) is None


def test_new_run_is_refused_in_the_work_dir_of_another(run_dir):
    with pytest.raises(ConfigError, match='iter_2.pth and 2 more.*--overwr'):
        work_dir.refuse_checkpoints(str(run_dir))
    (run_dir / 'mine.pth').touch()
    work_dir.remove_checkpoints(str(run_dir))
    work_dir.refuse_checkpoints(str(run_dir))
    assert saved(run_dir) == {'mine.pth'}
    assert not (run_dir / 'last_checkpoint').exists()


def test_checkpoint_from_which_a_run_starts_is_not_removed(run_dir):
    start = run_dir / 'iter_4.pth'
    for path in start, run_dir / '../moved/iter_4.pth':
        with pytest.raises(ConfigError, match='--overwrite would remove'):
            work_dir.refuse_removal(str(run_dir), None, str(path))
    others = 'other.pth', 'https://x/iter_4.pth', str(run_dir / 'mine.pth')
    work_dir.refuse_removal(str(run_dir), *others)


# --------------------------------------------------------------- the schedule


@HOOKS.register_module(force=True)
class Rates(Hook):
    def __init__(self, rates):
        self.rates = rates

    def before_train_iter(self, runner, *args, **kwargs):
        (rate,) = runner.optim_wrapper.get_lr()['lr']
        self.rates.append(rate)


def schedule(length, by_epoch):
    """Warm-up and cosine, as long as the training, and a step at the half."""
    return [
        dict(type='LinearLR', start_factor=0.1, end=4, by_epoch=False),
        dict(type='CosineAnnealingLR', T_max=length, by_epoch=by_epoch),
        dict(type='MultiStepLR', milestones=[length // 2], by_epoch=by_epoch),
    ]


@pytest.mark.parametrize('name', ['iterations', 'epochs'])
@pytest.mark.parametrize('rate', [0.01, 0.05])
def test_longer_training_gets_the_rates_of_its_own_schedule(
    tmp_path, name, rate, capsys
):
    by_epoch = name == 'epochs'
    unit = 'max_epochs' if by_epoch else 'max_iters'

    def run(folder, length, lr, **more):
        rates = []
        cfg = config(
            tmp_path / folder,
            dict(LOOPS[name]),
            param_scheduler=schedule(length, by_epoch),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
            **more,
        )
        cfg.train_cfg[unit] = length
        build(cfg, dict(type='Rates', rates=rates)).train()
        return rates

    short, long = (3, 5) if by_epoch else (6, 10)
    whole = run('whole', long, rate)
    done = len(run('run', short, 0.01))
    capsys.readouterr()
    rest = run('run', long, rate, resume=True)
    assert rest == pytest.approx(whole[done:])
    printed = capsys.readouterr().out
    assert 'the schedule of the config differs' in printed


def test_changed_rate_without_a_schedule_is_used(tmp_path):
    build(config(tmp_path, ITERATIONS)).train()
    rates = []
    cfg = config(
        tmp_path,
        ITERATIONS,
        resume=True,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02)),
    )
    cfg.train_cfg.max_iters = 8
    build(cfg, dict(type='Rates', rates=rates)).train()
    assert rates == [0.02] * 2


# ------------------------------------------------------------------ not finite


@MODELS.register_module(force=True)
class Exploding(Dropped):
    """The loss of one step is NaN."""

    def forward(self, *inputs, mode):
        losses = super().forward(*inputs, mode=mode)
        factor = float('nan') if len(self.seen) == 3 else 1.0
        return {key: factor * value for key, value in losses.items()}


def test_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path):
    runner = build(config(tmp_path, ITERATIONS, model=dict(type='Exploding')))
    with pytest.raises(
        TrainingError,
        match=r'^iteration 3: loss = nan, at learning rate 0.01, in a batch '
        r'without file names. .*last good checkpoint is .*iter_2.pth',
    ):
        runner.train()
    assert saved(tmp_path) == {'iter_2.pth'}


def test_training_goes_on_with_nan_if_it_is_told_to(tmp_path):
    cfg = config(
        tmp_path, ITERATIONS, model=dict(type='Exploding'), keep_going=True
    )
    build(cfg).train()
    assert saved(tmp_path) == {'iter_2.pth', 'iter_4.pth', 'iter_6.pth'}
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert 'iteration 3: loss = nan' in text
    assert 'the weight linear.weight is not finite' in text


def test_weight_that_is_not_finite_is_not_saved(tmp_path):
    runner = build(config(tmp_path, ITERATIONS))

    def spoil():
        with torch.no_grad():
            runner.model.linear.weight[0, 1] = float('inf')

    runner.register_hook(HOOKS.build(at(4, spoil)))
    with pytest.raises(TrainingError, match='weight linear.weight is not f'):
        runner.train()
    assert saved(tmp_path) == {'iter_2.pth'}


def test_mask_of_infinities_is_saved(tmp_path):
    """As in CLIP: minus infinity means that nothing is attended to."""
    runner = build(config(tmp_path, ITERATIONS))
    mask = torch.tensor([0.0, float('-inf')])
    runner.model.register_buffer('attn_mask', mask)
    runner.train()
    assert work_dir.read_meta(str(tmp_path / 'iter_6.pth'))['iter'] == 6
