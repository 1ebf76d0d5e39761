_base_ = '../_base_/semantic_fpn_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.TimmPyramid',
        model_name='efficientformer_l1',
    ),
    neck=dict(in_channels=[48, 96, 224, 448]),
)
