_base_ = '../_base_/mask_rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EdgeViT',
        arch='xs',
    ),
    neck=dict(in_channels=[48, 96, 240, 384]),
)
