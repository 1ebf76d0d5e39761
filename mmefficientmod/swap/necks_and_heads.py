"""Necks and heads of a config, fitted to the channels of a new backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict

from mmefficientmod.config.nodes import ConfigError, type_name, walk
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.probe import option_of

# They make a pyramid of a backbone that has none.
PYRAMID_MAKERS = ('Feature2Pyramid', 'MultiLevelNeck')
# They read more of a vision transformer than a map of features.
TOKEN_HEADS = (
    'DPTHead', 'SegmenterMaskTransformerHead', 'VisionTransformerClsHead',
    'DeiTClsHead', 'LeViTClsHead', 'MIMHead', 'ConformerHead',
    'EfficientFormerClsHead', 'VigClsHead', 'SAMHead',
)  # fmt: skip
# They pool what they read themselves.
MAP_HEADS = ('CSRAClsHead',)


def refuse_impossible_swaps(model: ConfigDict) -> None:
    """One sentence for the kinds of models that take no pyramid."""
    old = model.backbone
    for head in walk(model):
        if type_name(head) in TOKEN_HEADS or type_name(head).startswith(
            'SETR'
        ):
            raise ConfigError(
                f'{type_name(head)} reads the tokens of a vision transformer, '
                'all at one stride; a backbone with a pyramid has none'
            )
    roi_head = model.get('roi_head') or {}
    shared = isinstance(roi_head, Mapping) and roi_head.get('shared_head')
    if shared:
        raise ConfigError(
            f'this is a C4 model: its RoI head goes on with the last stage of '
            f'{type_name(old)} ({type_name(shared)}), which another backbone '
            'does not have; take the FPN variant of the config'
        )
    for neck in walk(model.get('neck') or {}):
        if 'rfp_backbone' in neck:
            raise ConfigError(
                f'the neck {type_name(neck)} runs {type_name(old)} a second '
                'time on its own output, for which that backbone has inputs'
            )


def fit_neck(
    model: ConfigDict,
    neck: ConfigDict,
    old: tuple[int, ...],
    new: tuple[int, ...],
) -> None:
    value = neck.get('in_channels')
    if isinstance(value, int):
        neck.in_channels = new[-1]
        return
    if value is None:
        raise ConfigError(
            f'the neck {type_name(neck)} names no in_channels, so that '
            'nothing says what it gives to the heads'
        )
    if len(value) > len(new):
        raise ConfigError(
            f'the neck {type_name(neck)} has in_channels={value}, which does '
            f'not go with the {len(old)} levels of its backbone'
        )
    if tuple(value) == old[::-1] != old:
        channels = new[::-1]
    else:
        channels = new[len(new) - len(value) :]
    neck.in_channels = type(value)(channels)  # JPU insists on a tuple
    # SSD's neck hands the first levels on as they are, to a head that says so.
    outs = neck.get('out_channels')
    if isinstance(outs, Sequence) and tuple(outs[: len(value)]) == tuple(
        value
    ):
        fitted = [*channels, *outs[len(value) :]]
        for head in walk(model.get('bbox_head') or {}):
            if head.get('in_channels') == outs:
                head.in_channels = fitted
        neck.out_channels = type(outs)(fitted)


def reads_by_index(model: ConfigDict) -> bool:
    """Whether heads choose levels, as MMSegmentation's do."""
    return any(
        'in_index' in node
        for name in ('decode_head', 'auxiliary_head')
        for node in walk(model.get(name) or {})
    )


def fit_heads(
    head: Any, old: tuple[int, ...], new: tuple[int, ...], behind_neck: bool
) -> None:
    """Set the channels that heads read, at their ``in_index`` if they have."""
    if not isinstance(head, Mapping):
        for one in head:
            fit_heads(one, old, new, behind_neck)
        return
    for node in walk(head):
        # Inner modules read the head's own features, unless they choose.
        if node is not head and 'in_index' not in node:
            continue
        value, index = node.get('in_channels'), node.get('in_index', -1)
        if isinstance(value, int):
            node.in_channels = new[index]
        elif value is not None and 'in_index' in node:
            node.in_channels = [new[i] for i in index]
        elif value is not None and not behind_neck:
            if len(value) != len(new):
                raise ConfigError(
                    f'{type_name(node)} has in_channels={list(value)} for '
                    f'{len(old)} levels'
                )
            node.in_channels = list(new)
        if 'c1_in_channels' in node:  # DeepLabV3+ also reads the first level
            node.c1_in_channels = new[0]


def fit_classifier_head(
    model: ConfigDict, old: Mapping[str, Any], channels: int
) -> None:
    fitted = [n for n in walk(model.head) if 'in_channels' in n]
    for node in fitted:
        node.in_channels = channels
    if fitted:
        return
    # In VGG and others the classifier is a part of the backbone.
    classes = option_of(old, 'num_classes')
    if not isinstance(classes, int) or classes < 1:
        raise ConfigError(
            f'{type_name(model.head)} has no layer of its own, and '
            f'{type_name(old)} does not say for how many classes it has one; '
            'start from a config with a LinearClsHead'
        )
    log_change(
        f'{type_name(model.head)} gets a linear layer for {classes} classes, '
        f'which was a part of {type_name(old)}'
    )
    model.head.update(
        type='LinearClsHead', in_channels=channels, num_classes=classes
    )
