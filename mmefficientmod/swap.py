"""A config in, the same config with another backbone out.

The old backbone is built once, without weights, to see at which strides the
rest of the model reads it; the new one, to see which channels it gives there.
Nothing about either is tabulated.
"""

from __future__ import annotations

import ast
import copy
import difflib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader

from mmefficientmod.checkpoint.loading import pretrained_part
from mmefficientmod.checkpoint.reading import CheckpointError, select_weights
from mmefficientmod.config.nodes import ConfigError, find_model, kind_of, walk
from mmefficientmod.models.backbones.timm_pyramid import check_name
from mmefficientmod.probe import (
    Levels,
    class_of,
    is_ours,
    neck_channels,
    not_loaded,
    option_of,
    parameter_names,
    parameters_of,
    probe,
    without_weights,
)
from mmefficientmod.zoo import BACKBONES, normalisation

# Arguments of a backbone that say how to train it and not what it is.
TRAINING_OPTIONS = ('frozen_stages', 'norm_eval', 'with_cp')
# Of these, what makes sense with weights alone, and what it does without.
NEED_WEIGHTS = dict(
    frozen_stages='it would freeze random weights',
    norm_eval='batch norms would keep mean 0 and variance 1',
)
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
# Backbone and decoder in one, though what comes out could be a pyramid's.
WHOLE_NETWORKS = ('CGNet', 'DDRNet', 'ERFNet', 'ICNet', 'PIDNet')
LAYER_DECAY = (
    'LearningRateDecayOptimizerConstructor',
    'LayerDecayOptimizerConstructor',
    'LearningRateDecayOptimWrapperConstructor',
)


def swap_backbone(
    cfg: Config,
    backbone: str | Mapping[str, Any],
    pretrained: str | None = None,
) -> Config:
    """Replace the backbone of any config of the three toolboxes.

    What reads the backbone gets its new channels, at the strides of before;
    classification reads the last stage with its final norm and pools it. Old
    weights go, options of the old backbone stay where they mean something.
    Whatever else changes is logged.

    Args:
        cfg: A config of MMDetection, MMSegmentation or MMPretrain; it is not
            changed.
        backbone: A name of :data:`~mmefficientmod.zoo.BACKBONES`, or the
            dict of any registered backbone that returns a tuple of
            ``(N, C_i, H_i, W_i)``.
        pretrained: Weights of the new backbone, a file or URL. Ours reads
            them when it is built; for another they are tried at once.

    Returns:
        The new config.

    Raises:
        ConfigError: If the config has no backbone that can be replaced, or
            the new one does not give what the config reads. The message says
            why.

    Example:
        >>> cfg = Config.fromfile('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        >>> cfg = swap_backbone(cfg, 'efficientmod_s')
    """  # noqa: E501
    cfg = copy.deepcopy(cfg)
    new = resolve_backbone(backbone)
    _import_package(cfg)
    model = find_model(cfg)
    with _scope(cfg):
        if _is_classifier(cfg, model):
            _swap_classifier(cfg, model, new, pretrained)
        else:
            _swap_dense(cfg, model, new, pretrained)
    return cfg


def set_pretrained(cfg: Config, pretrained: str) -> None:
    """Have the backbone that a config has start from weights.

    Args:
        cfg: The config, changed in place.
        pretrained: A file or URL.

    Raises:
        ConfigError: If there is no backbone, or the weights do not fit one
            of others. Ours looks when it is built.
    """
    model = find_model(cfg)
    _drop_shortcut(model)
    with _scope(cfg):
        _name_weights(model.backbone, pretrained)


