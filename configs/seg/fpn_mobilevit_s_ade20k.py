_base_ = '../_base_/semantic_fpn_ade20k.py'
data_preprocessor = dict(mean=[0.0] * 3, std=[255.0] * 3)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='mobilevit_s',
    ),
    neck=dict(in_channels=[64, 96, 128, 640]),
)
