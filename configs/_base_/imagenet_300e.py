# ImageNet-1k, 300 epochs at a total batch of 2048: the recipe of the
# EfficientMod authors in MMPretrain's terms. docs/classification_recipe.md
# puts the two side by side. A config names the backbone and its last width.
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
        final_norm=True,  # before the pooling, as in their code
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
        # As all their linear layers.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)

# 8 GPUs of 256 images. `--auto-scale-lr` of tools/train.py follows other
# totals.
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(enable=False, base_batch_size=2048)

# No decay for norms, biases and layer scale: all that has one dimension.
optim_wrapper = dict(
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.0),
)
# By epoch, as theirs: the first trains at 1e-6, the sixth at the full rate.
# MMEngine's LinearLR gets there one epoch before its end.
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

# Averaged weights are what is evaluated and saved.
custom_hooks = [
    dict(type='EMAHook', momentum=2e-4, priority='ABOVE_NORMAL'),
]
