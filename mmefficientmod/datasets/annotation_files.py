"""Annotation files in COCO's format, read once for all who need them.

MMDetection's data sets and metrics read the same file, each for itself, by
pycocotools. Inside :meth:`AnnotationFiles.shared` they get the content that
was read and checked here. ``--data`` reads the files first, to find its
classes; the checks before the run use the same object, ``FILES``, and empty
it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from mmefficientmod.datasets.coco import CocoSummary, read_coco, summarise
from mmefficientmod.datasets.coco_masks import has_mask, is_polygon

# Path, time of the last change in ns, and number of bytes.
Key = tuple[str, int, int]
# In place of a mask that is none. MMDetection ignores the object, since the
# number of coordinates is odd; pycocotools draws nothing, but fails for fewer
# coordinates.
NO_MASK = [[0.0] * 5]


class AnnotationFiles:
    """Annotation files by their path; a changed file is read again."""

    def __init__(self) -> None:
        self._contents: dict[Key, dict[str, Any]] = {}
        self._summaries: dict[Key, CocoSummary] = {}
        self._repaired: dict[Key, dict[str, Any]] = {}

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
                coco.dataset = self._for_pycocotools(annotation_file)
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
        self._repaired.clear()

    def _for_pycocotools(self, path: str | Path) -> dict[str, Any]:
        key = _key(path)
        if key not in self._repaired:
            self._repaired[key] = repair(self.content(path))
        return self._repaired[key]


def repair(content: dict[str, Any]) -> dict[str, Any]:
    """Replace what pycocotools cannot evaluate, and a training can use.

    Its ids of annotations have to be numbers, and count as no match if they
    are 0. Objects without a mask beside others with masks end its evaluation
    of masks, and MMDetection's loading.

    Args:
        content: Of a file, without errors.

    Returns:
        The content, with other annotations if need be; those of the argument
        stay as they are.
    """
    objects = content.get('annotations') or []
    masked = [has_mask(x) for x in objects]
    if any(masked):
        objects = [
            x if ok and _is_readable(x) else {**x, 'segmentation': _mask(x)}
            for x, ok in zip(objects, masked, strict=True)
        ]
    if not all(type(x.get('id')) is int and x['id'] > 0 for x in objects):
        objects = [{**x, 'id': i} for i, x in enumerate(objects, 1)]
    return {**content, 'annotations': objects} if objects else content


def _is_readable(annotation: Mapping[str, Any]) -> bool:
    """Whether pycocotools takes a list of polygons for one."""
    mask = annotation['segmentation']
    return isinstance(mask, dict) or len(mask[0]) >= 5


def _mask(annotation: Mapping[str, Any]) -> Any:
    mask = annotation.get('segmentation')
    polygons = mask if isinstance(mask, list) else []
    return [x for x in polygons if is_polygon(x)] or NO_MASK


def _key(path: str | Path) -> Key:
    try:
        found = os.stat(path)
    except OSError:  # the reader says what is wrong
        return os.path.abspath(path), 0, 0
    return os.path.abspath(path), found.st_mtime_ns, found.st_size


FILES = AnnotationFiles()
