_base_ = '../_base_/imagenet_100e.py'

model = dict(
    backbone=dict(arch='s_conv'),
    head=dict(in_channels=344),
)