def resolve_backbone(backbone: str | Mapping[str, Any]) -> ConfigDict:
    """The dict of a backbone.

    Args:
        backbone: A name, ``timm:NAME``, a dict, or a dict as the command line
            has it: ``{'type': 'ResNet', ...}`` or ``dict(type='ResNet',
            ...)``.

    Raises:
        ConfigError: If there is no such name, or the text is no dict.
    """
    if isinstance(backbone, str):
        text = backbone.strip()
        if text.startswith(('{', 'dict(')):
            backbone = parse_dict(text)
        elif text.startswith('timm:'):
            name = text.removeprefix('timm:')
            try:
                check_name(name)
            except (ImportError, ValueError) as error:
                raise ConfigError(str(error)) from error
            backbone = dict(type='mmefficientmod.TimmPyramid', model_name=name)
        else:
            name = text.replace('-', '_')
            if name not in BACKBONES:
                close = difflib.get_close_matches(name, BACKBONES, n=1)
                raise ConfigError(
                    f'no backbone is called {backbone!r}'
                    + (f'; did you mean {close[0]}?' if close else '')
                    + f' The names are {", ".join(BACKBONES)}; any model of '
                    'timm is timm:NAME, and any other registered backbone '
                    'goes as a dict, such as dict(type='
                    "'mmpretrain.MobileNetV2', out_indices=(1, 2, 4, 6))"
                )
            backbone = BACKBONES[name]
    if not isinstance(backbone, Mapping) or not backbone.get('type'):
        raise ConfigError(
            f'the backbone {backbone!r} is neither a name nor a dict with a '
            'type'
        )
    return ConfigDict(copy.deepcopy(dict(backbone)))


def backbone_name(backbone: str | Mapping[str, Any]) -> str:
    """A name for folders: the backbone's own, or the type in its dict."""
    if isinstance(backbone, str):
        name = backbone.strip().removeprefix('timm:')
        if backbone.strip() != name:
            return name.replace('.', '_')
        if name.replace('-', '_') in BACKBONES:
            return name.replace('-', '_')
    return kind_of(resolve_backbone(backbone)).lower()


def parse_dict(text: str) -> Any:
    """Read a dict as the command line has it.

    Args:
        text: ``{'key': value}`` or ``dict(key=value)``, of literals.

    Raises:
        ConfigError: If it is neither.
    """
    try:
        node = ast.parse(text, mode='eval').body
        if isinstance(node, ast.Call):
            if node.args or not all(k.arg for k in node.keywords):
                raise ValueError('only keywords may stand in dict(...)')
            return {k.arg: ast.literal_eval(k.value) for k in node.keywords}
        return ast.literal_eval(node)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f'the backbone {text} cannot be read as a dict: {error}'
        ) from None


def _import_package(cfg: Config) -> None:
    """Have whoever runs the new config import this package first."""
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'mmefficientmod' not in names:
        names.insert(0, 'mmefficientmod')
    cfg.custom_imports = dict(imports=names, allow_failed_imports=False)


def _is_classifier(cfg: Config, model: Mapping[str, Any]) -> bool:
    if any(k.__name__ == 'ImageClassifier' for k in class_of(model).__mro__):
        return True
    if cfg.get('default_scope') == 'mmpretrain':
        raise ConfigError(
            f'{kind_of(model)} is no ImageClassifier: what it has besides the '
            'backbone is made for that backbone (its tokens, or features to '
            'contrast); of MMPretrain, classifiers take another one'
        )
    return False


@contextmanager
def _scope(cfg: Config) -> Iterator[None]:
    name = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(name):
        yield


def _swap_classifier(
    cfg: Config, model: ConfigDict, new: ConfigDict, pretrained: str | None
) -> None:
    head = model.get('head')
    if not isinstance(head, Mapping) or kind_of(head) in TOKEN_HEADS:
        raise ConfigError(
            f'{kind_of(head) or kind_of(model)} reads tokens of the backbone '
            'that it was made for, and a pyramid has none; start from '
            'a config with a LinearClsHead, such as '
            'mmpretrain::resnet/resnet50_8xb32_in1k.py'
        )
    old = model.backbone
    # MMPretrain's ConvNeXt and its kin pool by themselves unless told not to.
    _set_default(new, final_norm=True, gap_before_final_norm=False)
    indices = option_of(new, 'out_indices')
    if isinstance(indices, Sequence):
        # The head reads no other, and a norm of another would not learn.
        new.out_indices = (indices[-1],)
    levels = probe(new)
    _carry_over(old, new, levels, pretrained)
    model.backbone = new
    _drop_weights(cfg, model, new, pretrained)
    if kind_of(head) not in MAP_HEADS:
        neck, pooling = model.get('neck'), dict(type='GlobalAveragePooling')
        if neck and neck != pooling:
            necks = neck if isinstance(neck, Sequence) else [neck]
            kinds = ' and '.join(map(kind_of, necks))
            _say(f'neck {kinds} gives way to average pooling')
        model.neck = ConfigDict(pooling)
    _fit_classifier_head(model, old, levels.channels[-1])
    _normalise(cfg, model, new)
    _fit_optimizer(cfg, old, new)


