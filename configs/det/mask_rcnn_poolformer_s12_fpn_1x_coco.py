_base_ = '../_base_/mask_rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.PoolFormer', arch='s12',
        out_indices=(0, 2, 4, 6), frozen_stages=-1,
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)  # fmt: skip
