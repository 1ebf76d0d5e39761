"""Trying a stock config: one training step and one prediction, in small."""

import torch
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData

from mmefficientmod import swap_backbone
from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import import_toolbox

# Sides of the square images, in pixels; detection needs room for its boxes.
SIZES = {'mmdet': 128, 'mmseg': 64, 'mmpretrain': 64}
DINO_SIZE = 256  # it picks 900 of its positions


def build(cfg):
    """The model of a config, in its scope."""
    scope = cfg.default_scope
    import_toolbox(scope)
    with DefaultScope.overwrite_default_scope(scope):
        if scope == 'mmpretrain' and cfg.get('data_preprocessor'):
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(cfg.model)
        model.init_weights()
    # Some heads ask how far the training is.
    for key in ('iter', 'epoch'):
        MessageHub.get_current_instance().update_info(key, 0)
    return revert_sync_batchnorm(model)  # SyncBN needs a GPU


def batch_for(cfg):
    """Two random images with annotations, as the toolbox's loaders give."""
    scope = cfg.default_scope
    size = DINO_SIZE if cfg.model.type == 'DINO' else SIZES[scope]
    torch.manual_seed(0)
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(
            2,
            (3, size, size),
            num_items=[3, 2],
            num_classes=5,
            with_mask=any(
                text in str(cfg.train_dataloader)
                for text in ("'with_mask': True", 'LoadPanoptic')
            ),
            with_semantic=True,
            sem_seg_output_strides=8 if 'semantic_head' in str(cfg.model)
            else 1,
            use_box_type=True,
        )  # fmt: skip
    images = [
        torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
        for _ in range(2)
    ]
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        samples = []
        for _ in images:
            sample = SegDataSample(
                metainfo=dict(
                    img_shape=(size, size), ori_shape=(size, size),
                    pad_shape=(size, size), padding_size=[0] * 4,
                )
            )  # fmt: skip
            sample.gt_sem_seg = PixelData(
                data=torch.randint(0, 5, (1, size, size))
            )
            samples.append(sample)
        return dict(inputs=images, data_samples=samples)
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(i) for i in range(2)]
    return dict(inputs=torch.stack(images), data_samples=samples)


def train_step_and_predict(name, backbone='efficientmod_xs'):
    """Swap, build, train a step and predict.

    Args:
        name: The config.
        backbone: The new backbone.

    Returns:
        The losses, the gradients of the backbone by name, the predictions.
    """
    cfg = swap_backbone(load_config(name), backbone)
    for part, key in ('train_cfg', 'rpn_proposal'), ('test_cfg', 'rpn'):
        proposals = (cfg.model.get(part) or {}).get(key)
        if proposals:
            proposals.max_per_img = 50  # of up to 2000
    inputs = cfg.model.get('data_preprocessor') or {}
    if inputs.get('size'):  # to which small images would be padded
        inputs.size = (SIZES[cfg.default_scope],) * 2
    model = build(cfg)
    model.train()
    batch = model.data_preprocessor(batch_for(cfg), True)
    loss, logs = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    grads = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if name.startswith('backbone.')
    }
    model.eval()
    batch = model.data_preprocessor(batch_for(cfg), False)
    with torch.no_grad():
        predictions = model(**batch, mode='predict')
    return logs, grads, predictions
