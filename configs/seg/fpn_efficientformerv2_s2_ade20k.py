_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='efficientformerv2_s2',
    ),
    neck=dict(in_channels=[32, 64, 144, 288]),
)
