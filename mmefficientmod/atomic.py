"""Writing a file or a folder whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file in one step, so that an interruption cannot damage it.

    An interruption leaves the old file, or none if there was none. The folder
    is made if it does not exist.

    Args:
        path: The file to write.

    Yields:
        A temporary path in the same folder, to which the caller writes. That
        file replaces ``path`` when the block ends without an error, and is
        removed otherwise.

    Raises:
        OSError: If the folder cannot be made or written to.

    Example:
        >>> with atomic_write('results.json') as draft:
        ...     draft.write_text('{}')
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        yield draft
        sync(draft)
        publish(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder unless it exists.

    It is written under a temporary name and then renamed, so that neither an
    interruption nor a second process leaves an incomplete one.

    Args:
        folder: The folder; the one around it is made if it does not exist.
        write: Writes the content to the empty folder that it is given.

    Returns:
        The folder.

    Raises:
        OSError: If it cannot be written.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix='.draft-', dir=folder.parent))
    try:
        write(draft)
        draft.chmod(0o755)  # mkdtemp makes it private
        os.rename(draft, folder)
    except OSError:
        # The renaming fails if another process was faster.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def replace_folder(source: Path, target: Path) -> None:
    """Copy a folder, in the place of what is there.

    Args:
        source: The folder to copy.
        target: The folder to write; the one around it is made if it does not
            exist.

    Raises:
        OSError: If it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix='.draft-', dir=target.parent))
    try:
        shutil.copytree(source, draft / source.name)
        shutil.rmtree(target, ignore_errors=True)
        (draft / source.name).rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def publish(draft: Path, target: Path) -> None:
    """Give a file, or a folder, that is on the disk its final name."""
    os.replace(draft, target)
    _sync_folder(target.parent)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where that exists."""
    if not hasattr(os, 'O_DIRECTORY'):  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
