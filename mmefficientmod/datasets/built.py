"""Data sets that are built: their files, masks and first samples."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import (
    IMAGE_SUFFIXES,
    MIRRORED,
    describe_missing,
    in_random_order,
    missing_files,
    read_header,
    turns_images,
)
from mmefficientmod.datasets.masks import (
    IGNORED,
    LabelSummary,
    PairSummary,
    read_labels,
)
from mmefficientmod.datasets.samples import innermost
from mmefficientmod.findings import Findings
from mmefficientmod.messages import list_some

# Entries whose files are looked for; of more, an even part.
MOST_ENTRIES = 200_000
SAMPLES = 2  # run through the whole pipeline
# Time for a data set, in seconds.
HEADER_SECONDS, LABEL_SECONDS = 3.0, 1.0


def check_built(
    dataset: Any, loader: str, samples_files: bool = True
) -> Findings:
    """Look at a data set that is built.

    Args:
        dataset: The data set or a wrapper of data sets.
        loader: Name of its data loader, for messages.
        samples_files: Whether to read headers of images and labels of masks
            for some seconds. Default: True.
    """
    findings = Findings()
    parts = innermost(dataset)
    for part in parts:
        owner = f'{type(part).__name__} of {loader}'
        if hasattr(part, 'get_data_info'):
            share = 1 / len(parts) if samples_files else 0
            findings.add(_check_part(part, owner, share))
    if not findings.errors and all(map(_has_images, parts)):
        for index in range(min(SAMPLES, len(dataset))):
            with findings.catch(DataError):
                dataset[index]
    return findings


def _has_images(part: Any) -> bool:
    """Whether each entry is an image; an entry may also be a video."""
    return hasattr(part, 'get_data_info') and isinstance(
        part.get_data_info(0).get('img_path'), str
    )


def explain_empty(dataset: Mapping[str, Any], owner: str) -> str | None:
    """Why a data set cannot be built that MMEngine finds empty.

    Args:
        dataset: The dict of the data set.
        owner: Its name in messages.

    Returns:
        A sentence; None if the data set is not empty.
    """
    lazy = copy.deepcopy(dict(dataset)) | dict(lazy_init=True)
    part = DATASETS.build(lazy)
    found = part.load_data_list()
    if not found:
        return f'{owner} has no images{_other_files(part)}'
    part.data_list = found
    if not part.filter_data():
        return (
            f'{owner}: filter_cfg={dict(part.filter_cfg or {})} leaves none '
            f'of {len(found)} images'
        )
    if dataset.get('indices') is not None:
        return f'{owner}: indices={dataset["indices"]!r} leaves no image'
    return None


class _Entries(Sequence):
    """The entries of a data set, read when they are asked for.

    Args:
        part: The data set.
        step: Distance of the entries that are taken.
    """

    def __init__(self, part: Any, step: int) -> None:
        self.part, self.places = part, range(0, len(part), step)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        return self.part.get_data_info(self.places[index])


def _check_part(part: Any, owner: str, share: float) -> Findings:
    findings = Findings()
    if not len(part):
        findings.errors.append(f'{owner} has no images{_other_files(part)}')
        return findings
    step = -(-len(part) // MOST_ENTRIES)
    infos: Sequence[dict] = _Entries(part, step)
    # The images of COCO files were looked for before.
    if not hasattr(part, 'cat2label'):
        infos = list(infos)
        findings.errors += _missing(infos, owner)
    if findings.errors:
        return findings
    ignored = _other_files(part)
    if ignored:
        findings.warnings.append(f'{owner}{ignored}')
    if not _is_pair(infos[0]):
        findings.add(_check_images(part, infos, owner, share))
    elif not part.metainfo.get('classes'):
        findings.errors.append(
            f'{owner} has no class names; set metainfo=dict(classes=(...))'
        )
    elif len(part.metainfo['classes']) > IGNORED:
        findings.errors.append(
            f'{owner} has {len(part.metainfo["classes"])} classes; '
            'MMSegmentation reads labels of 8 bits, of which 255 is ignored, '
            'so at most 255 classes can be told apart'
        )
    else:
        findings.add(_check_masks(part, infos, owner, share))
    return findings


def _missing(infos: Sequence[dict], owner: str) -> Iterator[str]:
    for key, kind in (('img_path', 'images'), ('seg_map_path', 'masks')):
        paths = [x[key] for x in infos if _is_local(x, key)]
        missing = missing_files(paths)
        if missing:
            yield describe_missing(missing, len(paths), owner, kind)


def _is_local(info: Mapping[str, Any], key: str) -> bool:
    return isinstance(info.get(key), str) and '://' not in info[key]


def _is_pair(info: Mapping[str, Any]) -> bool:
    """Whether an entry of MMSegmentation has an image and a mask."""
    return (
        'reduce_zero_label' in info
        and _is_local(info, 'img_path')
        and _is_local(info, 'seg_map_path')
    )


def loads_turned(part: Any) -> bool | None:
    """Whether a data set turns images as EXIF says.

    Args:
        part: A data set that is built, without wrappers.

    Returns:
        None if it does not load images from files.
    """
    steps = getattr(getattr(part, 'pipeline', None), 'transforms', ())
    return turns_images(
        dict(
            type=type(getattr(step, 'transform', step)).__name__,
            color_type=getattr(step, 'color_type', 'color'),
            imdecode_backend=getattr(step, 'imdecode_backend', None),
        )
        for step in steps
    )


def _check_images(
    part: Any, infos: Sequence[dict], owner: str, share: float
) -> Findings:
    """Read headers of images, and compare sizes with the annotation file."""
    findings = Findings()
    turns = loads_turned(part)
    unreadable: list[str] = []
    other_size: list[str] = []
    mirrored: list[str] = []
    looked_at = 0
    for info in in_random_order(infos, share * HEADER_SECONDS):
        if not _is_local(info, 'img_path'):
            continue
        looked_at += 1
        path = info['img_path']
        try:
            header = read_header(path)
        except DataError:
            unreadable.append(path)
            continue
        said = info.get('width'), info.get('height')
        if None not in said and turns is not None:
            size = header.size(turns)
            if size != said:
                other_size.append(f'{path} is {_times(size)}, {_times(said)}')
            elif turns and header.orientation in MIRRORED:
                mirrored.append(path)
    for bad, text in (
        (unreadable, 'cannot be read as images'),
        (
            other_size,
            'have another size, as they are loaded, than their annotation '
            'file says; use the images that were annotated, or, if EXIF '
            'turns these images and the annotations are of the images as '
            "stored, LoadImageFromFile(color_type='color_ignore_orientation')",
        ),
    ):
        if bad:
            findings.errors.append(
                f'{owner}: {len(bad)} of {looked_at} images '
                f'({list_some(bad, 2)}) {text}'
            )
    if mirrored:
        findings.warnings.append(
            f'{owner}: EXIF mirrors or turns {len(mirrored)} of {looked_at} '
            f'images ({list_some(mirrored, 2)}) upside down when they are '
            'loaded; look whether the boxes are of the images as shown'
        )
    return findings


def _times(size: Sequence) -> str:
    return f'{size[0]}x{size[1]}'


def _check_masks(
    part: Any, pairs: Sequence[dict], owner: str, share: float
) -> Findings:
    steps = part.pipeline.transforms
    turns = loads_turned(part)
    headers = PairSummary()
    for info in in_random_order(pairs, share * HEADER_SECONDS):
        headers.look_at(info['img_path'], info['seg_map_path'], turns)
    findings = headers.findings(owner)
    loading = [
        s for s in steps if type(s.transform).__name__ == 'LoadAnnotations'
    ]
    if findings.errors or not loading:
        return findings
    labels = LabelSummary(
        part.metainfo.get('classes') or (),
        ignores_zero=bool(getattr(part, 'reduce_zero_label', False)),
    )
    for info in in_random_order(pairs, share * LABEL_SECONDS):
        with findings.catch(DataError):
            found = read_labels(info, loading)
            if found is not None and found.ndim == 2:
                labels.look_at(found)
        if findings.errors:
            return findings
    findings.add(labels.findings(owner, len(part)))
    return findings


def _other_files(part: Any) -> str:
    """A hint on files of the folder that are no images of the data set."""
    suffix = getattr(part, 'img_suffix', None)
    folder = (getattr(part, 'data_prefix', None) or {}).get('img_path')
    if not suffix or not folder or not os.path.isdir(folder):
        return ''
    if getattr(part, 'ann_file', '') and os.path.isfile(part.ann_file):
        return ''
    names = os.listdir(folder)
    other = [x for x in names if Path(x).suffix and not x.endswith(suffix)]
    alike = [x for x in other if x.lower().endswith(suffix.lower())]
    if alike:
        return (
            f': {len(alike)} files of {folder} are not used, since '
            f'img_suffix={suffix!r} tells upper from lower case '
            f'({list_some(alike, 2)}); rename them'
        )
    if other and len(other) == len(names):
        return (
            f': no file of {folder} ends in {suffix!r} ({list_some(other, 2)})'
            '; set img_suffix of the data set'
        )
    unused = [x for x in other if x.lower().endswith(IMAGE_SUFFIXES)]
    if part.data_prefix.get('seg_map_path') == folder:  # the masks as well
        masks = part.seg_map_suffix
        unused = [x for x in unused if not x.endswith(masks)]
    if unused:
        return (
            f': {len(unused)} images of {folder} are not used, since they do '
            f'not end in img_suffix={suffix!r} ({list_some(unused, 2)})'
        )
    broken = [x for x in names if not os.path.exists(os.path.join(folder, x))]
    if broken:
        return (
            f': {len(broken)} files of {folder} are links to files that do '
            f'not exist ({list_some(broken, 2)}), and are not used'
        )
    return ''
