_base_ = './mask_rcnn_efficientmod_s_fpn_1x_coco.py'

model = dict(backbone=dict(reparam=True))  # docs/reparam.md
