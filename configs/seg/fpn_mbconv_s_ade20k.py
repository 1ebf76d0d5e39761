_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='mbconv_s',
    ),
    neck=dict(in_channels=[40, 80, 160, 344]),
)
