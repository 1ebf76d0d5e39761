_base_ = '../_base_/mask_rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='resnet50',
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
