# Semantic FPN on ADE20K, 40k iterations at a total batch of 32: the recipe of
# the EfficientMod authors, written with MMEngine's classes. A config that
# inherits from this one sets the backbone and the channels of its four levels.
#
# The import of mmefficientmod comes first: MMEngine looks for `mmseg::` in a
# distribution with the original name, which the onedl fork does not have. The
# import makes `mmseg::` known.
_base_ = __import__('mmefficientmod') and [
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
]
# Registers the backbones and replaces mmcv's compiled ops if there are none,
# also when somebody runs the dumped config.
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    pretrained=None,
    decode_head=dict(num_classes=150),
)

# 8 GPUs of 4 images. For another total batch, use `--auto-scale-lr` of
# tools/train.py.
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
# The authors' warm-up reaches the full rate at iteration 1000. MMEngine's
# LinearLR reaches it one iteration before `end`.
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
