_base_ = '../_base_/mask_rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='efficientformer_l1',
    ),
    neck=dict(in_channels=[48, 96, 224, 448]),
)
