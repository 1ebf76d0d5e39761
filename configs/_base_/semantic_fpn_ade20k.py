# Semantic FPN on ADE20K, 40k iterations at a total batch of 32: the recipe of
# the EfficientMod authors, in MMEngine's terms. A config names the backbone
# and the channels of its four levels.
#
# The import comes first because MMEngine looks for `mmseg::` in a distribution
# of the original name, which the onedl fork does not have; it is mended there.
_base_ = __import__('mmefficientmod') and [
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
]
# Registers the backbones, and lets torchvision's kernels serve where mmcv has
# no compiled ones, also for who runs the dumped config.
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    pretrained=None,
    decode_head=dict(num_classes=150),
)

# 8 GPUs of 4 images. `--auto-scale-lr` of tools/train.py follows other totals.
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(enable=False, base_batch_size=32)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# mIoU, and mIoU over the classes present in the ground truth.
val_evaluator = dict(type='mmefficientmod.PresentIoUMetric')
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
)
# Their warm-up reaches the full rate at iteration 1000, MMEngine's LinearLR
# one before its end.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=1001, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        eta_min=2e-10,  # 1e-6 of the learning rate
        begin=0,
        end=40000,
        by_epoch=False,
    ),
]
