_base_ = '../_base_/imagenet_100e.py'

model = dict(
    backbone=dict(arch='s'),
    head=dict(in_channels=312),
)
