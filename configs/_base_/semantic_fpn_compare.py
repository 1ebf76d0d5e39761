# What tools/compare.py trains with every backbone: the recipe of Semantic FPN,
# each iteration in the log as it was, and what a step costs besides time.
_base_ = '../seg/fpn_efficientmod_s_ade20k.py'

custom_hooks = [dict(type='mmefficientmod.StepCostHook')]
log_processor = dict(window_size=1)
