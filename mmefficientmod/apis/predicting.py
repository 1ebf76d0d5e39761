"""Predictions on files: read, predicted and written one after the other."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, default_collate, pseudo_collate
from mmengine.registry import TRANSFORMS
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from mmefficientmod.apis import outputs
from mmefficientmod.apis.coco_results import Detections
from mmefficientmod.apis.inference import LOADER
from mmefficientmod.apis.inputs import (
    Source,
    Video,
    as_rgb,
    find_sources,
    frame_as_loaded,
    load_image,
)
from mmefficientmod.apis.outputs import Prediction, Writer
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.datasets import DataError
from mmefficientmod.messages import list_some, shorten

IMAGE, BOTH = 'image', 'both'
# What `save` writes besides drawings, by toolbox.
FORMATS = {'mmdet': 'json', 'mmseg': 'png', 'mmpretrain': 'csv'}
SAVES = (IMAGE, *FORMATS.values(), BOTH)
# So many images without one success: the fault is not that of the images.
HOPELESS = 20


def check_save(save: str, scope: str) -> None:
    """Check that predictions of a toolbox can be saved in a format.

    Args:
        save: One of ``SAVES``.
        scope: Name of the toolbox.

    Raises:
        ConfigError: If they cannot.
    """
    own = FORMATS[scope]
    if save not in (IMAGE, own, BOTH):
        raise ConfigError(
            f'--save {save} does not fit a model of {scope}, whose '
            f'predictions are written by --save {own}, or together with '
            f'drawings by --save {BOTH}'
        )


def predict_files(
    inferencer: Any,
    inputs: Sequence[str | Source],
    out: str = 'outputs',
    save: str = IMAGE,
    score_thr: float | None = None,
    batch_size: int = 1,
) -> Iterator[Path]:
    """Predict on images, videos and cameras, and write the results.

    Nothing is kept in memory but the names of the files. A progress bar is
    shown on stderr if that is a terminal. An input that cannot be read, or on
    which the prediction fails, is named on stderr and left out.

    Args:
        inferencer: From
            :func:`~mmefficientmod.apis.inference.build_inferencer`.
        inputs: What :func:`~mmefficientmod.apis.inputs.find_sources` takes or
            returns.
        out: Folder to write to; made if it does not exist. Default:
            ``'outputs'``.
        save: ``'image'`` for drawings, ``'json'`` for the predictions of a
            detector, ``'png'`` for those of a segmentor, ``'csv'`` for those
            of a classifier, ``'both'`` for drawings and predictions; see
            :mod:`~mmefficientmod.apis.outputs` and ``coco_results`` for the
            files. Default:
            ``'image'``.
        score_thr: Least score of an object of a detector. Default: 0.3 for
            drawings; all that the model returns for the file.
        batch_size: So many images of the same size, as they enter the model,
            are predicted at once. Default: 1.

    Yields:
        Paths of the files, each when it is complete.

    Raises:
        DataError: At the beginning, if an input does not exist; at the end,
            if some could not be predicted; at once, if a file cannot be
            written.
        ConfigError: If ``save`` does not fit the model, a drawing would
            replace an input, or nothing can be predicted.
    """
    run = _Run(inferencer, inputs, out, save, score_thr, batch_size)
    yield from run.files()


class _Sample:
    """An image on its way through the model."""

    def __init__(
        self, source: Source, frame: int | None, rate: float, loaded: dict
    ) -> None:
        self.source, self.frame, self.rate = source, frame, rate
        self.image = as_rgb(loaded['img'])
        self.data: Any = loaded

    @property
    def name(self) -> str:
        """The file, and the frame of a video."""
        path = self.source.path
        return path if self.frame is None else f'frame {self.frame} of {path}'


class _Run:
    """See :func:`predict_files`."""

    def __init__(
        self,
        inferencer: Any,
        inputs: Sequence[str | Source],
        out: str,
        save: str,
        score_thr: float | None,
        batch_size: int,
    ) -> None:
        self.scope = type(inferencer).__module__.partition('.')[0]
        check_save(save, self.scope)
        self.inferencer = inferencer
        self.out = Path(out)
        names = [x for x in inputs if isinstance(x, str)]
        self.sources = [x for x in inputs if isinstance(x, Source)]
        if names:
            self.sources += find_sources(names, outputs.folders(out))
        # The config of MMPretrain's inferencer has another name.
        cfg = getattr(inferencer, 'cfg', None) or inferencer.config
        loader, *steps = cfg.test_dataloader.dataset.pipeline
        # MMDetection and MMSegmentation have exchanged the type.
        self.loader = TRANSFORMS.build(ConfigDict(loader, type=LOADER))
        self.steps = Compose(steps)
        self.collate = (
            default_collate if self.scope == 'mmpretrain' else pseudo_collate
        )
        self.batch_size = batch_size
        self.batch: list[_Sample] = []
        self.failed: list[str] = []
        self.cause: Exception | None = None
        self.done = 0
        self.progress = _progress_bar()
        self.task = self.progress.add_task('', total=len(self.sources))
        with outputs.written_to(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self.writers = self._writers(save, score_thr)

    def _writers(self, save: str, score_thr: float | None) -> list[Writer]:
        out, sources = self.out, self.sources
        meta = self.inferencer.visualizer.dataset_meta
        names = meta['classes'] or ()
        writers: list[Writer] = []
        if save in (IMAGE, BOTH):
            draw = _drawer(self.inferencer, self.scope, score_thr)
            writers.append(outputs.Drawings(out, sources, draw))
        if save == IMAGE:
            return writers
        if self.scope == 'mmseg':
            writers.append(outputs.LabelMaps(out, sources, meta['palette']))
        elif self.scope == 'mmpretrain':
            writers.append(outputs.Scores(out, names))
        else:
            head = getattr(self.inferencer.model, 'panoptic_fusion_head', None)
            things = getattr(head, 'num_things_classes', None)
            writers.append(Detections(out, sources, names, score_thr, things))
        return writers

    def files(self) -> Iterator[Path]:
        """All files, as they are complete."""
        try:
            with self.progress:
                for source in self.sources:
                    yield from self._predict_source(source)
                yield from self._flush()
                for writer in self.writers:
                    yield from self._written(writer.close())
        finally:
            for writer in self.writers:
                writer.discard()
        if self.failed:
            number = len(self.failed)
            raise DataError(
                f'{number} of {number + self.done} predictions failed'
                + (', and the others are written' if self.done else '')
                + f': {list_some(self.failed, most=3)}'
            ) from self.cause

    def _predict_source(self, source: Source) -> Iterator[Path]:
        try:
            if source.kind == 'image':
                loaded = load_image(source, self.loader)
                sample = _Sample(source, None, 0.0, loaded)
            else:
                # Ctrl-C at a camera drops the frames that wait, alone.
                yield from self._flush()
                video = Video(source)
        except DataError as error:
            self._fail(str(error), error)
            return
        if source.kind == 'image':
            yield from self._add(sample)
            return
        with closing(video):
            try:
                yield from self._predict_frames(video)
                yield from self._flush()
            except KeyboardInterrupt:
                if source.kind != 'camera':  # the others have an end
                    raise
                self.batch.clear()
        for writer in self.writers:
            yield from self._written(writer.finish(source))

    def _predict_frames(self, video: Video) -> Iterator[Path]:
        total = self.progress.tasks[0].total
        if total is not None:
            # The video itself was counted as one.
            known = video.length > 0
            total = total + video.length - 1 if known else None
            self.progress.tasks[0].total = total
        frames = iter(video)
        for number in count():
            try:
                frame = next(frames, None)
            except DataError as error:
                self._fail(str(error), error)
                return
            if frame is None:
                return
            loaded = frame_as_loaded(video.source, frame, self.loader)
            sample = _Sample(video.source, number, video.rate, loaded)
            yield from self._add(sample)

    def _add(self, sample: _Sample) -> Iterator[Path]:
        """Prepare an image for the model; predict when a batch is full."""
        try:
            sample.data = self.steps(sample.data)
            if sample.data is None:
                raise ValueError('a step of the test pipeline dropped it')
        except Exception as error:
            self._fail(
                _reason(sample.name, sample.image, error), error, hopeless=True
            )
            return
        # Padding would change the predictions.
        if self.batch and _shape(self.batch[0]) != _shape(sample):
            yield from self._flush()
        self.batch.append(sample)
        if len(self.batch) >= self.batch_size:
            yield from self._flush()

    def _flush(self) -> Iterator[Path]:
        """Predict on the images that wait, and write the results."""
        batch, self.batch = self.batch, []
        if not batch:
            return
        try:
            data = self.collate([sample.data for sample in batch])
            found = self.inferencer.forward(data)
        except Exception as error:
            if len(batch) == 1:
                reason = _reason(batch[0].name, batch[0].image, error)
                self._fail(reason, error, hopeless=True)
                return
            # The others have nothing to do with the one that fails.
            for sample in batch:
                self.batch = [sample]
                yield from self._flush()
            return
        for sample, result in zip(batch, found, strict=True):
            result.pop('seg_logits', None)  # takes long to copy from a GPU
            prediction = Prediction(
                sample.source,
                sample.frame,
                sample.image,
                result.cpu(),
                sample.rate,
            )
            yield from self._write(sample.name, prediction)

    def _write(self, name: str, prediction: Prediction) -> Iterator[Path]:
        whole = True
        for writer in self.writers:
            try:
                yield from self._written(writer.write(prediction))
            except (ConfigError, outputs.OutputError):
                raise
            except Exception as error:
                whole = False
                what = f'cannot be {writer.verb}'
                reason = _reason(name, prediction.image, error, what)
                self._fail(reason, error, hopeless=True)
        if whole:
            self.done += 1
            self.progress.advance(self.task)

    def _written(self, paths: Iterator[Path]) -> Iterator[Path]:
        while True:
            # The caller, to whom a path is yielded, may have errors as well.
            with outputs.written_to(self.out):
                path = next(paths, None)
            if path is None:
                return
            yield path

    def _fail(
        self, reason: str, error: Exception, hopeless: bool = False
    ) -> None:
        """Name an input that is left out, and go on.

        Args:
            reason: What to tell the user, with the name of the file.
            error: Its cause.
            hopeless: Whether to give up if nothing else has happened so far.
        """
        self.failed.append(reason)
        self.cause = self.cause or error
        self.progress.advance(self.task)
        self.progress.console.print(
            f'left out: {reason}',
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if hopeless and not self.done and len(self.failed) >= HOPELESS:
            raise DataError(
                f'the first {HOPELESS} predictions failed: '
                + list_some(self.failed, most=2)
            ) from error


def _shape(sample: _Sample) -> Any:
    return getattr(sample.data.get('inputs'), 'shape', None)


def _reason(
    name: str,
    image: np.ndarray,
    error: Exception,
    what: str = 'cannot be predicted',
) -> str:
    height, width = image.shape[:2]
    kind = 'OpenCV' if isinstance(error, cv2.error) else type(error).__name__
    return (
        f'{name}, {width}x{height} pixels, {what} '
        f'({kind}: {shorten(str(error))})'
    )


def _progress_bar() -> Progress:
    return Progress(
        TextColumn('predicting'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Else a pipe would not get the names that the caller prints.
        redirect_stdout=sys.stdout.isatty(),
        disable=not sys.stderr.isatty(),
    )


def _drawer(
    inferencer: Any, scope: str, score_thr: float | None
) -> Callable[[Prediction], np.ndarray]:
    """The toolbox's way to draw a prediction."""
    visualizer = inferencer.visualizer
    options: dict[str, Any] = dict(draw_gt=False)
    if scope == 'mmdet':
        options['pred_score_thr'] = 0.3 if score_thr is None else score_thr

    def draw(prediction: Prediction) -> np.ndarray:
        image, sample = prediction.image, prediction.sample
        with warnings.catch_warnings():
            # Of text and boxes that reach over the border of the image.
            warnings.filterwarnings('ignore', '.* out of bounds')
            if scope == 'mmpretrain':
                return visualizer.visualize_cls(
                    image, sample, classes=inferencer.classes, **options
                )
            sample = _without_empty_map(sample, visualizer.dataset_meta)
            return _drawn_datasample(visualizer, image, sample, options)

    return draw


def _drawn_datasample(
    visualizer: Any, image: np.ndarray, sample: Any, options: dict[str, Any]
) -> np.ndarray:
    """What ``add_datasample`` of MMDetection and MMSegmentation draws.

    They hand it to ``add_image``. ``get_image`` would render it once more by
    matplotlib, some versions of which shift the pixels.
    """
    drawn: list[np.ndarray] = []
    visualizer.add_image = lambda name, image, step=0: drawn.append(image)
    try:
        visualizer.add_datasample('', image, sample, **options)
    finally:
        del visualizer.add_image
    return drawn[0]


def _without_empty_map(sample: Any, meta: dict[str, Any]) -> Any:
    """The sample without a panoptic map that has no segment.

    MMDetection cannot draw it.
    """
    if 'pred_panoptic_seg' not in sample:
        return sample
    from mmdet.evaluation import INSTANCE_OFFSET

    labels = sample.pred_panoptic_seg.sem_seg % INSTANCE_OFFSET
    if (labels < len(meta['classes'])).any():
        return sample
    rest = sample.new()  # the tensors are shared
    del rest.pred_panoptic_seg
    return rest
