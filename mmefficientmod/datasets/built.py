"""Data sets that are built: their files, masks and first samples."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import DATASETS

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import (
    describe_missing,
    in_random_order,
    missing_files,
    turns_images,
)
from mmefficientmod.datasets.masks import (
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


def check_built(dataset: Any, loader: str) -> Findings:
    """Look at a data set that is built.

    Args:
        dataset: The data set or a wrapper of data sets.
        loader: Name of its data loader, for messages.
    """
    findings = Findings()
    parts = innermost(dataset)
    for part in parts:
        owner = f'{type(part).__name__} of {loader}'
        if hasattr(part, 'get_data_info'):
            findings.add(_check_part(part, owner, len(parts)))
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
    return None


def _check_part(part: Any, owner: str, number: int) -> Findings:
    findings = Findings()
    if not len(part):
        findings.errors.append(f'{owner} has no images{_other_files(part)}')
        return findings
    step = -(-len(part) // MOST_ENTRIES)
    infos = [part.get_data_info(i) for i in range(0, len(part), step)]
    for key, kind in (('img_path', 'images'), ('seg_map_path', 'masks')):
        paths = [x.get(key) for x in infos]
        local = [p for p in paths if isinstance(p, str) and '://' not in p]
        missing = missing_files(local)
        if missing:
            findings.errors.append(
                describe_missing(missing, len(local), owner, kind)
            )
    if findings.errors:
        return findings
    ignored = _other_files(part)
    if ignored:
        findings.warnings.append(f'{owner}{ignored}')
    pairs = [x for x in infos if 'reduce_zero_label' in x and _is_pair(x)]
    if pairs and not part.metainfo.get('classes'):
        findings.errors.append(
            f'{owner} has no class names; set metainfo=dict(classes=(...))'
        )
    elif pairs:
        findings.add(_check_masks(part, pairs, owner, 1 / number))
    return findings


def _is_pair(info: dict) -> bool:
    return all(
        isinstance(info.get(key), str) and '://' not in info[key]
        for key in ('img_path', 'seg_map_path')
    )


def _check_masks(
    part: Any, pairs: Sequence[dict], owner: str, share: float
) -> Findings:
    steps = part.pipeline.transforms
    built = [
        ConfigDict(
            type=type(step.transform).__name__,
            color_type=getattr(step, 'color_type', 'color'),
            imdecode_backend=getattr(step, 'imdecode_backend', None),
        )
        for step in steps
    ]
    turns = turns_images(built)
    headers = PairSummary()
    for info in in_random_order(pairs, share * HEADER_SECONDS):
        headers.look_at(info['img_path'], info['seg_map_path'], turns)
    findings = headers.findings(owner)
    loading = [
        s for s in steps if type(s.transform).__name__ == 'LoadAnnotations'
    ]
    if findings.errors or not loading:
        return findings
    labels = LabelSummary(part.metainfo.get('classes') or ())
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
    """A hint on files that differ from the suffix in upper and lower case."""
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
    return ''
