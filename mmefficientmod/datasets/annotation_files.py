"""Annotation files in COCO's format, read once for all who need them.

MMDetection's data sets and metrics read the same file, each for itself, by
pycocotools. Inside :meth:`AnnotationFiles.shared` they get the content that
was read and checked here. ``--data`` reads the files first, to find its
classes; the checks before the run use the same object, ``FILES``, and empty
it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from mmefficientmod.datasets.coco import CocoSummary, read_coco, summarise

# Path, time of the last change in ns, and number of bytes.
Key = tuple[str, int, int]


class AnnotationFiles:
    """Annotation files by their path; a changed file is read again."""

    def __init__(self) -> None:
        self._contents: dict[Key, dict[str, Any]] = {}
        self._summaries: dict[Key, CocoSummary] = {}

    def __contains__(self, path: str | Path) -> bool:
        """Whether a file was read."""
        return _key(path) in self._contents

    def content(self, path: str | Path) -> dict[str, Any]:
        """Content of a file.

        Args:
            path: The file.

        Raises:
            DataError: See :func:`~mmefficientmod.datasets.coco.read_coco`.
        """
        key = _key(path)
        if key not in self._contents:
            self._contents[key] = read_coco(path)
        return self._contents[key]

    def summary(self, path: str | Path) -> CocoSummary:
        """What is in a file, and what is wrong in it.

        Args:
            path: The file.

        Raises:
            DataError: See :func:`~mmefficientmod.datasets.coco.read_coco`.
        """
        key = _key(path)
        if key not in self._summaries:
            self._summaries[key] = summarise(self.content(path), path)
        return self._summaries[key]

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside the block, pycocotools takes the files from here."""
        from pycocotools.coco import COCO  # type: ignore[import-untyped]

        original = COCO.__init__

        def init(coco: Any, annotation_file: str | None = None) -> None:
            original(coco)
            if annotation_file is not None:
                coco.dataset = self.content(annotation_file)
                with redirect_stdout(StringIO()):  # it prints its steps
                    coco.createIndex()

        COCO.__init__ = init
        try:
            yield
        finally:
            COCO.__init__ = original

    def forget(self) -> None:
        """Free the memory of the contents."""
        self._contents.clear()


def _key(path: str | Path) -> Key:
    try:
        found = os.stat(path)
    except OSError:  # the reader says what is wrong
        return os.path.abspath(path), 0, 0
    return os.path.abspath(path), found.st_mtime_ns, found.st_size


FILES = AnnotationFiles()
