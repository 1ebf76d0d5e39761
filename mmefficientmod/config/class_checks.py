"""Names and numbers of classes in a config, compared with each other."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, Registry

from mmefficientmod.config.nodes import (
    LOADERS,
    dataset_dicts,
    type_name,
    walk,
)
from mmefficientmod.findings import Findings
from mmefficientmod.messages import list_some

# Heads whose number of classes is not that of the data: RPNs tell objects
# from background, and semantic branches of detectors have their own classes.
OTHER_CLASSES = ('rpn_head', 'semantic_head', 'teacher', 'reid')
# Heads of several tasks, and the head of STDC that finds edges.
OTHER_HEADS = ('MultiTaskHead', 'STDCHead')
# Parts of detectors whose classes are words.
TEXT_PARTS = ('language_model', 'text_encoder', 'clip_vision')


def check_classes(
    cfg: Config, found: Findings, loaders: Sequence[str] = LOADERS
) -> None:
    """Check names of classes, palettes, heads, metrics and labels of maps.

    Args:
        cfg: The config. Its toolbox is imported and the default scope.
        loaders: The data loaders of the run. Default: all.
        found: Gets what is wrong.
    """
    by_loader: dict[str, Sequence[str]] = {}
    info: Mapping[str, Any] = {}
    for loader in loaders:
        for dataset in dataset_dicts(cfg, loader):
            found.errors += _check_names(dataset, loader)
            found.errors += _check_zero_label(dataset, loader)
            meta = metainfo(dataset)
            names = meta.get('classes')
            if names and loader not in by_loader:
                by_loader[loader] = names
                info = info or meta
            elif names and loader == 'train_dataloader':
                # Parts for evaluation may have a metric and classes each.
                parts = {
                    loader: by_loader[loader],
                    f'a part of {loader}': names,
                }
                _compare_loaders(parts, found)
    _compare_loaders(by_loader, found)
    if info:
        _check_heads(cfg, info, found)
    count = len(info.get('classes') or ())
    for loader in loaders:
        found.errors += _check_topk(
            cfg, loader.replace('dataloader', 'evaluator'), count
        )


def registered(registry: Registry, kind: Any) -> Any:
    """The class of a type, found in the current scope.

    Args:
        registry: One of MMEngine's root registries.
        kind: A name, or a class, which is returned.

    Returns:
        The class; None if there is none.
    """
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as own:
        return own.get(kind)


def metainfo(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """What a data set says of its classes, as far as the config tells.

    Args:
        dataset: The dict of the data set.

    Returns:
        The class's own metainfo, replaced by that of the dict. ``classes`` is
        missing if it is not known.
    """
    kind = registered(DATASETS, dataset.get('type'))
    own = dataset.get('metainfo')
    info = {
        **(getattr(kind, 'METAINFO', None) or {}),
        **(own if isinstance(own, Mapping) else {}),
    }
    names = dataset.get('classes') or info.get('classes')
    if isinstance(names, str):  # the path of a file with a name on each line
        names = _lines(names)
    if isinstance(names, (list, tuple)) and names:
        info['classes'] = tuple(names)
    else:
        info.pop('classes', None)
    return info


def _lines(path: str) -> list[str]:
    if not Path(path).is_file():
        return []
    return Path(path).read_text('utf-8', 'replace').splitlines()


def _check_names(dataset: Mapping[str, Any], loader: str) -> Iterator[str]:
    """Classes that are a text, that are there twice, and their palette."""
    place = f'{loader}.dataset.metainfo'
    own = dataset.get('metainfo')
    if own is not None and not isinstance(own, (Mapping, Config)):
        yield f'{place}={own!r} is no dict; write dict(classes=(...))'
    own = own if isinstance(own, Mapping) else {}
    names = dataset.get('classes') or own.get('classes')
    if isinstance(names, (set, frozenset, Mapping)):
        yield (
            f'{place}.classes is a {type(names).__name__}, which has no order '
            'of labels; write a tuple of the names, label 0 first'
        )
    if isinstance(names, str) and not Path(names).is_file():
        yield (
            f'{place}.classes={names!r} is one text, of which each letter '
            f"would be a class; write classes=('{names}',), with the comma"
        )
        return
    if not isinstance(names, (list, tuple)):
        return
    twice = [name for name, n in Counter(map(str, names)).items() if n > 1]
    if twice:
        yield (
            f'{place}.classes has {list_some(twice)} more than once; each '
            'class needs a name of its own'
        )
    palette = own.get('palette')
    if isinstance(palette, (list, tuple)) and len(palette) != len(names):
        yield (
            f'{place}.palette has {len(palette)} colours for {len(names)} '
            'classes; give each class one colour, or remove the palette'
        )


def _compare_loaders(
    by_loader: Mapping[str, Sequence[str]], found: Findings
) -> None:
    """Compare the classes of the data loaders.

    Args:
        by_loader: The names by data loader.
        found: Gets an error if a name is another label elsewhere, or no name
            is the same; a warning if some names are missing.
    """
    loaders = list(by_loader)
    for loader in loaders[1:]:
        first, names = list(by_loader[loaders[0]]), list(by_loader[loader])
        if names == first:
            continue
        only = [name for name in names if name not in first]
        missing = [name for name in first if name not in names]
        both = [name for name in names if name in first]
        moved = [x for x in both if names.index(x) != first.index(x)]
        what = (
            f'{list_some(only)} only there, {list_some(missing)} only in '
            f'{loaders[0]}'
            if only or missing
            else 'the order is another one'
        )
        (found.errors if moved or not both else found.warnings).append(
            f'{loader} has other classes than {loaders[0]}: {what}; give '
            'both the same metainfo'
        )


def _check_heads(
    cfg: Config, info: Mapping[str, Any], found: Findings
) -> None:
    """Number of classes of each head and of Mixup, against the data."""
    if any(part in node for node in walk(cfg.get('model')) for part in
           TEXT_PARTS):  # fmt: skip
        return
    for place, node in _with_classes(cfg.get('model'), 'model'):
        _compare(place, 'num_classes', node, _expected(place, info), found)
        for key, kind in ('num_things_classes', 'thing_classes'), (
            'num_stuff_classes', 'stuff_classes',
        ):  # fmt: skip
            _compare(place, key, node, len(info.get(kind) or ()), found)
    preprocessor = cfg.get('data_preprocessor')
    if isinstance(preprocessor, Mapping):
        count = len(info['classes'])
        _compare(
            'data_preprocessor', 'num_classes', preprocessor, count, found
        )


def _expected(place: str, info: Mapping[str, Any]) -> int:
    """How many classes a part of a model must have."""
    things = info.get('thing_classes')
    if things and '_head' in place and 'panoptic' not in place:
        return len(things)
    return len(info['classes'])


def _with_classes(node: Any, place: str) -> Iterator[tuple[str, Mapping]]:
    """The heads and preprocessors that have a number of classes."""
    if isinstance(node, (list, tuple)):
        for index, entry in enumerate(node):
            yield from _with_classes(entry, f'{place}.{index}')
    if not isinstance(node, Mapping) or node.get('class_agnostic'):
        return
    last = place.split('.')
    if any(name in part for part in last for name in OTHER_CLASSES):
        return
    if type_name(node).startswith(('RPN', 'GARPN')) or (
        type_name(node) in OTHER_HEADS
    ):
        return
    is_part = type_name(node).endswith('Head') or any(
        part.endswith(('head', 'data_preprocessor')) or part == 'augments'
        for part in last
    )
    if is_part:
        yield place, node
    for key, value in node.items():
        if key not in ('backbone', 'test_cfg'):
            yield from _with_classes(value, f'{place}.{key}')


def _compare(
    place: str,
    key: str,
    node: Mapping[str, Any],
    count: int,
    found: Findings,
) -> None:
    """Compare a number of classes with that of the data.

    Args:
        place: Where the dict is in the config.
        key: The key of the number.
        node: The dict.
        count: The number of classes of the data; 0 if it is not known.
        found: Gets an error or a warning.
    """
    given = node.get(key)
    if type(given) is not int or not count or given == count:
        return
    text = (
        f'{place}.{key}={given}, and the data set has {count} classes; set '
        f'{place}.{key}={count}'
    )
    (found.errors if given < count else found.warnings).append(text)


def _check_topk(cfg: Config, place: str, count: int) -> Iterator[str]:
    """Accuracies among more classes than there are.

    Args:
        cfg: The config.
        place: Key of the evaluator.
        count: Number of classes of the data; 0 if it is not known, so that
            the classifier's is taken.
    """
    if not count:
        head = (cfg.get('model') or {}).get('head')
        count = head.get('num_classes', 0) if isinstance(head, Mapping) else 0
    for metric in walk(cfg.get(place)):
        topk = metric.get('topk')
        values = topk if isinstance(topk, (list, tuple)) else [topk]
        values = [k for k in values if isinstance(k, int)]
        if type_name(metric) == 'Accuracy' and any(
            k > count > 0 for k in values
        ):
            yield (
                f'{place}.topk={topk} of {type_name(metric)} needs '
                f'{max(values)} classes, and there are {count}; set it to '
                f'{"1" if count < 3 else f"(1, {min(count, 5)})"}'
            )


def _check_zero_label(
    dataset: Mapping[str, Any], loader: str
) -> Iterator[str]:
    """`reduce_zero_label` of a pipeline, against that of its data set."""
    kind = registered(DATASETS, dataset.get('type'))
    value = dataset.get('reduce_zero_label')
    if value is None and kind is not None:
        parameters = inspect.signature(kind).parameters
        if 'reduce_zero_label' not in parameters:
            return
        value = parameters['reduce_zero_label'].default
    for step in dataset.get('pipeline') or []:
        if not isinstance(step, Mapping):
            continue
        given = step.get('reduce_zero_label')
        if given is not None and isinstance(value, bool) and given != value:
            yield (
                f'pipeline of {loader}: reduce_zero_label={given} of '
                f'{type_name(step)}, and {value} of {type_name(dataset)}; set '
                f'{loader}.dataset.reduce_zero_label={given}, or remove it '
                'from the step'
            )
