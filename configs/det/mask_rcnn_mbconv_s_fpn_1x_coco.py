_base_ = '../_base_/mask_rcnn_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmefficientmod.EfficientMod',
        arch='mbconv_s',
    ),
    neck=dict(in_channels=[40, 80, 160, 344]),
)
