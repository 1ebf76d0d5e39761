_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='s_conv',
    ),
    neck=dict(in_channels=[40, 80, 160, 344]),
)

# The authors trained this variant, unlike the others, down to a rate of 0.
param_scheduler = _base_.param_scheduler
param_scheduler[1]['eta_min'] = 0
