_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EdgeViT',
        arch='s',
    ),
    neck=dict(in_channels=[48, 96, 240, 384]),
)