def _fit_classifier_head(
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
            f'{kind_of(model.head)} has no layer of its own, and '
            f'{kind_of(old)} does not say for how many classes it has one; '
            'start from a config with a LinearClsHead'
        )
    _say(
        f'{kind_of(model.head)} gets a linear layer for {classes} classes, '
        f'which was a part of {kind_of(old)}'
    )
    model.head.update(
        type='LinearClsHead', in_channels=channels, num_classes=classes
    )


def _swap_dense(
    cfg: Config, model: ConfigDict, new: ConfigDict, pretrained: str | None
) -> None:
    old = model.backbone
    _refuse_what_cannot_be(model)
    if kind_of(model.get('neck')) in PYRAMID_MAKERS:
        # The new backbone has the pyramid that this neck would make.
        _say(f'neck {kind_of(model.neck)} is not needed, and gone')
        model.neck = None
        before = Levels((), (4, 8, 16, 32), False)
    else:
        before = probe(old)
    strides = _strides_to_give(model, before)
    levels = _choose_levels(new, strides)
    # What the heads read, before and after: the backbone, or else a neck,
    # whose channels most often stay as they are.
    old_feats, new_feats = before.channels, levels.channels
    neck = model.get('neck')
    if neck:
        old_feats = new_feats = ()
        first = neck[0] if isinstance(neck, Sequence) else neck
        old_neck = copy.deepcopy(neck)
        _fit_neck(model, first, before.channels, levels.channels)
        if _reads_by_index(model):
            old_feats = neck_channels(old_neck, before)
            new_feats = neck_channels(neck, levels)
    if not neck or old_feats != new_feats:
        for name, head in model.items():
            if name.endswith('head') and head:
                _fit_heads(head, old_feats, new_feats, bool(neck))
    _carry_over(old, new, levels, pretrained)
    model.backbone = new
    _drop_weights(cfg, model, new, pretrained)
    _normalise(cfg, model, new)
    _fit_optimizer(cfg, old, new)


def _refuse_what_cannot_be(model: ConfigDict) -> None:
    """One sentence for the kinds of models that take no pyramid."""
    old = model.backbone
    for head in walk(model):
        if kind_of(head) in TOKEN_HEADS or kind_of(head).startswith('SETR'):
            raise ConfigError(
                f'{kind_of(head)} reads the tokens of a vision transformer, '
                'all at one stride; a backbone with a pyramid has none'
            )
    roi_head = model.get('roi_head') or {}
    shared = isinstance(roi_head, Mapping) and roi_head.get('shared_head')
    if shared:
        raise ConfigError(
            f'this is a C4 model: its RoI head goes on with the last stage of '
            f'{kind_of(old)} ({kind_of(shared)}), which another backbone does '
            'not have; take the FPN variant of the config'
        )
    for neck in walk(model.get('neck') or {}):
        if 'rfp_backbone' in neck:
            raise ConfigError(
                f'the neck {kind_of(neck)} runs {kind_of(old)} a second time '
                'on its own output, for which that backbone has inputs'
            )


