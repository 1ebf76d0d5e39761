"""Which detectors can be exported, and why others cannot."""

from __future__ import annotations

from typing import Any

from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import (
    FoveaHead,
    GFLHead,
    RPNHead,
    YOLOV3Head,
    YOLOXHead,
)
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import (
    BBoxHead,
    CascadeRoIHead,
    FCNMaskHead,
    SingleRoIExtractor,
    StandardRoIHead,
)

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.detection.boxes import CODERS
from mmefficientmod.deploy.detection.rois import extractors, stages

Methods = dict[str, tuple[type, ...]]
# Options of mmcv's NMS that are kept, or change nothing.
_NMS = {'type', 'iou_threshold', 'class_agnostic', 'max_num', 'split_thr'}
# Methods that predict, and the classes whose versions can be recorded.
_DENSE: Methods = {
    'predict': (BaseDenseHead,),
    'predict_by_feat': (BaseDenseHead, YOLOV3Head, YOLOXHead),
    '_predict_by_feat_single': (
        BaseDenseHead, FoveaHead, GFLHead, RPNHead,
    ),
    '_bbox_post_process': (BaseDenseHead, RPNHead, YOLOXHead),
}  # fmt: skip
# Heads that do not ask their coder, or a coder with one way only.
_WITHOUT_CODER: list[Methods] = [
    {'predict_by_feat': (YOLOV3Head, YOLOXHead)},
    {'_predict_by_feat_single': (FoveaHead,)},
]
_STANDARD: Methods = {
    'predict': (StandardRoIHead,),
    'predict_bbox': (StandardRoIHead,),
    'predict_mask': (StandardRoIHead,),
}
_CASCADE: Methods = {
    'predict': (CascadeRoIHead,),
    'predict_bbox': (CascadeRoIHead,),
    'predict_mask': (CascadeRoIHead,),
    '_refine_roi': (CascadeRoIHead,),
}
_BOX: Methods = {
    'predict_by_feat': (BBoxHead,),
    '_predict_by_feat_single': (BBoxHead,),
}
_MASK: Methods = {
    'predict_by_feat': (FCNMaskHead,),
    '_predict_by_feat_single': (FCNMaskHead,),
}
_EXTRACTOR: Methods = {
    'forward': (SingleRoIExtractor,),
    'map_roi_levels': (SingleRoIExtractor,),
}


def check_detector(model: Any) -> None:
    """Check that a detector can be exported.

    Args:
        model: The detector.

    Raises:
        ConfigError: If it cannot, with the reason.
    """
    try:
        _check(model)
    except _Unsupported as reason:
        raise ConfigError(
            f'{type(model).__name__} cannot be exported: {reason}; its '
            'backbone can (--part backbone)'
        ) from None


class _Unsupported(Exception):
    """Why a detector cannot be exported."""


def _check(model: Any) -> None:
    kind = type(model)
    if has_methods(kind, {'predict': (SingleStageDetector,)}):
        _check_dense(model.bbox_head)
    elif has_methods(kind, {'predict': (TwoStageDetector,)}):
        if not model.with_rpn:
            raise _Unsupported('it has no RPN that proposes regions')
        _check_dense(model.rpn_head)
        _check_rois(model.roi_head)
    else:
        raise _Unsupported(
            "it does not predict as MMDetection's SingleStageDetector or "
            'TwoStageDetector'
        )
    for module in model.modules():
        own = type(module)
        if own.__module__.startswith('mmcv.ops') and own is not RoIAlign:
            raise _Unsupported(
                f'{own.__name__} of mmcv cannot be written as ONNX'
            )


def _check_dense(head: Any) -> None:
    _check_methods(head, _DENSE)
    if not any(has_methods(type(head), own) for own in _WITHOUT_CODER):
        _check_coder(head)
    if not hasattr(head, 'loss_cls'):
        raise _Unsupported(
            f'{_name(head)} has no loss_cls, without which MMDetection '
            'cannot predict either'
        )
    _check_nms(head)


def _check_rois(head: Any) -> None:
    cascade = isinstance(head, CascadeRoIHead)
    _check_methods(head, _CASCADE if cascade else _STANDARD)
    _check_nms(head)
    for box_head in stages(head.bbox_head):
        _check_methods(box_head, _BOX)
        _check_coder(box_head)
        if not box_head.with_reg:
            raise _Unsupported(f'{_name(box_head)} does not refine boxes')
    if head.with_mask:
        for mask_head in stages(head.mask_head):
            _check_methods(mask_head, _MASK)
    for extractor in extractors(head):
        _check_methods(extractor, _EXTRACTOR)
        for layer in extractor.roi_layers:
            if type(layer) is not RoIAlign or layer.pool_mode != 'avg':
                raise _Unsupported(
                    f'its regions are read by {_name(layer)}, and only a '
                    'RoIAlign that averages can be'
                )


def _check_methods(part: Any, methods: Methods) -> None:
    if not has_methods(type(part), methods):
        raise _Unsupported(
            f'its {_name(part)} works in a way of its own, which cannot be '
            'recorded'
        )


def _check_coder(head: Any) -> None:
    coder = getattr(head, 'bbox_coder', None)
    if type(coder) not in CODERS:
        raise _Unsupported(
            f'{_name(coder)} of {_name(head)} cannot be recorded'
        )


def _check_nms(head: Any) -> None:
    config = (head.test_cfg or {}).get('nms')
    if config is None:
        return
    kind = config.get('type', 'nms')
    if kind != 'nms':
        kind = kind if isinstance(kind, str) else kind.__name__
        raise _Unsupported(
            f'ONNX has no {kind}, which test_cfg of {_name(head)} asks for '
            "(nms=dict(type='nms', iou_threshold=...) can be exported)"
        )
    for option, value in config.items():
        if option not in _NMS and value:
            raise _Unsupported(
                f'ONNX has no NMS with {option}={value}, which test_cfg of '
                f'{_name(head)} asks for'
            )


def _name(part: Any) -> str:
    return type(part).__name__


def has_methods(kind: type, methods: Methods) -> bool:
    """Whether a class has its methods from certain classes.

    Args:
        kind: The class.
        methods: Name of each method, and the classes whose version of it may
            be the class's.
    """
    return all(
        any(
            getattr(kind, name, None) is getattr(owner, name, _Unsupported)
            for owner in owners
        )
        for name, owners in methods.items()
    )
