# ImageNet-1k, 300 epochs at a total batch of 2048: the recipe of the
# EfficientMod authors, written with MMPretrain's classes.
# docs/classification_recipe.md compares both. A config that inherits from this
# one sets `arch` and the input channels of the head.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]
# Registers the backbones.
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmefficientmod.EfficientMod',
        out_indices=3,
        final_norm=True,  # before the pooling, as in the authors' code
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
        # As for all linear layers of the authors' code.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)

# 8 GPUs of 256 images. For another total batch, use `--auto-scale-lr` of
# tools/train.py.
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(enable=False, base_batch_size=2048)

# No weight decay for parameters with one dimension: norms, biases, layer
# scale.
optim_wrapper = dict(
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.0),
)
# By epoch, as in the authors' script: the first epoch trains at 1e-6, the
# sixth at the full rate. MMEngine's LinearLR reaches the full rate one epoch
# before `end`.
param_scheduler = [
    dict(type='LinearLR', start_factor=2.5e-4, begin=0, end=6, by_epoch=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        begin=0,
        end=300,
        by_epoch=True,
    ),
]

# The averaged weights are evaluated and saved.
custom_hooks = [
    dict(type='EMAHook', momentum=2e-4, priority='ABOVE_NORMAL'),
]