def _strides_to_give(model: ConfigDict, old: Levels) -> tuple[int, ...]:
    """Which strides the new backbone has to give, for the old one's.

    Raises:
        ConfigError: If the old one has no pyramid.
    """
    kind, strides = kind_of(model.backbone), old.strides
    whole = kind in WHOLE_NETWORKS
    rising = all(a < b for a, b in zip(strides, strides[1:], strict=False))
    if strides == (16,):
        raise ConfigError(
            f'{kind} gives one level at stride 16 (a C4 or DC5 model, or a '
            'plain vision transformer), whose heads are made for a last stage '
            'without its stride; take the FPN variant of the config'
        )
    if not whole and rising and set(strides) <= {4, 8, 16, 32}:
        return strides
    dilated = (
        len(strides) == 4 and strides[0] == 4 and strides[1] == 8
        and list(strides) == sorted(strides)
    )  # fmt: skip
    if dilated and not whole:
        if any(kind_of(node) == 'OCRHead' for node in walk(model)):
            raise ConfigError(
                'OCRHead multiplies two levels pixel by pixel, which a '
                f'dilated {kind} gives at one stride and a pyramid does not; '
                'take an OCRNet config with HRNet, which brings them to one '
                'size'
            )
        _say(
            f'{kind} was dilated and gave strides {_list(strides)}; the heads '
            'now see 4, 8, 16 and 32, coarser than they were made for',
            logging.WARNING,
        )
        return (4, 8, 16, 32)
    if rising and not whole:
        raise ConfigError(
            f'{kind} gives strides {_list(strides)}, and a head reads each; a '
            'backbone with a pyramid has 4, 8, 16 and 32'
        )
    if len(set(strides)) == 1 < len(strides) and not whole:
        raise ConfigError(
            f'{kind} gives stride {strides[0]} {len(strides)} times, as a '
            'plain vision transformer or an hourglass does, and the heads are '
            'made for that; take a config whose backbone has a pyramid'
        )
    raise ConfigError(
        f'{kind} gives strides {_list(strides)}: backbone and decoder are one '
        'network here, and there is no backbone to replace'
    )


def _choose_levels(new: ConfigDict, strides: tuple[int, ...]) -> Levels:
    """Set the new backbone's ``out_indices`` so that it gives these strides.

    Raises:
        ConfigError: If it cannot.
    """
    levels = probe(new)
    if levels.strides == strides:
        return levels
    indices = option_of(new, 'out_indices')
    if (
        isinstance(indices, Sequence)
        and len(indices) == len(levels.strides)
        and set(strides) <= set(levels.strides)
    ):
        new.out_indices = tuple(
            indices[levels.strides.index(stride)] for stride in strides
        )
        return probe(new)
    raise ConfigError(
        f'the config reads strides {_list(strides)}, and {kind_of(new)} gives '
        f'{_list(levels.strides)}'
        + (
            '; name its stages by out_indices=(...) in its dict'
            if 'out_indices' in parameters_of(new)
            else ''
        )
    )


def _fit_neck(
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
            f'the neck {kind_of(neck)} names no in_channels, so that nothing '
            'says what it gives to the heads'
        )
    if len(value) > len(new):
        raise ConfigError(
            f'the neck {kind_of(neck)} has in_channels={value}, which does '
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


def _reads_by_index(model: ConfigDict) -> bool:
    """Whether heads choose levels, as MMSegmentation's do."""
    return any(
        'in_index' in node
        for name in ('decode_head', 'auxiliary_head')
        for node in walk(model.get(name) or {})
    )


def _fit_heads(
    head: Any, old: tuple[int, ...], new: tuple[int, ...], behind_neck: bool
) -> None:
    """Set the channels that heads read, at their ``in_index`` if they have."""
    if not isinstance(head, Mapping):
        for one in head:
            _fit_heads(one, old, new, behind_neck)
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
                    f'{kind_of(node)} has in_channels={list(value)} for '
                    f'{len(old)} levels'
                )
            node.in_channels = list(new)
        if 'c1_in_channels' in node:  # DeepLabV3+ also reads the first level
            node.c1_in_channels = new[0]


def _carry_over(
    old: Mapping[str, Any],
    new: ConfigDict,
    levels: Levels,
    pretrained: str | None,
) -> None:
    """Keep what the old backbone was told, where that means something."""
    accepted = parameters_of(new)
    kept = {'type', 'init_cfg', 'pretrained', 'out_indices'}
    if 'in_channels' in accepted and 'in_channels' in old:
        new.setdefault('in_channels', old['in_channels'])
        kept.add('in_channels')
    for key in TRAINING_OPTIONS:
        value = old.get(key)
        if key in new or value in (None, False, -1):
            kept.add(key)
            continue
        if key not in accepted:
            reason = f'{kind_of(new)} has no such option'
        elif key == 'norm_eval' and not levels.has_batch_norm:
            reason = f'{kind_of(new)} has no batch norms'
        elif key in NEED_WEIGHTS and not (pretrained or _has_weights(new)):
            reason = NEED_WEIGHTS[key]
        elif key == 'frozen_stages' and not _count_alike(old, new):
            reason = f'{kind_of(new)} numbers its stages otherwise'
        else:
            new[key] = value
            kept.add(key)
            continue
        kept.add(key)
        _say(f'{key}={value} of {kind_of(old)} is left out: {reason}')
    gone = [f'{k}={v!r}' for k, v in old.items() if k not in kept]
    if gone:
        _say(f'with {kind_of(old)} go its options {", ".join(gone)}')


