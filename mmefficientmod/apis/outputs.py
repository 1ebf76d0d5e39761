"""Files of predictions: drawings, detections, label maps and class scores."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image

from mmefficientmod.apis.inputs import Source
from mmefficientmod.atomic import atomic_write
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.datasets import DataError

# Drawings keep the format of an image if it is one of these; else they are
# PNG files.
KEPT_FORMATS = (
    '.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp',
)  # fmt: skip
VIDEO_FORMAT, VIDEO_CODEC = '.mp4', 'mp4v'
DRAWINGS, LABELS, PANOPTIC = 'drawings', 'labels', 'panoptic'


@dataclass
class Prediction:
    """What a model predicts on an image or frame.

    Attributes:
        source: Where the image comes from.
        frame: Number of the frame, from 0; None for an image file.
        image: The image as it was loaded, uint8 ``(H, W, 3)`` in RGB.
        sample: The data sample that the model returned, on the CPU.
        rate: Frames per second of a video or camera. Default: 0.
    """

    source: Source
    frame: int | None
    image: np.ndarray
    sample: Any
    rate: float = 0.0


class OutputError(DataError):
    """A file of the output cannot be written."""


def folders(out: str | os.PathLike) -> list[Path]:
    """The folders of predictions in an output folder."""
    return [Path(out, name) for name in (DRAWINGS, LABELS, PANOPTIC)]


class Writer:
    """Writes files of one kind, as the predictions come.

    Attributes:
        verb: What is done with a prediction, for messages.
    """

    verb = 'saved'

    def write(self, prediction: Prediction) -> Iterator[Path]:
        """Write a prediction; yield the files that are complete."""
        raise NotImplementedError

    def finish(self, source: Source) -> Iterator[Path]:
        """All frames of a video are written; yield files, as above."""
        yield from ()

    def close(self) -> Iterator[Path]:
        """All predictions are written; yield files, as above."""
        yield from ()

    def discard(self) -> None:
        """Remove the files that are not complete."""


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Turn an error of the system while files are written into a sentence.

    Args:
        folder: Named where the system does not name the file.

    Raises:
        OutputError: With the name of the file and the reason.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f'{error.filename or folder} cannot be written: '
            f'{error.strerror or error}'
        ) from error


def other_model(what: str, sample: Any) -> ConfigError:
    return ConfigError(
        f'the model predicts {", ".join(sample.keys()) or "nothing"} and no '
        f'{what}'
    )


def output_names(
    sources: Sequence[Source], rename: Callable[[Source], tuple[str, str]]
) -> dict[Source, str]:
    """A name of its own for each source.

    Args:
        sources: The sources.
        rename: Gives the usual name of an output, and the one that is taken
            where two sources would have the same.
    """
    pairs = {source: rename(source) for source in sources}
    uses = Counter(usual for usual, _ in pairs.values())
    names: dict[Source, str] = {}
    taken = {usual for usual, _ in pairs.values() if uses[usual] == 1}
    for source, (usual, longer) in pairs.items():
        name = usual
        if uses[usual] > 1:
            stem, suffix = os.path.splitext(longer)
            others = (f'{stem}_{i}{suffix}' for i in count(2))
            name = longer
            while name in taken:
                name = next(others)
            taken.add(name)
        names[source] = name
    return names


def by_stem(source: Source, suffix: str) -> tuple[str, str]:
    return (
        os.path.splitext(source.name)[0] + suffix,
        f'{source.name}{suffix}',
    )


class Drawings(Writer):
    """Pictures and videos with the predictions drawn on them.

    Args:
        folder: The output folder.
        sources: All sources.
        draw: Draws a prediction; returns uint8 ``(H, W, 3)`` in RGB.

    Raises:
        ConfigError: If a drawing would replace the file of an input.
    """

    verb = 'drawn'

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        draw: Callable[[Prediction], np.ndarray],
    ) -> None:
        names = output_names(sources, self._name)
        self.paths = {s: folder / DRAWINGS / n for s, n in names.items()}
        self.draw = draw
        self._video: cv2.VideoWriter | None = None
        self._draft = Path()
        self._size = (0, 0)
        inputs = {os.path.realpath(source.path) for source in sources}
        for path in self.paths.values():
            if os.path.realpath(path) in inputs:
                raise ConfigError(
                    f'the drawing {path} would replace an input; name '
                    'another folder with --out'
                )

    @staticmethod
    def _name(source: Source) -> tuple[str, str]:
        if source.kind != 'image':
            return by_stem(source, VIDEO_FORMAT)
        if source.name.lower().endswith(KEPT_FORMATS):
            stem, suffix = os.path.splitext(source.name)
            return source.name, f'{stem}_drawn{suffix}'
        return f'{source.name}.png', f'{source.name}.drawn.png'

    def write(self, prediction: Prediction) -> Iterator[Path]:
        drawn = self.draw(prediction)[..., ::-1]
        path = self.paths[prediction.source]
        if prediction.source.kind == 'image':
            whole, data = cv2.imencode(path.suffix, drawn)
            if not whole:
                raise DataError(f'{path} cannot be a {path.suffix} file')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.tobytes())
            yield path
            return
        if self._video is None:
            self._video = self._open(path, drawn, prediction.rate)
        if drawn.shape[1::-1] != self._size:
            drawn = cv2.resize(drawn, self._size)
        self._video.write(np.ascontiguousarray(drawn))

    def _open(
        self, path: Path, frame: np.ndarray, rate: float
    ) -> cv2.VideoWriter:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._draft = path.with_name(f'.{os.getpid()}.part{path.suffix}')
        # The codec wants even sizes.
        height, width = (max(2, x + x % 2) for x in frame.shape[:2])
        self._size = width, height
        code = cv2.VideoWriter.fourcc(*VIDEO_CODEC)
        # The rate is a fraction whose terms have 16 bits.
        digits = 3 if rate < 65 else 2 if rate < 650 else 1
        video = cv2.VideoWriter(
            str(self._draft), code, round(rate, digits), self._size
        )
        if not video.isOpened():
            raise OutputError(
                f'{path} cannot be written: OpenCV opens no video of '
                f'{width}x{height} pixels there'
            )
        return video

    def finish(self, source: Source) -> Iterator[Path]:
        if self._video is not None:
            path = self.paths[source]
            self._video.release()
            self._video = None
            os.replace(self._draft, path)
            yield path

    def discard(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None
            self._draft.unlink(missing_ok=True)


class LabelMaps(Writer):
    """PNG files whose values are the labels, with the palette.

    A frame of ``clip.avi`` is ``labels/clip.avi/000000.png``. More than 256
    classes make 16-bit files without a palette.

    Args:
        folder: The output folder.
        sources: All sources.
        palette: RGB colours of the classes.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        palette: Sequence[Sequence[int]],
    ) -> None:
        self.folder = folder / LABELS
        self.names = output_names(sources, lambda s: by_stem(s, '.png'))
        self.palette = palette

    def write(self, prediction: Prediction) -> Iterator[Path]:
        if 'pred_sem_seg' not in prediction.sample:
            raise other_model('label maps', prediction.sample)
        labels = prediction.sample.pred_sem_seg.data[0].numpy()
        path = self.folder / frame_name(prediction, self.names)
        if len(self.palette) > 256:
            image = Image.fromarray(labels.astype(np.uint16))
        else:
            image = Image.fromarray(labels.astype(np.uint8), 'P')
            image.putpalette([value for rgb in self.palette for value in rgb])
        save_png(image, path)
        yield path


