_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='s',
    ),
    neck=dict(in_channels=[32, 64, 144, 312]),
)
