# tools/compare.py trains this config with every backbone: the recipe of
# Semantic FPN, with the values of every single iteration in the log, and a
# hook that logs parameters and memory.
_base_ = '../seg/fpn_efficientmod_s_ade20k.py'

custom_hooks = [dict(type='mmefficientmod.StepCostHook')]
log_processor = dict(window_size=1)
