_base_ = '../_base_/mask_rcnn_1x_coco.py'

model = dict(
    data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3),
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='mobilevit_s',
    ),
    neck=dict(in_channels=[64, 96, 128, 640]),
)
