"""Checkpoints that an interruption or a full disk cannot damage.

MMEngine writes a checkpoint under its final name and removes the oldest one
before that. A training that is killed in between has lost both. Here a
checkpoint is written under another name, synchronised with the disk and
renamed; older ones are removed last.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.utils import apply_to

from mmefficientmod.atomic import publish, sync
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.registry import HOOKS

# The file that names the newest checkpoint of a work dir.
LAST = 'last_checkpoint'
# In the `meta` of a checkpoint within an epoch: batches that it has seen.
BATCHES = 'batches_of_epoch'
# In the message hub: iteration of a checkpoint that the next regular one
# replaces. Not its path, since a file from a stranger could name any.
EXTRA = 'iteration_of_extra_ckpt'
EXTRA_NAME = 'iter_{}.pth'


class SavingMixin:
    """Writes each checkpoint of a runner whole or not at all."""

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, **kwargs: Any
    ) -> None:
        """Write a checkpoint.

        Args:
            out_dir: The folder. One with a scheme, such as ``s3://``, is left
                to its backend.
            filename: Name of the file.
            *args: The other arguments of MMEngine's method.
            **kwargs: The same.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        save = super().save_checkpoint  # type: ignore[misc]
        if '://' in str(out_dir):
            save(out_dir, filename, *args, **kwargs)
            return
        path = Path(out_dir, filename)
        draft = draft_of(path)
        try:
            save(out_dir, draft.name, *args, **kwargs)
            if draft.is_dir():  # a file for each process, sharded by FSDP
                barrier()
            if is_main_process():
                _publish(draft, path)
        except OSError as error:
            raise CheckpointError(
                f'checkpoint {path} cannot be written: '
                f'{error.strerror or error}. {_need(self, path)}'
            ) from error
        finally:
            if is_main_process() and draft.is_file():
                draft.unlink()


def draft_of(path: Path) -> Path:
    """The name under which a file is written before it is whole."""
    return path.with_name(f'.{path.name}.part')


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left of the checkpoint it was writing."""
    for draft in folder.glob('.*.pth.part'):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def _publish(draft: Path, path: Path) -> None:
    """Give a written file, or folder of files, its final name."""
    if draft.is_dir():
        for file in draft.iterdir():
            sync(file)
        shutil.rmtree(path, ignore_errors=True)
    else:
        sync(draft)
    publish(draft, path)


def _need(runner: Any, path: Path) -> str:
    """What to do about a file that cannot be written, in sentences."""
    states = [runner.model.state_dict(), runner.optim_wrapper.state_dict()]
    sizes: list[int] = []
    apply_to(
        states,
        torch.is_tensor,
        lambda x: sizes.append(x.numel() * x.element_size()),
    )
    need = sum(sizes) / 1e6
    free = shutil.disk_usage(path.parent).free / 1e6
    last = getattr(runner, 'whole_checkpoint', None)
    return (
        f'It needs about {need:.0f} MB, and {free:.0f} MB are free there: '
        'make room, or write elsewhere with --work-dir. '
        + (
            f'The last whole checkpoint is {last}; continue with --resume'
            if last
            else 'There is no earlier checkpoint of this run'
        )
    )


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's hook, which here removes old checkpoints last.

    The runners of the tools put it in the place of ``CheckpointHook``.
    """

    file_backend: Any

    def before_train(self, runner: Any) -> None:
        """Prepare the folder, and removing files later."""
        super().before_train(runner)
        if isinstance(self.file_backend, LocalBackend):
            self.file_backend = _LateRemoval()

    def _save_checkpoint_with_step(
        self, runner: Any, step: int, meta: dict
    ) -> None:
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        except OSError as error:  # of the file `last_checkpoint`
            raise CheckpointError(
                f'{runner.work_dir}/{LAST} cannot be written: '
                f'{error.strerror}; make room, then continue with --resume'
            ) from error
        runner.whole_checkpoint = self.last_ckpt
        extra = runner.message_hub.runtime_info.get(EXTRA)
        if type(extra) is int and is_main_process():
            name = EXTRA_NAME.format(extra)
            self.file_backend.remove(
                self.file_backend.join_path(self.out_dir, name)
            )
        self._remove_old()

    def save_now(self, runner: Any, done: int, batches: int) -> str:
        """Save outside of the interval.

        The next regular checkpoint replaces the file.

        Args:
            runner: The runner.
            done: Iterations of the training so far.
            batches: Batches of the epoch so far, 0 at its end.

        Returns:
            Path of the file, which has the number of the iteration, also in
            a training that counts epochs.
        """
        # It must not take the place of a regular one.
        self.filename_tmpl, self.max_keep_ckpts = EXTRA_NAME, -1
        name = self.filename_tmpl.format(done)
        path = self.file_backend.join_path(self.out_dir, name)
        meta = dict(epoch=runner.epoch, iter=done)
        if self.by_epoch:
            meta[BATCHES] = batches
        if not Path(path).exists():
            runner.message_hub.update_info(EXTRA, done)
        self._save_checkpoint_with_step(runner, done, meta)
        return path

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._remove_old()

    def _remove_old(self) -> None:
        """Remove now what was replaced, but no file that was written since."""
        if isinstance(self.file_backend, _LateRemoval):
            best = getattr(self, 'best_ckpt_path_dict', {}).values()
            kept = {*best, getattr(self, 'best_ckpt_path', None)}
            self.file_backend.remove_now(kept | {self.last_ckpt})


class _LateRemoval(LocalBackend):
    """A file backend that removes files when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self._paths: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        self._paths.append(str(filepath))

    def rmtree(self, dir_path: str | Path) -> None:
        self._paths.append(str(dir_path))

    def remove_now(self, kept: set[str | None]) -> None:
        """Remove the files and folders, but not those to keep."""
        for path in self._paths:
            if path in kept:
                continue
            if Path(path).is_dir():
                super().rmtree(path)
            elif Path(path).is_file():
                super().remove(path)
        self._paths.clear()
