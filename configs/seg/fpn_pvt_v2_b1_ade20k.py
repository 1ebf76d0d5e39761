_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='pvt_v2_b1',
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
