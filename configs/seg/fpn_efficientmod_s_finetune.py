# Fine-tunes a segmentor on your own images and masks, named by
# `--data FOLDER` of tools/train.py; docs/finetuning.md has the reasons. Start
# from a segmentor of ADE20K with `--cfg-options load_from=FILE`, or from
# ImageNet weights with `--pretrained FILE`.
_base_ = './fpn_efficientmod_s_ade20k.py'

train_dataloader = dict(batch_size=8)

# One GPU of 8 images.
auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_cfg = dict(max_iters=8000, val_interval=800)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=400, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        begin=400,
        end=8000,
        by_epoch=False,
    ),
]
default_hooks = dict(
    checkpoint=dict(interval=800, max_keep_ckpts=1, save_best='mIoU'),
)
