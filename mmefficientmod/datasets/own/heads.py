"""The number of classes in the heads of detectors and segmentors."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

from mmengine.config import ConfigDict

from mmefficientmod.config.class_checks import OTHER_HEADS
from mmefficientmod.config.nodes import type_name, walk

# Parts that know no classes, or those of other data.
OTHER_PARTS = ('backbone', 'data_preprocessor', 'neck', 'rpn_head', 'teacher')


def set_num_classes(model: ConfigDict, number: int) -> list[str]:
    """Set the number of classes everywhere in a model's config.

    Weights of classes in losses are removed, except those that are equal for
    all classes, as Mask2Former has them, with another one for "no object".

    Args:
        model: The dict of a detector or a segmentor, changed in place.
        number: The number of classes.

    Returns:
        Names of the heads that were changed, such as ``roi_head.bbox_head``.
    """
    heads = []
    for path, head in _heads(model, ()):
        before = _set(head, number)
        for node in _inside(head):
            _set_weights(node, before, number)
        heads.append('.'.join(path))
    return heads


def set_names(model: ConfigDict, names: Sequence[str]) -> None:
    """Set the names that a text encoder of MMSegmentation reads.

    Args:
        model: The dict of a segmentor, changed in place.
        names: Names of the classes.
    """
    for node in walk(model):
        encoder = node.get('text_encoder')
        if isinstance(encoder, MutableMapping):
            encoder.update(dataset_name=None, vocabulary=list(names))


def _heads(
    node: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], ConfigDict]]:
    """The dicts with a number of classes, and where they are."""
    if isinstance(node, MutableMapping):
        if _has_classes(node):
            yield path, node
        for key, value in node.items():
            if key not in OTHER_PARTS:
                yield from _heads(value, (*path, key))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _heads(value, (*path, str(i)))


def _has_classes(node: MutableMapping) -> bool:
    return type_name(node) not in OTHER_HEADS and (
        'num_classes' in node or 'num_things_classes' in node
    )


def _set(head: MutableMapping, number: int) -> int:
    """Set the number of classes of a head, and return the old one."""
    before = head.get('num_classes') or (
        head.get('num_things_classes', 0) + head.get('num_stuff_classes', 0)
    )
    if 'num_classes' in head:
        head['num_classes'] = number
    if 'num_things_classes' in head:
        head['num_things_classes'] = number
    if 'num_stuff_classes' in head:
        head['num_stuff_classes'] = 0
    outputs = head.get('out_channels')
    # One output is enough for two classes of a segmentor.
    if outputs == before or (outputs == 1 and number != 2):
        head['out_channels'] = number
    return before


def _inside(head: ConfigDict) -> Iterator[ConfigDict]:
    """The dicts in a head that belong to no head inside it."""
    todo: list[Any] = [head]
    while todo:
        node = todo.pop()
        if isinstance(node, MutableMapping):
            if node is head or not _has_classes(node):
                yield node
                todo += node.values()
        elif isinstance(node, (list, tuple)):
            todo += node


def _set_weights(node: ConfigDict, before: int, number: int) -> None:
    weights = node.get('class_weight')
    if not isinstance(weights, (list, tuple)):
        return
    equal = len(set(weights[:before])) == 1
    if equal and len(weights) == before + 1:
        node['class_weight'] = [weights[0]] * number + [weights[-1]]
    elif len(weights) == before:
        del node['class_weight']
