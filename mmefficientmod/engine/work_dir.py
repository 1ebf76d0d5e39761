"""The checkpoints of a work dir."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mmefficientmod.checkpoint.entry import for_run
from mmefficientmod.checkpoint.reading import CheckpointError, read_checkpoint
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.engine.saving import LAST, remove_drafts

# `epoch_3.pth`, `iter_500.pth`, or another name with a number.
NUMBERED = re.compile(r'(?!best_)(.*?)(\d+)\.pth')


def newest_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint of a work dir from which a run can continue.

    Files that cannot are named in a warning and passed over. If there is one,
    what a killed process left of the file it was writing is removed.

    Args:
        work_dir: The folder. Its file ``last_checkpoint`` may name a file in
            another one; it may also be missing or damaged.

    Returns:
        The path, or None if the folder has no numbered checkpoint.

    Raises:
        CheckpointError: If there are checkpoints, and none can be used.
    """
    families: dict[str, list[Path]] = {}
    for path in _numbered(work_dir):
        prefix = NUMBERED.fullmatch(path.name)[1]  # type: ignore[index]
        families.setdefault(prefix, []).append(path)
    newest: dict[int, Path] = {}
    for paths in families.values():
        for path in sorted(paths, key=_number, reverse=True):
            try:
                newest[read_meta(str(path))['iter']] = path
                break
            except CheckpointError as error:
                print_log(f'passed over: {error}', 'current', logging.WARNING)
    if families and not newest:
        raise CheckpointError(
            f'{work_dir} has checkpoints, but a run can continue from none '
            'of them, see above; start anew with --overwrite'
        )
    if not newest:
        return None
    remove_drafts(Path(work_dir))
    return str(newest[max(newest)])


def read_meta(path: str) -> Mapping[str, Any]:
    """What a checkpoint says of its training; a run can continue from it.

    Args:
        path: A file or URL. A file is not read again until it changes.

    Returns:
        See :func:`training_meta`.

    Raises:
        CheckpointError: If it cannot be read, or has only weights.
    """
    if '://' in path or not Path(path).is_file():
        return _read_meta(path)
    state = Path(path).stat()
    return _read_meta_once(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _read_meta_once(path: str, *state: int) -> Mapping[str, Any]:
    return _read_meta(path)


def _read_meta(path: str) -> Mapping[str, Any]:
    content = for_run(read_checkpoint(path), path)
    meta = training_meta(content, path)
    if not isinstance(content.get('optimizer'), Mapping):
        raise CheckpointError(
            f'{path} has no state of an optimizer, so a run cannot continue '
            'from it: continue from a numbered checkpoint, or use it as '
            'initial weights with --cfg-options load_from=FILE'
        )
    return meta


def training_meta(checkpoint: Any, path: str) -> Mapping[str, Any]:
    """What a checkpoint says of the training that wrote it.

    Args:
        checkpoint: Content of the file.
        path: Its name, for messages.

    Returns:
        ``meta`` of the content, with ``epoch`` and ``iter``.

    Raises:
        CheckpointError: If it has no state of a training, or one that
            MMEngine cannot have written.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    meta = content.get('meta')
    hub = content.get('message_hub')
    if not isinstance(meta, Mapping) or not isinstance(hub, Mapping):
        raise CheckpointError(
            f'{path} has no state of a training, so it cannot be resumed; to '
            'start from its weights, use --cfg-options load_from=FILE '
            'without --resume'
        )
    seed = meta.get('seed')
    parts = ('log_scalars', 'runtime_info', 'resumed_keys')
    for name, valid in (
        *((key, _is_count(meta.get(key))) for key in ('epoch', 'iter')),
        ('seed', seed is None or (_is_count(seed) and seed < 2**32)),
        *((part, isinstance(hub.get(part), Mapping)) for part in parts),
    ):
        if not valid:
            raise CheckpointError(
                f'{path} cannot be resumed: its {name} is missing or is not '
                'what MMEngine writes'
            )
    return meta


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def refuse_checkpoints(work_dir: str) -> None:
    """Refuse to start a new run in the work dir of another one.

    Args:
        work_dir: The folder.

    Raises:
        ConfigError: If it has checkpoints.
    """
    paths = sorted(map(str, _all(work_dir)))
    if paths:
        more = f' and {len(paths) - 1} more' if len(paths) > 1 else ''
        raise ConfigError(
            f'{work_dir} holds the checkpoints of another run '
            f'({Path(paths[0]).name}{more}): continue it with --resume, '
            'replace it with --overwrite, or choose another --work-dir'
        )


def refuse_removal(work_dir: str, *starts: str | None) -> None:
    """Refuse to remove the checkpoints that a run itself starts from.

    Args:
        work_dir: The folder whose checkpoints the run replaces.
        *starts: Files or URLs that the run reads.

    Raises:
        ConfigError: If one of these checkpoints is among them.
    """
    removed = {path.resolve() for path in _all(work_dir)}
    for start in starts:
        if start and Path(start).resolve() in removed:
            raise ConfigError(
                f'--overwrite would remove {start}, from which this run '
                'starts; choose another --work-dir, or move the file'
            )


def remove_checkpoints(work_dir: str) -> None:
    """Remove the checkpoints of a run that another one replaces.

    Args:
        work_dir: The folder. Logs stay.
    """
    for path in _all(work_dir):
        path.unlink(missing_ok=True)
    remove_drafts(Path(work_dir))
    last = Path(work_dir, LAST)
    if last.is_file():
        last.unlink()


def _all(work_dir: str) -> Iterator[Path]:
    """Numbered checkpoints, and those with the best result."""
    for path in Path(work_dir).glob('*.pth'):
        if path.is_file() and (
            NUMBERED.fullmatch(path.name) or path.name.startswith('best_')
        ):
            yield path


def _numbered(work_dir: str) -> list[Path]:
    """Numbered checkpoints here, or else where ``last_checkpoint`` points."""
    folder = Path(work_dir)
    if not _numbered_in(folder):
        try:
            folder = Path(Path(work_dir, LAST).read_text().strip()).parent
        except (OSError, ValueError):  # missing, a folder, or no text
            return []
    return _numbered_in(folder)


def _numbered_in(folder: Path) -> list[Path]:
    try:
        return [
            path
            for path in folder.glob('*.pth')
            if path.is_file() and NUMBERED.fullmatch(path.name)
        ]
    except OSError:  # the pointer is no path
        return []


def _number(path: Path) -> int:
    return int(NUMBERED.fullmatch(path.name)[2])  # type: ignore[index]
