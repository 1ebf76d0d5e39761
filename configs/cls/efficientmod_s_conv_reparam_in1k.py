_base_ = './efficientmod_s_conv_in1k.py'

# Parallel branches: docs/reparam.md. The average of the weights includes the
# statistics of their batch norms, as in timm.
model = dict(backbone=dict(reparam=True))
custom_hooks = _base_.custom_hooks
custom_hooks[0]['update_buffers'] = True
