_base_ = './fpn_efficientmod_s_ade20k.py'

model = dict(backbone=dict(reparam=True))  # docs/reparam.md
