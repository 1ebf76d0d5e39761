# ImageNet-1k in 100 epochs at a total batch of 1024, for a single machine: a
# third of the images of imagenet_300e.py, and two thirds of its steps. The
# recipe is ours, not the authors', and nobody has trained with it.
# docs/classification_recipe.md gives the reasons for the settings.
_base_ = './imagenet_300e.py'

# 8 GPUs of 128 images, or 4 GPUs of 256. With fewer GPUs, accumulate
# gradients.
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=100)
param_scheduler = [
    # About the same number of warm-up steps as in imagenet_300e.py.
    dict(
        type='LinearLR',
        start_factor=5e-4,
        begin=0,
        end=3,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        begin=0,
        end=100,
        by_epoch=True,
    ),
]
# Averages over the same share of the training as in imagenet_300e.py.
custom_hooks = [
    dict(type='EMAHook', momentum=3e-4, priority='ABOVE_NORMAL'),
]

# Weaker augmentation, because short trainings overfit less: RandAugment of
# level 6, no random erasing, and little mixup.
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(_base_.train_pipeline[3], magnitude_level=6),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
model = dict(
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.1),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)