def _count_alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether one stage has the same number in both, as far as is known."""
    # To freeze the first stage is 0 there, and 1 elsewhere.
    vans = (kind_of(old) == 'VAN') + (kind_of(new) == 'VAN')
    return _last_stage(old) == _last_stage(new) and vans != 1


def _last_stage(backbone: Mapping[str, Any]) -> int | None:
    """The last stage of which the output is used, by the backbone's count."""
    indices = option_of(backbone, 'out_indices')
    if isinstance(indices, Sequence) and indices:
        return indices[-1]
    return indices if isinstance(indices, int) else None


def _drop_weights(
    cfg: Config, model: ConfigDict, new: ConfigDict, pretrained: str | None
) -> None:
    """Remove the weights of the old model, and name those of the new one."""
    if pretrained:
        _name_weights(new, pretrained)
    _drop_shortcut(model)
    for node in (model, cfg.model):
        if pretrained_part(node.get('init_cfg')):
            node.init_cfg = None
    if cfg.get('load_from'):
        _say(f'load_from={cfg.load_from} is left out: it holds the old model')
        cfg.load_from = None


def _drop_shortcut(node: ConfigDict) -> None:
    """MMEngine turns ``pretrained``, older than ``init_cfg``, into one."""
    if 'pretrained' in node:
        node.pretrained = None


def _name_weights(backbone: ConfigDict, pretrained: str) -> None:
    """Have a backbone start from weights; its other rules for that stay."""
    given = backbone.get('init_cfg') or []
    parts = [given] if isinstance(given, Mapping) else list(given)
    named = pretrained_part(parts)
    others = [part for part in parts if part is not named]
    # A prefix that its dict names is meant.
    named = ConfigDict(named or {}, type='Pretrained')
    named.checkpoint = str(pretrained)
    ours = is_ours(backbone)
    if not ours and 'prefix' not in named and _is_whole(named.checkpoint):
        named.prefix = 'backbone.'
    backbone.init_cfg = [*others, named] if others else named
    if not ours:
        _drop_shortcut(backbone)
        _refuse_weights_that_do_not_fit(backbone, named)


def _is_whole(path: str) -> bool:
    """Whether a file holds a whole model, and not a backbone alone."""
    try:
        content = CheckpointLoader.load_checkpoint(path, 'cpu', 'silent')
        weights, _ = select_weights(content, path)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        raise ConfigError(
            f'the weights {path} cannot be read: {error}'
        ) from error
    return any(name.startswith('backbone.') for name in weights)


def _refuse_weights_that_do_not_fit(
    backbone: ConfigDict, init_cfg: Mapping[str, Any]
) -> None:
    """MMEngine goes on with a warning where nothing, or half, is loaded.

    A norm for each output, which no file of ImageNet weights has, starts
    from ones and zeros.
    """
    random = not_loaded(backbone)
    if random:
        before = not_loaded(without_weights(backbone))
        raise ConfigError(
            f'{init_cfg["checkpoint"]} does not fit {kind_of(backbone)}: '
            f'{len(random)} of {len(before)} tensors would stay random, such '
            f'as {", ".join(random[:4])}. Is it a checkpoint of the same '
            'architecture? Where its names begin with something else than '
            "the backbone's, say so by init_cfg=dict(type='Pretrained', "
            "prefix='...') in the dict of the backbone"
        )


def _has_weights(backbone: Mapping[str, Any]) -> bool:
    named = pretrained_part(backbone.get('init_cfg'))
    return bool(backbone.get('pretrained') or named)


