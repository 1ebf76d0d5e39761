"""Signals: a training that is told to stop saves a checkpoint first.

Preemption, a batch system and Ctrl-C send a signal. The iteration in hand is
finished, a checkpoint is written, the command that continues is printed, and
the process exits with 128 plus the number of the signal. A second signal ends
the process at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from mmefficientmod.engine.saving import BATCHES, SafeCheckpointHook
from mmefficientmod.engine.seeding import skip_batches
from mmefficientmod.registry import HOOKS

# SIGHUP and SIGUSR1 do not exist on Windows.
SIGNALS = [
    getattr(signal, name)
    for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
    if hasattr(signal, name)
]

# The command line of a script of tools/ that started several processes.
COMMAND = 'MMEFFICIENTMOD_COMMAND'


@HOOKS.register_module()
class InterruptHook(Hook):
    """Stops a training after a signal, with a checkpoint.

    The runners of the tools register it. With several processes, all stop
    after the same iteration, as soon as one of them had a signal.
    """

    priority = 'LOWEST'  # after the other hooks of an iteration

    def __init__(self) -> None:
        self.received = 0
        self.pid = os.getpid()
        self.before: dict[int, Any] = {}
        # Batches of an epoch that an earlier run trained on.
        self.batches_before = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read how much of an epoch the checkpoint has seen."""
        meta = checkpoint.get('meta') or {}
        batches = meta.get(BATCHES)
        self.batches_before = batches if type(batches) is int else 0

    def before_train(self, runner: Runner) -> None:
        """Handle signals from here on, and go on within an epoch."""
        if not runner._resume:
            self.batches_before = 0
        if self.batches_before:
            skip_batches(runner.train_dataloader, self.batches_before)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self.before[number] = signal.signal(number, self._remember)

    def after_train_epoch(self, runner: Runner) -> None:
        """The next epoch is trained from its beginning."""
        self.batches_before = 0

    def restore(self) -> None:
        """Leave the signals to who handled them before the training."""
        while self.before:
            number, handler = self.before.popitem()
            # None is a handler that Python did not set.
            signal.signal(
                number, signal.SIG_DFL if handler is None else handler
            )

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return  # a worker of a data loader that just started
        if self.received:
            self.restore()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
        # Not by the logger, which the signal may have interrupted.
        os.write(
            2,
            f'\n{signal.Signals(number).name}: stops after this iteration, '
            'with a checkpoint; a second signal stops at once\n'.encode(),
        )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any
    ) -> None:
        """Stop if a signal came, but not between accumulated gradients."""
        wrapper = runner.optim_wrapper
        # Of several optimizers, each accumulates for itself.
        accumulates = isinstance(wrapper, OptimWrapper) and not isinstance(
            wrapper, OptimWrapperDict
        )
        if not accumulates or wrapper.should_update():
            self._stop_if_told(
                runner, runner.iter + 1, self.batches_before + batch_idx + 1
            )

    def after_val_iter(
        self, runner: Runner, *args: Any, **kwargs: Any
    ) -> None:
        """Stop an evaluation within the training if a signal came."""
        self._stop_if_told(runner, runner.iter, 0)

    def _stop_if_told(self, runner: Runner, done: int, batches: int) -> None:
        number = self.received
        if is_distributed():
            tensor = torch.tensor(number)
            all_reduce(tensor, 'max')
            number = int(tensor)
        if not number:
            return
        # An evaluation exchanges the weights with the averaged ones.
        if not batches:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)
        saved = _save(runner, done, batches)
        if is_main_process():
            name = signal.Signals(number).name
            print_log(
                f'stopped by {name} after iteration {done}'
                + (
                    f', saved in {saved}; this command continues:\n'
                    f'  {resume_command()}'
                    if saved
                    else '; nothing was saved, since the config has no '
                    'CheckpointHook'
                ),
                'current',
            )
        self.restore()
        # By SystemExit, so that data loaders and logs are closed.
        sys.exit(128 + number)


def _save(runner: Runner, done: int, batches: int) -> str | None:
    """Save a checkpoint of a training, and return its path."""
    for hook in runner.hooks:
        if isinstance(hook, SafeCheckpointHook):
            return hook.save_now(runner, done, batches)
        if isinstance(hook, CheckpointHook):  # a class of the user's own
            hook._save_checkpoint(runner)
            return hook.last_ckpt
    return None


def init_worker(before: Any, worker_id: int) -> None:
    """Let a worker of a data loader outlive a signal to all processes.

    The iteration in hand needs its samples. Slurm and Ctrl-C signal the
    workers too. A worker ends with its data loader; SIGTERM, by which PyTorch
    ends a worker that hangs, takes effect a minute later.

    Args:
        before: The ``worker_init_fn`` of the config, or None.
        worker_id: Number of the worker.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'alarm'):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
    if before is not None:
        before(worker_id)


def resume_command() -> str:
    """The command of this run, continued."""
    script = os.environ.get(COMMAND)
    words = shlex.split(script) if script else ['python', *sys.orig_argv[1:]]
    words = [word for word in words if word != '--overwrite']
    if '--resume' not in words:
        return shlex.join([*words, '--resume'])
    at = words.index('--resume')
    # Without the FILE that the first run started from.
    end = at + 1
    if end < len(words) and not words[end].startswith('-'):
        end += 1
    return shlex.join([*words[:at], '--resume', *words[end:]])
