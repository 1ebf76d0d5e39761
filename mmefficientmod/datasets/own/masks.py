"""Own data for segmentation: images and the masks that belong to them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mmefficientmod.atomic import write_folder
from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import IMAGE_SUFFIXES
from mmefficientmod.datasets.masks import IGNORED
from mmefficientmod.messages import list_some

from .layout import (
    SPLIT_WORDS,
    SPLITS,
    OwnData,
    Split,
    folder_names,
    hold_out,
    hold_out_note,
    list_files,
    prepared_folder,
    role_of,
    split_of,
    stamp,
    words,
)
from .mask_files import (
    Mask,
    first_channel,
    is_sparse,
    labels_of,
    look_at_some,
    read_mask,
)
from .names import ADE20K, Names, ade20k_names, distinct_colours, read_names

# Folders of masks of instances, and of drawings of masks.
NO_MASKS = re.compile('segmentation(object|classvisualization)', re.I)
MASK_ENDINGS = re.compile(
    r'[_-](mask|masks|label|labels|seg|gt|gtFine_labelTrainIds)$', re.I
)
IMAGE_ENDINGS = re.compile(r'[_-](leftImg8bit|image|img|rgb)$', re.I)
# Words that the name of a list of files may have.
LIST_WORDS = {*SPLIT_WORDS, 'files', 'ids', 'images', 'list', 'split'}
VOID = (224, 224, 192)  # the borders of objects in Pascal VOC
SAMPLE = 200  # masks that are looked at
Pair = tuple[str, str]
Convert = Callable[[Path], np.ndarray]


def find_masks(root: Path) -> OwnData | None:
    """Find images and their masks.

    A file is a mask if its name or a folder says so (``masks``,
    ``ann_dir``, ``x_mask.png``), and belongs to the image with the same name
    in the same split.

    Args:
        root: The folder.

    Returns:
        What was found, None if no image has a mask.

    Raises:
        DataError: If the labels of the masks are not clear.
    """
    pairs, without = _find_pairs(root)
    if not pairs:
        return None
    notes = []
    if without:
        notes.append(
            f'{len(without)} images have no mask and are not used (first: '
            f'{without[0]})'
        )
    splits = _divide(root, pairs, notes)
    masks = [mask for part in splits.values() for _, mask in part]
    folders = [root, *_folders_of(root, masks)]
    names = read_names(folders)
    _refuse_jpeg(root, masks)
    sample = look_at_some(root, masks, SAMPLE)
    if names is None and is_sparse(labels_of(sample)):
        sample = look_at_some(root, masks, len(masks))
    if names is None and not any(mask.coloured for mask in sample.values()):
        names = ade20k_names(labels_of(sample), masks)
        if names:
            notes.append(
                "the labels are taken for ADE20K's, which the layout of the "
                f'folder and their numbers suggest; if not, write {root}'
                '/classes.csv'
            )
    convert = _conversion(root, sample, names, notes)
    classes, ignores_zero = _classes(root, sample, convert, names, notes)
    listed = _write(root, splits, convert)
    return OwnData(
        layout='images with masks',
        root=root,
        splits={
            split: Split(
                num_images=len(part),
                source=f'{folder_names(x for x, _ in part)}, masks in '
                f'{folder_names(x for _, x in part)}',
                ann_file=str(listed / f'{split}.json'),
                folder=str(root),
            )
            for split, part in splits.items()
        },
        classes=classes,
        names_from=names.path.name if names else _advice(root, convert),
        palette=[*names.colours]
        if names and len(names.colours) == len(classes)
        else distinct_colours(len(classes)),
        notes=notes,
        ignores_zero=ignores_zero,
    )


def _advice(root: Path, convert: Convert | None) -> str:
    """Where names come from if no file has them, and how to write one."""
    if isinstance(convert, _ByLabel):
        return (
            f'the labels; for others, write {root / "classes.csv"}, a line '
            'of titles, then label, name'
        )
    return (
        f'the labels; for others, write {root / "classes.txt"}, one name a '
        'line'
    )


def _find_pairs(root: Path) -> tuple[list[Pair], list[str]]:
    """Images with their masks, and images without one."""
    images: dict[tuple, str] = {}
    masks: dict[tuple, str] = {}
    for name in list_files(root, IMAGE_SUFFIXES):
        path = PurePosixPath(name)
        if any(NO_MASKS.match(part) for part in path.parts):
            continue
        roles = [role_of(part) for part in path.parts[:-1]]
        stem, is_mask = path.stem, 'mask' in roles
        if MASK_ENDINGS.search(stem) and (is_mask or 'image' not in roles):
            stem, is_mask = MASK_ENDINGS.sub('', stem), True
        kept = tuple(
            part
            for part, role in zip(path.parts[:-1], roles, strict=True)
            if not role
        )
        key = (
            split_of(*reversed(path.parts[:-1])),
            kept,
            IMAGE_ENDINGS.sub('', stem).removesuffix('_gtFine'),
        )
        (masks if is_mask else images).setdefault(key, name)
    pairs = [(images[k], masks[k]) for k in images if k in masks]
    return pairs, [name for k, name in images.items() if k not in masks]


def _divide(
    root: Path, pairs: Sequence[Pair], notes: list[str]
) -> dict[str, list[Pair]]:
    """The pairs of each split: by folders, by lists, or a fixed part."""
    splits: dict[str, list[Pair]] = {}
    for pair in pairs:
        parts = PurePosixPath(pair[0]).parts[:-1]
        splits.setdefault(split_of(*reversed(parts)) or '', []).append(pair)
    if {*splits} <= {'', 'train'}:
        lists = _lists(root)
        by_stem = {PurePosixPath(x).stem: (x, y) for x, y in pairs}
        splits = {
            split: [by_stem[stem] for stem in stems if stem in by_stem]
            for split, stems in lists.items()
        }
        splits = {split: part for split, part in splits.items() if part}
        if splits:
            notes.append(
                f'{len(pairs) - sum(map(len, splits.values()))} images are in '
                f'no list of {", ".join(f"{x}.txt" for x in lists)}'
            )
    if {*splits} <= {'train'}:
        pairs = splits.get('train', pairs)
        if len(pairs) < 2:
            raise DataError(
                f'{root} has {len(pairs)} image with a mask; training needs '
                'at least two, one of them for validation'
            )
        train, val = hold_out(pairs)
        splits = dict(train=train, val=val)
        notes.append(hold_out_note('no folders or lists for it'))
    splits.pop('', None)
    return {split: splits[split] for split in SPLITS if split in splits}


def _lists(root: Path) -> dict[str, list[str]]:
    """Names without suffix that lists such as ``train.txt`` have."""
    found: dict[str, list[str]] = {}
    names = list_files(root, ['.txt'])
    # Pascal VOC has other lists for other tasks.
    for name in sorted(names, key=lambda x: 'segmentation' not in x.lower()):
        stem = PurePosixPath(name).stem
        split = split_of(stem)
        if split and split not in found and {*words(stem)} <= LIST_WORDS:
            lines = (root / name).read_text(errors='replace').splitlines()
            found[split] = [
                PurePosixPath(line.split()[0]).stem
                for line in lines
                if line.strip()
            ]
    return found


def _folders_of(root: Path, masks: Sequence[str]) -> list[Path]:
    """The folders of the masks and those around them."""
    folders = {PurePosixPath(mask).parent for mask in masks}
    folders |= {parent for folder in folders for parent in folder.parents}
    return [root / folder for folder in sorted(folders)]


def _refuse_jpeg(root: Path, masks: Sequence[str]) -> None:
    for mask in masks:
        if mask.lower().endswith(('.jpg', '.jpeg')):
            raise DataError(
                f'{root / mask} is a JPEG, whose compression changes the '
                'labels at the edges; save the masks as PNG'
            )


def _conversion(
    root: Path,
    sample: Mapping[str, Mask],
    names: Names | None,
    notes: list[str],
) -> Convert | None:
    """How masks become label maps; None if they are such."""
    labels = labels_of(sample)
    ignored = any(IGNORED in mask.labels for mask in sample.values())
    if not labels and ignored:
        raise DataError(
            f'{root}: the masks have no label but 255, which is ignored'
        )
    in_colour = [n for n, mask in sample.items() if not mask.labels]
    if names and names.colours and any(m.coloured for m in sample.values()):
        notes.append(
            f'masks in colour were converted by {names.path.name}, to '
            f'{_place(root)}'
        )
        return _ByColour(names)
    if in_colour:
        raise DataError(
            f'{root / in_colour[0]} is in colour, and {root} has no '
            'labelmap.txt that says what the colours mean; write a line '
            'name:red,green,blue:: for each class there, the background too'
        )
    if labels and labels[-1] > IGNORED:
        where = next(n for n, m in sample.items() if labels[-1] in m.labels)
        raise DataError(
            f'{root / where} has the label {labels[-1]}; labels are 0 to '
            '254, and 255 is ignored'
        )
    if labels == [0] and ignored:
        if names and len(names.names) > 2:
            raise DataError(
                f'{root}: the masks have the values 0 and 255 alone, and '
                f'{names.path} has {len(names.names)} names; write labels '
                'from 0 upwards'
            )
        notes.append(
            'the masks have the values 0 and 255; they were converted, to '
            f'{_place(root)}: 255 is label 1'
        )
        return _binary_to_labels
    given = names.labels if names else ()
    if names and given != tuple(range(len(given))):
        dropped = sorted({*labels} - {*given})
        notes.append(
            f'the labels of {names.path.name} were numbered anew, to '
            f'{_place(root)}; labels that are ignored: '
            f'{list_some(dropped, 16)}'
        )
        return _ByLabel(given)
    if names is None and is_sparse(labels):
        notes.append(
            f'the labels {list_some(labels, 16)} were numbered anew, to '
            f'{_place(root)}'
        )
        return _ByLabel(tuple(labels))
    if any(mask.grey for mask in sample.values()):
        notes.append(
            'the masks have several equal channels; one of them was written '
            f'to {_place(root)}'
        )
        return first_channel
    return None


def _place(root: Path) -> str:
    return f'data/own/{root.resolve().name}-...'


def _binary_to_labels(path: Path) -> np.ndarray:
    pixels = first_channel(path)
    wrong = pixels[(pixels != 0) & (pixels != 255)]
    if wrong.size:
        raise DataError(
            f'{path} has the value {wrong.flat[0]}, and the other masks have '
            '0 and 255; write labels from 0 upwards, or correct this mask'
        )
    return (pixels == 255).astype(np.uint8)


@dataclass(frozen=True)
class _ByColour:
    """Label maps of masks in colour."""

    names: Names

    def __call__(self, path: Path) -> np.ndarray:
        pixels, colours = read_mask(path)
        if colours is not None:
            pixels = colours[pixels]
        elif pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        codes = _codes(pixels[..., :3])
        known = [*self.names.colours]
        labels = list(range(len(known)))
        if VOID not in known:
            known.append(VOID)
            labels.append(IGNORED)
        table = _codes(np.array(known))
        order = np.argsort(table)
        place = np.searchsorted(table[order], codes).clip(max=len(known) - 1)
        wrong = table[order][place] != codes
        if wrong.any():
            colour = pixels[..., :3][wrong][0].tolist()
            raise DataError(
                f'{path} has the colour {",".join(map(str, colour))}, which '
                f'is not in {self.names.path}; add a line name:'
                f'{",".join(map(str, colour))}:: or correct the mask'
            )
        return np.array(labels, np.uint8)[order][place]


@dataclass(frozen=True)
class _ByLabel:
    """Label maps whose labels are numbered from 0 without gaps.

    All other labels are ignored.
    """

    labels: tuple[int, ...]

    def __call__(self, path: Path) -> np.ndarray:
        table = np.full(256, IGNORED, np.uint8)
        table[list(self.labels)] = range(len(self.labels))
        return table[first_channel(path)]


def _codes(colours: np.ndarray) -> np.ndarray:
    """Colours ``(..., 3)`` as one number each."""
    return colours.astype(np.int64) @ [65536, 256, 1]


def _classes(
    root: Path,
    sample: Mapping[str, Mask],
    convert: Convert | None,
    names: Names | None,
    notes: list[str],
) -> tuple[tuple[str, ...], bool]:
    """Names of the classes, and whether label 0 is ignored."""
    labels = labels_of(sample)
    if labels == [0] and not convert:
        notes.append(f'{len(sample)} masks were looked at: all have label 0')
    if isinstance(convert, _ByColour):
        return convert.names.names, False
    if isinstance(convert, _ByLabel):
        given = names.names if names else ()
        return given or tuple(f'class {i}' for i in labels), False
    largest = max(labels, default=0)
    if convert is _binary_to_labels:
        largest = 1
    elif any(IGNORED in mask.labels for mask in sample.values()):
        notes.append('pixels of label 255 are ignored')
    if names is None:
        notes.append('label 0 is a class as well')
        return tuple(f'class {i}' for i in range(max(2, largest + 1))), False
    given = names.names
    if names.path == ADE20K:
        return given, True
    if len(given) == 1 and largest == 1:
        return ('background', *given), False
    if largest == len(given):
        notes.append(
            f'label 0 is ignored: label 1 is {given[0]}, label {largest} is '
            f'{given[-1]}'
        )
        return given, True
    if largest > len(given):
        where = next(n for n, m in sample.items() if largest in m.labels)
        raise DataError(
            f'{root / where} has the label {largest}, and {names.path} has '
            f'{len(given)} names; write a name for each label, from label 0 '
            'upwards, or lines label, name in classes.csv'
        )
    return given, False


def _write(
    root: Path, splits: Mapping[str, Sequence[Pair]], convert: Convert | None
) -> Path:
    """Write the lists of pairs, and label maps where masks are none."""
    pairs = {split: [list(p) for p in part] for split, part in splits.items()}
    content = [json.dumps(pairs)]
    if convert:
        masks = sorted({m for part in splits.values() for _, m in part})
        content += [stamp(root, masks), repr(convert).partition(' at ')[0]]
    folder = prepared_folder(root, *content)

    def write(draft: Path) -> None:
        if convert:
            (draft / 'masks').mkdir()
            with ThreadPoolExecutor() as pool:
                jobs = [
                    pool.submit(
                        _save, convert, root / mask, _label_map(draft, i)
                    )
                    for i, mask in enumerate(masks)
                ]
                for job in jobs:
                    job.result()
            places = {m: _label_map(folder, i) for i, m in enumerate(masks)}
            for part in pairs.values():
                for pair in part:
                    pair[1] = str(places[pair[1]])
        for split, part in pairs.items():
            (draft / f'{split}.json').write_text(json.dumps(part))

    return write_folder(folder, write)


def _label_map(folder: Path, number: int) -> Path:
    return folder / 'masks' / f'{number:06d}.png'


def _save(convert: Convert, mask: Path, path: Path) -> None:
    Image.fromarray(convert(mask)).save(path)
