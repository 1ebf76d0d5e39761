"""Detections and panoptic maps in COCO's formats."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from mmefficientmod.apis.inputs import Source
from mmefficientmod.apis.outputs import (
    PANOPTIC,
    Prediction,
    Tables,
    by_stem,
    frame_name,
    other_model,
    output_names,
    save_png,
)


class _JsonList:
    """A list in a JSON file to which items are written as they come."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.separator = '[\n'

    def add(self, item: Any) -> None:
        self.file.write(self.separator + json.dumps(item))
        self.separator = ',\n'

    def end(self) -> None:
        self.file.write('\n]' if self.separator == ',\n' else '[]')


class Detections(Tables):
    """``detections.json``, ``panoptic.json`` and ``images.json``.

    - ``detections.json`` is in COCO's format for results: a list of
      ``{image_id, category_id, bbox, score, segmentation}``, of models with
      objects.
    - ``panoptic.json`` and PNG files in the folder ``panoptic`` are in COCO's
      panoptic format, of panoptic models.
    - ``images.json`` says what the numbers mean. It is in COCO's format for
      annotations, without any: ``images`` has ``id``, ``file_name``,
      ``width``, ``height`` and, for a frame of a video, ``frame``;
      ``categories`` has ``id`` and ``name``.

    Args:
        folder: The output folder.
        sources: All sources.
        classes: Names of the classes; label 0 has ``category_id`` 1.
        score_thr: Objects with a lower score are left out. Default: none is.
        things: Number of classes of objects of a panoptic model; the first
            labels are theirs. Default: all.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        classes: Sequence[str],
        score_thr: float | None = None,
        things: int | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.names = output_names(sources, lambda s: by_stem(s, '.png'))
        self.classes = classes
        self.score_thr = score_thr
        self.things = len(classes) if things is None else things
        self.count = 0
        file = self.open(folder / 'images.json')
        file.write('{"images": ')
        self.images = _JsonList(file)
        self.objects: _JsonList | None = None
        self.maps: _JsonList | None = None

    @property
    def _categories(self) -> str:
        return json.dumps([
            dict(id=i + 1, name=name, isthing=int(i < self.things))
            for i, name in enumerate(self.classes)
        ])  # fmt: skip

    def write(self, prediction: Prediction) -> Iterator[Path]:
        self.count += 1
        height, width = prediction.image.shape[:2]
        name = prediction.source.name
        image: dict[str, Any] = dict(
            id=self.count, file_name=name, width=width, height=height
        )
        if prediction.frame is not None:
            image['frame'] = prediction.frame
        self.images.add(image)
        sample = prediction.sample
        if not {'pred_instances', 'pred_panoptic_seg'} & {*sample.keys()}:
            raise other_model('detections', sample)
        if 'pred_instances' in sample:
            if self.objects is None:
                path = self.folder / 'detections.json'
                self.objects = _JsonList(self.open(path))
            self._add_objects(sample.pred_instances)
        if 'pred_panoptic_seg' in sample:
            if self.maps is None:
                file = self.open(self.folder / 'panoptic.json')
                file.write('{"annotations": ')
                self.maps = _JsonList(file)
            yield self._add_map(prediction)

    def _add_objects(self, objects: Any) -> None:
        if self.score_thr is not None:
            objects = objects[objects.scores >= self.score_thr]
        boxes = objects.bboxes if 'bboxes' in objects else None
        boxes = getattr(boxes, 'tensor', boxes)
        boxes = None if boxes is None else boxes.numpy().astype(float)
        for i, (label, score) in enumerate(
            zip(objects.labels.tolist(), objects.scores.tolist(), strict=True)
        ):
            result: dict[str, Any] = dict(
                image_id=self.count, category_id=label + 1
            )
            mask: Any = None
            if 'masks' in objects:
                mask = np.asarray(objects.masks[i]).astype(np.uint8)
                mask = coco_mask.encode(np.asfortranarray(mask))
            if boxes is not None and (mask is None or boxes[i].any()):
                x0, y0, x1, y1 = boxes[i]
                box = [x0, y0, x1 - x0, y1 - y0]
            else:  # some heads predict masks alone
                box = coco_mask.toBbox(mask).tolist()
            result['bbox'] = [round(value, 3) for value in box]
            result['score'] = round(score, 5)
            if mask is not None:
                result['segmentation'] = dict(
                    size=[int(x) for x in mask['size']],
                    counts=mask['counts'].decode('ascii'),
                )
            self.objects.add(result)  # type: ignore[union-attr]

    def _add_map(self, prediction: Prediction) -> Path:
        from mmdet.evaluation import INSTANCE_OFFSET

        # `label + INSTANCE_OFFSET * number of the object`
        values = prediction.sample.pred_panoptic_seg.sem_seg[0].numpy()
        segments, ids = [], np.zeros(values.shape, np.uint32)
        for value in np.unique(values).tolist():
            label = value % INSTANCE_OFFSET
            if label >= len(self.classes):  # no class
                continue
            mask = values == value
            rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
            x, y = int(columns[0]), int(rows[0])
            box = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
            ids[mask] = value + 1  # 0 is for pixels of no segment
            segments.append(
                dict(
                    id=value + 1,
                    category_id=label + 1,
                    area=int(mask.sum()),
                    bbox=box,
                    iscrowd=0,
                )
            )
        name = frame_name(prediction, self.names)
        path = self.folder / PANOPTIC / name
        rgb = np.dstack([ids % 256, ids // 256 % 256, ids // 65536])
        save_png(Image.fromarray(rgb.astype(np.uint8)), path)
        self.maps.add(  # type: ignore[union-attr]
            dict(image_id=self.count, file_name=name, segments_info=segments)
        )
        return path

    def close(self) -> Iterator[Path]:
        self.images.end()
        self.images.file.write(
            f',\n"annotations": [],\n"categories": {self._categories}}}\n'
        )
        if self.objects is not None:
            self.objects.end()
        if self.maps is not None:
            self.maps.end()
            self.maps.file.write(f',\n"categories": {self._categories}}}\n')
        yield from super().close()
