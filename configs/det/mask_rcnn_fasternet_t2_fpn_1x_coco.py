_base_ = '../_base_/mask_rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='fasternet_t2',
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
