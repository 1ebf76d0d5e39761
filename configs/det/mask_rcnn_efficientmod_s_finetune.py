# Fine-tunes a detector on your own images, named by `--data FOLDER` of
# tools/train.py; docs/finetuning.md has the reasons. Start from a detector of
# COCO with `--cfg-options load_from=FILE`, or from ImageNet weights with
# `--pretrained FILE`.
_base_ = './mask_rcnn_efficientmod_s_fpn_1x_coco.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    # Few images need more variety: sizes as in MMDetection's longer schedules.
    dict(
        type='RandomChoiceResize',
        scales=[(1333, side) for side in range(480, 801, 32)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=4,
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    dataset=dict(pipeline=train_pipeline),
)

# One GPU of 4 images.
auto_scale_lr = dict(base_batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=10000,
    val_interval=1000,
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=500, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=500,
        end=10000,
        by_epoch=False,
    ),
]
default_hooks = dict(
    checkpoint=dict(
        by_epoch=False,
        interval=1000,
        max_keep_ckpts=1,
        save_best='coco/segm_mAP',
    ),
)
log_processor = dict(by_epoch=False)
