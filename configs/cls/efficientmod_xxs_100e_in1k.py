_base_ = '../_base_/imagenet_100e.py'

model = dict(
    backbone=dict(arch='xxs'),
    head=dict(in_channels=256),
)
