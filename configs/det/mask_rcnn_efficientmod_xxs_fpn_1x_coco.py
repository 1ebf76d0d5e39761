_base_ = '../_base_/mask_rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='xxs',
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
