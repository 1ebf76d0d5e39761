_base_ = './efficientmod_s_in1k.py'

# The authors' settings, described in docs/distillation.md.
model = dict(
    type='mmefficientmod.DistilledClassifier',
    teacher=dict(model='timm:regnety_160.deit_in1k'),
    distill=dict(mode='soft', tau=1.0, alpha=0.9),
)
