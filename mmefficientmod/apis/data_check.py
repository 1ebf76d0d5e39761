"""Reading all data of a config: what ``tools/check_data.py`` does.

For example::

    from mmefficientmod.apis.data_check import check_data
    from mmefficientmod.config.files import load_config

    reports = check_data(load_config('my_config.py'))
    print(reports[0].findings.errors)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.config.nodes import LOADERS, dataset_dicts
from mmefficientmod.config.toolbox import default_scope, import_toolbox
from mmefficientmod.datasets.built import loads_turned
from mmefficientmod.datasets.coco_datasets import (
    ann_path,
    image_folder,
    reads_coco,
)
from mmefficientmod.datasets.images import turns_images
from mmefficientmod.datasets.inspection import (
    IMAGE_KINDS,
    Entry,
    Inspected,
    duplicates,
    inspect_all,
)
from mmefficientmod.datasets.masks import DOUBTS, IGNORED, KINDS
from mmefficientmod.datasets.samples import innermost
from mmefficientmod.engine.distributed import num_cores
from mmefficientmod.engine.preflight import Preflight
from mmefficientmod.findings import Findings
from mmefficientmod.messages import list_some


@dataclass(frozen=True)
class Offender:
    """An image with something wrong.

    Attributes:
        image: The image file.
        reason: What is wrong.
        box: ``(x, y, width, height)`` of an object in pixels. Default: none.
    """

    image: str
    reason: str
    box: tuple[float, ...] | None = None


@dataclass
class DataReport:
    """What is in the data sets of a data loader.

    Attributes:
        loader: Name of the data loader.
        kind: What ``counts`` counts: objects, pixels or images.
        counts: Number for each class, by its name.
        sizes: Widths and heights of the images, in pixels.
        findings: What is wrong.
        offenders: The images with something wrong.
    """

    loader: str
    kind: str = 'images'
    counts: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    offenders: list[Offender] = field(default_factory=list)


def check_data(
    cfg: Config,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[DataReport]:
    """Look at every image, mask, box and label of a config's data.

    Args:
        cfg: The config.
        workers: Number of processes. Default: one for each core.
        progress: Called with the number of images done since the last call
            and the number of all images. Default: nothing.

    Returns:
        A report for each data loader; one whose data sets are those of an
        earlier loader is left out. The first report has what is wrong with
        the config as a whole, too.
    """
    import_toolbox(cfg.get('default_scope') or 'mmengine')
    loaders: list[str] = []
    for name in LOADERS:
        own = list(dataset_dicts(cfg, name))
        if own and own not in [list(dataset_dicts(cfg, x)) for x in loaders]:
            loaders.append(name)
    with default_scope(cfg):
        preflight = Preflight(cfg, 'all')
        preflight.look()
        reports = [DataReport(loader) for loader in loaders]
        entries = [_entries(cfg, loader, preflight) for loader in loaders]
    flat = [entry for own in entries for entry in own]
    found = inspect_all(
        flat,
        workers or num_cores(),
        lambda done: progress(done, len(flat)),
    )
    seen: list[Inspected] = []
    with default_scope(cfg):
        for report, own in zip(reports, entries, strict=True):
            part = [next(found) for _ in own]
            seen += part
            _summarise(report, part, cfg, preflight)
    for _ in found:  # the end of the generator ends the processes
        pass
    if reports:
        reports[0].findings.add(preflight.findings)
        _add_duplicates(reports[0], seen)
    preflight.files.forget()
    return reports


def _entries(cfg: Config, loader: str, preflight: Preflight) -> list[Entry]:
    """What is to be looked at of a data loader."""
    entries: list[Entry] = []
    for dataset in dataset_dicts(cfg, loader):
        turns = turns_images(dataset.get('pipeline') or []) is not False
        if reads_coco(dataset):
            entries += _coco_entries(dataset, preflight, turns)
    if entries or loader not in preflight.datasets:
        return entries
    for part in innermost(preflight.datasets[loader]):
        turns = loads_turned(part) is not False
        for info in map(part.get_data_info, range(len(part))):
            if isinstance(info.get('img_path'), str):
                is_semantic = 'reduce_zero_label' in info
                mask = info.get('seg_map_path') if is_semantic else None
                entries.append(Entry(info['img_path'], mask, turns=turns))
    return entries


def _coco_entries(
    dataset: ConfigDict, preflight: Preflight, turns: bool
) -> list[Entry]:
    path = ann_path(dataset)
    if (
        path not in preflight.files
        or preflight.files.summary(path).findings.errors
    ):
        return []
    folder = image_folder(dataset)
    return [
        Entry(
            os.path.join(folder, image['file_name']),
            said=(image['width'], image['height']),
            turns=turns,
        )
        for image in preflight.files.content(path)['images']
    ]


def _summarise(
    report: DataReport,
    found: Sequence[Inspected],
    cfg: Config,
    preflight: Preflight,
) -> None:
    """Fill in a report."""
    report.sizes = [one.size for one in found if one.size != (0, 0)]
    errors = report.findings.errors
    for kind, text in IMAGE_KINDS.items():
        bad = [x.entry.image for x in found if kind in x.image_kinds]
        if bad:
            errors.append(
                f'{report.loader}: {len(bad)} of {len(found)} images '
                f'({list_some(bad, 3)}): each {text}'
            )
            report.offenders += [Offender(path, text) for path in bad]
    for kinds, sentences in (
        (KINDS, errors),
        (DOUBTS, report.findings.warnings),
    ):
        for kind, text in kinds.items():
            pairs = [x.entry for x in found if kind in x.mask_kinds]
            if pairs:
                masks = [x.mask for x in pairs]
                some = (
                    f'{len(pairs)} of {len(found)} masks '
                    f'({list_some(masks, 3)})'
                )
                sentences.append(f'{report.loader}: {text.format(some)}')
                report.offenders += [
                    Offender(x.image, text.format(f'mask {x.mask}'))
                    for x in pairs
                ]
    for dataset in dataset_dicts(cfg, report.loader):
        if reads_coco(dataset):
            _count_objects(report, dataset, preflight)
    if not report.counts and report.loader in preflight.datasets:
        parts = innermost(preflight.datasets[report.loader])
        if any(one.entry.mask for one in found):
            _count_pixels(report, found, parts)
        else:
            _count_images(report, parts)


def _count_objects(
    report: DataReport, dataset: ConfigDict, preflight: Preflight
) -> None:
    path = ann_path(dataset)
    if path not in preflight.files:
        return
    report.kind = 'objects'
    summary = preflight.files.summary(path)
    report.findings.add(summary.findings)
    total = Counter(report.counts)
    total.update(summary.num_objects)
    report.counts = dict(total)
    content = preflight.files.content(path)
    folder = image_folder(dataset)
    names = {x.get('id'): x.get('file_name') for x in content['images']}
    objects = {x.get('id'): x for x in content.get('annotations') or []}
    for reason, ids in summary.unusable.items():
        for annotation in map(objects.get, ids):
            name = names.get((annotation or {}).get('image_id'))
            if annotation and name:
                report.offenders.append(
                    Offender(
                        os.path.join(folder, name),
                        f'annotation {annotation["id"]}: {reason}',
                        tuple(annotation['bbox']),
                    )
                )


def _count_pixels(
    report: DataReport, found: Sequence[Inspected], parts: Sequence[Any]
) -> None:
    report.kind = 'pixels'
    part = parts[0]
    names = list(part.metainfo.get('classes') or ())
    total: Counter = Counter()
    bad: dict[int, list[Entry]] = {}
    for one in found:
        for stored, pixels in one.labels.items():
            label = loaded_label(
                stored,
                getattr(part, 'reduce_zero_label', False),
                getattr(part, 'label_map', None),
            )
            total[label] += pixels
            if label >= len(names) and label != IGNORED:
                bad.setdefault(stored, []).append(one.entry)
    report.counts = {name: total[i] for i, name in enumerate(names)}
    if not bad:
        return
    known = {kind for one in found for kind in one.mask_kinds}
    for stored, entries in sorted(bad.items())[:10]:
        if 'colour' in known:
            break
        masks = [x.mask for x in entries]
        text = f'the label {stored}, which is no class of the data set'
        report.findings.errors.append(
            f'{report.loader}: {len(masks)} of {len(found)} masks '
            f'({list_some(masks, 3)}) have {text}'
        )
        report.offenders += [
            Offender(x.image, f'mask {x.mask} has {text}') for x in entries
        ]


def loaded_label(
    stored: int, reduce_zero_label: bool, label_map: Mapping[int, int] | None
) -> int:
    """The label that MMSegmentation loads for one in a file.

    Args:
        stored: The label in the file.
        reduce_zero_label: Whether 0 is ignored and the others are lowered.
        label_map: New labels of some old ones, after that.
    """
    label = stored
    if reduce_zero_label:
        label = IGNORED if stored in (0, IGNORED) else stored - 1
    return (label_map or {}).get(label, label)


def _count_images(report: DataReport, parts: Sequence[Any]) -> None:
    for part in parts:
        names = list(part.metainfo.get('classes') or ())
        total: Counter = Counter(dict.fromkeys(names, 0))
        for info in map(part.get_data_info, range(len(part))):
            label = info.get('gt_label')
            if isinstance(label, int):
                known = label < len(names)
                total[names[label] if known else f'label {label}'] += 1
        total.update(report.counts)
        report.counts = dict(total)


def _add_duplicates(report: DataReport, seen: Sequence[Inspected]) -> None:
    groups = duplicates(seen)
    if groups:
        some = '; '.join(' = '.join(group[:3]) for group in groups[:3])
        report.findings.warnings.append(
            f'{sum(map(len, groups))} of {len(seen)} image files are copies '
            f'of each other, in {len(groups)} groups ({some}). Copies in '
            'training and validation data make the results look better than '
            'they are'
        )
        report.offenders += [
            Offender(path, f'has the same bytes as {group[0]}')
            for group in groups
            for path in group[1:]
        ]
