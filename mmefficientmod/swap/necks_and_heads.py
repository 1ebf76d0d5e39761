"""Necks and heads of a config, fitted to the channels of a new backbone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict

from mmefficientmod.config.nodes import ConfigError, type_name, walk
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.probe import Levels, neck_channels, option_of

# Necks that make a pyramid for a backbone without one.
PYRAMID_MAKERS = ('Feature2Pyramid', 'MultiLevelNeck')
# Heads that read tokens of a vision transformer, not only a feature map.
TOKEN_HEADS = (
    'DPTHead', 'SegmenterMaskTransformerHead', 'VisionTransformerClsHead',
    'DeiTClsHead', 'LeViTClsHead', 'MIMHead', 'ConformerHead',
    'EfficientFormerClsHead', 'VigClsHead', 'SAMHead',
)  # fmt: skip
# Heads of classifiers that pool the feature map themselves.
MAP_HEADS = ('CSRAClsHead',)


def check_dense_model(model: ConfigDict) -> None:
    """Refuse detectors and segmentors that need their own backbone.

    Args:
        model: The model with its old backbone.

    Raises:
        ConfigError: If a head reads tokens or contains a stage of the
            backbone, or the neck runs the backbone itself.
    """
    backbone = type_name(model.backbone)
    for head in walk(model):
        name = type_name(head)
        if name in TOKEN_HEADS or name.startswith('SETR'):
            raise ConfigError(
                f'{name} reads the tokens of a vision transformer, all at '
                'one stride; a backbone with a pyramid has none'
            )
    roi_head = model.get('roi_head')
    shared = isinstance(roi_head, Mapping) and roi_head.get('shared_head')
    if shared:
        raise ConfigError(
            'this is a C4 model: its RoI head contains the last stage of '
            f'{backbone} ({type_name(shared)}), which another backbone does '
            'not have; take the FPN variant of the config'
        )
    for neck in walk(model.get('neck')):
        if 'rfp_backbone' in neck:
            raise ConfigError(
                f'the neck {type_name(neck)} runs {backbone} a second time '
                'and gives it its own outputs, which another backbone does '
                'not accept; start from a config with FPN'
            )


def check_classifier(model: ConfigDict) -> None:
    """Refuse classifiers whose head reads tokens.

    Args:
        model: The model with its old backbone.

    Raises:
        ConfigError: If it has such a head, or none.
    """
    head = model.get('head')
    if not isinstance(head, Mapping) or type_name(head) in TOKEN_HEADS:
        raise ConfigError(
            f'{type_name(head) or type_name(model)} reads tokens of its own '
            'backbone, and a pyramid has none; start from a config with a '
            'LinearClsHead, such as '
            'mmpretrain::resnet/resnet50_8xb32_in1k.py'
        )


def remove_pyramid_maker(model: ConfigDict) -> bool:
    """Remove a neck that makes a pyramid, as the new backbone gives one.

    Args:
        model: The model, changed in place.

    Returns:
        Whether there was such a neck.
    """
    name = type_name(model.get('neck'))
    if name not in PYRAMID_MAKERS:
        return False
    log_change(
        f'neck {name} is removed: the new backbone already gives a pyramid'
    )
    model.neck = None
    return True


def fit_neck_and_heads(
    model: ConfigDict, before: Levels, after: Levels
) -> None:
    """Give neck and heads the channels of the new backbone.

    Heads behind a neck read the outputs of the neck. Their channels change
    only where the neck passes a level of the backbone on.

    Args:
        model: A detector or segmentor, changed in place.
        before: Levels of the old backbone.
        after: Levels of the new backbone.

    Raises:
        ConfigError: If the channels of neck or heads do not match the number
            of levels.
    """
    neck = model.get('neck')
    read_by_heads = after.channels
    if neck:
        old_neck = copy.deepcopy(neck)
        # Of several necks, the first reads the backbone, and each other one
        # the neck before it.
        first = neck[0] if isinstance(neck, (list, tuple)) else neck
        _fit_neck(model, first, before.channels, after.channels)
        if not _heads_choose_levels(model):
            return
        read_by_heads = neck_channels(neck, after)
        if read_by_heads == neck_channels(old_neck, before):
            return
    for name, head in model.items():
        if name.endswith('head') and head:
            _fit_heads(head, read_by_heads, behind_neck=bool(neck))


def _fit_neck(
    model: ConfigDict,
    neck: ConfigDict,
    old: tuple[int, ...],
    new: tuple[int, ...],
) -> None:
    """Set the input channels of a neck.

    SSD's neck passes its first inputs on, and SSD's head repeats their
    channels. Both are set, too.

    Args:
        model: The model, for its heads; changed in place.
        neck: The neck that reads the backbone, changed in place.
        old: Channels of the old backbone's levels.
        new: Channels of the new backbone's levels.
    """
    value = neck.get('in_channels')
    if isinstance(value, int):
        neck.in_channels = new[-1]
        return
    if value is None:
        raise ConfigError(
            f'the neck {type_name(neck)} has no in_channels, so that its '
            'outputs for another backbone are not known'
        )
    if len(value) > len(new):
        raise ConfigError(
            f'the neck {type_name(neck)} has in_channels={value}, which does '
            f'not match the {len(new)} levels of the backbone'
        )
    if tuple(value) == old[::-1] != old:  # YOLOv3 counts from the last level
        channels = new[::-1]
    else:
        channels = new[len(new) - len(value) :]
    neck.in_channels = type(value)(channels)  # JPU requires a tuple
    outs = neck.get('out_channels')
    if isinstance(outs, (list, tuple)) and tuple(outs[: len(value)]) == tuple(
        value
    ):
        fitted = [*channels, *outs[len(value) :]]
        for head in walk(model.get('bbox_head')):
            if head.get('in_channels') == outs:
                head.in_channels = fitted
        neck.out_channels = type(outs)(fitted)


def _heads_choose_levels(model: ConfigDict) -> bool:
    """Whether heads choose levels by ``in_index``, as in MMSegmentation."""
    return any(
        'in_index' in node
        for name in ('decode_head', 'auxiliary_head')
        for node in walk(model.get(name))
    )


def _fit_heads(
    head: Any, channels: tuple[int, ...], behind_neck: bool
) -> None:
    """Set the channels of a head, or of each in a list of heads.

    Args:
        head: The head or heads, changed in place.
        channels: Channels of the levels that the head can read.
        behind_neck: Whether the levels are those of a neck.
    """
    if isinstance(head, (list, tuple)):
        for one in head:
            _fit_heads(one, channels, behind_neck)
        return
    for node in walk(head):
        # A module inside a head reads the features of the head, unless it
        # chooses levels itself.
        if node is not head and 'in_index' not in node:
            continue
        value, index = node.get('in_channels'), node.get('in_index', -1)
        if isinstance(value, int):
            node.in_channels = channels[index]
        elif value is not None and 'in_index' in node:
            node.in_channels = [channels[i] for i in index]
        elif value is not None and not behind_neck:
            if len(value) != len(channels):
                raise ConfigError(
                    f'{type_name(node)} has in_channels={list(value)}, which '
                    f'does not match the {len(channels)} levels of the '
                    'backbone'
                )
            node.in_channels = list(channels)
        if 'c1_in_channels' in node:  # DeepLabV3+ also reads the first level
            node.c1_in_channels = channels[0]


def pool_average(model: ConfigDict) -> None:
    """Put average pooling between backbone and head of a classifier.

    Args:
        model: A classifier, changed in place. A head that pools itself keeps
            its neck.
    """
    if type_name(model.head) in MAP_HEADS:
        return
    neck, pooling = model.get('neck'), dict(type='GlobalAveragePooling')
    if neck and neck != pooling:
        necks = neck if isinstance(neck, (list, tuple)) else [neck]
        names = ' and '.join(map(type_name, necks))
        log_change(f'neck {names} is replaced by average pooling')
    model.neck = ConfigDict(pooling)


def fit_classifier_head(model: ConfigDict, channels: int) -> None:
    """Give a classifier's head the channels of the new backbone.

    Args:
        model: The classifier with its old backbone, changed in place. If its
            head has no layer, because the old backbone contains the
            classifier, it gets a linear one.
        channels: Channels of the last level of the new backbone.

    Raises:
        ConfigError: If the number of classes is not known.
    """
    fitted = [n for n in walk(model.head) if 'in_channels' in n]
    for node in fitted:
        node.in_channels = channels
    if fitted:
        return
    # In VGG and others the classifier is a part of the backbone.
    head, backbone = type_name(model.head), type_name(model.backbone)
    classes = option_of(model.backbone, 'num_classes')
    if not isinstance(classes, int) or classes < 1:
        raise ConfigError(
            f'{head} has no linear layer, and {backbone} has no num_classes '
            'for a new one; start from a config with a LinearClsHead'
        )
    log_change(
        f'{head} gets a linear layer for {classes} classes, which was a part '
        f'of {backbone}'
    )
    model.head.update(
        type='LinearClsHead', in_channels=channels, num_classes=classes
    )