def _normalise(cfg: Config, model: ConfigDict, new: ConfigDict) -> None:
    """Give a backbone the images that its weights were trained on.

    Caffe's weights of ResNet want BGR and no scaling, YOLOX's nothing at all.
    """
    values = normalisation(new)
    if values is None or new.get('in_channels', 3) != 3:
        return
    for holder in (cfg, cfg.model, model):
        node = holder.get('data_preprocessor')
        while isinstance(node, Mapping):
            # MMPretrain's may have no type, and calls it otherwise.
            accepted = parameters_of(node) if 'type' in node else 'to_rgb'
            swapped = 'to_rgb' if 'to_rgb' in accepted else 'bgr_to_rgb'
            wanted = dict(values, **{swapped: True})
            given = {k: node.get(k) for k in wanted}
            if swapped in accepted and (
                not node.get(swapped)
                or list(node.get('mean') or ()) != values['mean']
                or list(node.get('std') or ()) != values['std']
            ):
                _say(f'images are normalised as {wanted}, not as {given}')
                node.pop('rgb_to_bgr', None)
                node.update(wanted)
            node = node.get('data_preprocessor')


def _fit_optimizer(
    cfg: Config, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Keep layer-wise settings that find something, report the others."""
    wrapper = cfg.get('optim_wrapper') or {}
    paramwise = wrapper.get('paramwise_cfg')
    if not paramwise:
        return
    constructor = wrapper.get('constructor')
    if kind_of(dict(type=constructor)) in LAYER_DECAY:
        _fit_layer_decay(wrapper, new)
        paramwise = wrapper.paramwise_cfg
    keys = paramwise.get('custom_keys')
    if not keys:
        return
    names, gone = parameter_names(new), parameter_names(old)
    for key in list(keys):
        found = any(key in name for name in names)
        # A key that the old backbone did not have either is for the heads.
        theirs = key.startswith('backbone.') or any(key in n for n in gone)
        if theirs and not found:
            del keys[key]
            _say(
                f'custom_keys[{key!r}] is left out: no parameter of '
                f'{kind_of(new)} is called so'
            )


def _fit_layer_decay(wrapper: ConfigDict, new: Mapping[str, Any]) -> None:
    """Have the layers counted by asking the backbone for them."""
    paramwise = dict(wrapper.paramwise_cfg)
    rate = paramwise.pop('decay_rate', None)
    rate = paramwise.pop('layer_decay_rate', rate)
    layers = paramwise.pop('num_layers', None)
    kind = paramwise.pop('decay_type', None)
    if kind is not None or layers is not None:
        # Those of MMDetection and MMSegmentation do this unasked.
        paramwise.setdefault('flat_decay_mult', 0.0)
    if not hasattr(class_of(new), 'get_layer_depth'):
        wrapper.constructor = 'DefaultOptimWrapperConstructor'
        wrapper.paramwise_cfg = ConfigDict(paramwise)
        _say(
            f'{kind_of(new)} cannot say how deep a layer lies '
            f'(get_layer_depth): the learning rate, which decayed by {rate} '
            'a layer, is now the same in all',
            logging.WARNING,
        )
        return
    if importlib.util.find_spec('mmpretrain') is None:
        raise ConfigError(
            'the learning rate of this config decays with the layers, which '
            'needs mmpretrain for another backbone; it is not installed'
        )
    wrapper.constructor = 'mmefficientmod.LayerDecayOptimWrapperConstructor'
    wrapper.paramwise_cfg = ConfigDict(paramwise, layer_decay_rate=rate)
    _say(
        f'the learning rate decays by {rate} a layer, as {kind_of(new)} '
        'counts its layers'
        + (', and no longer by stages' if kind == 'stage_wise' else '')
    )


def _set_default(backbone: ConfigDict, **options: Any) -> None:
    accepted = parameters_of(backbone)
    for key, value in options.items():
        if key in accepted:
            backbone.setdefault(key, value)


def _list(values: Sequence[int]) -> str:
    return ', '.join(map(str, values))


def _say(text: str, level: int = logging.INFO) -> None:
    print_log(f'swap_backbone: {text}', logger='current', level=level)
