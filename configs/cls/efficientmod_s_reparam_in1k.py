_base_ = './efficientmod_s_in1k.py'

# docs/reparam.md. Batch norms have statistics, which the average takes along,
# as timm's does.
model = dict(backbone=dict(reparam=True))
custom_hooks = _base_.custom_hooks
custom_hooks[0]['update_buffers'] = True
