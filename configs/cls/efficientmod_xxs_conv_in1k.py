_base_ = '../_base_/imagenet_300e.py'

model = dict(
    backbone=dict(arch='xxs_conv'),
    head=dict(in_channels=256),
)