def frame_name(prediction: Prediction, names: dict[Source, str]) -> str:
    if prediction.frame is None:
        return names[prediction.source]
    return f'{prediction.source.name}/{prediction.frame:06d}.png'


def save_png(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


class Tables(Writer):
    """Files of all predictions that appear when the last one is written."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._paths: list[Path] = []

    def open(self, path: Path) -> IO[str]:
        """Begin a text file."""
        draft = self._stack.enter_context(atomic_write(path))
        file = self._stack.enter_context(
            # A name may have bytes that are no characters.
            open(  # noqa: SIM115
                draft, 'w', encoding='utf-8', errors='replace', newline=''
            )
        )
        self._paths.append(path)
        return file

    def close(self) -> Iterator[Path]:
        self._stack.close()
        yield from self._paths

    def discard(self) -> None:
        # Any error makes atomic_write remove its draft.
        self._stack.__exit__(OSError, OSError(), None)


class Scores(Tables):
    """``scores.csv``, a row for each image with the score of each class.

    The columns are ``image``; ``frame``, empty but for videos; ``label`` and
    ``class``, the prediction; and one for each class, with its name.

    Args:
        folder: The output folder.
        classes: Names of the classes; if empty, the columns are numbered.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = classes
        self.rows = csv.writer(
            self.open(folder / 'scores.csv'), lineterminator='\n'
        )
        self.header = False

    def write(self, prediction: Prediction) -> Iterator[Path]:
        if 'pred_score' not in prediction.sample:
            raise other_model('class scores', prediction.sample)
        scores = prediction.sample.pred_score.tolist()
        names = self.classes or [f'class {i}' for i in range(len(scores))]
        if not self.header:
            self.rows.writerow(['image', 'frame', 'label', 'class', *names])
            self.header = True
        # Several labels, where classes do not exclude each other.
        labels = prediction.sample.pred_label.tolist()
        frame = '' if prediction.frame is None else prediction.frame
        self.rows.writerow(
            [
                prediction.source.name,
                frame,
                ' '.join(map(str, labels)),
                '; '.join(names[i] for i in labels),
                *(f'{score:.6g}' for score in scores),
            ]
        )
        yield from ()
