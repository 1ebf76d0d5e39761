_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VAN',
        arch='small',
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
