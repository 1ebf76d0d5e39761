_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='mobilenetv2_140',
    ),
    neck=dict(in_channels=[32, 48, 136, 448]),
)
