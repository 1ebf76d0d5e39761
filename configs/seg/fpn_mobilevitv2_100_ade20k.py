_base_ = '../_base_/semantic_fpn_ade20k.py'
data_preprocessor = dict(mean=[0.0] * 3, std=[255.0] * 3)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='mobilevitv2_100',
    ),
    neck=dict(in_channels=[128, 256, 384, 512]),
)
