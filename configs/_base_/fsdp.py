# Fully sharded data parallel (FSDP) by MMEngine's FlexibleRunner. Each process
# holds a shard of the weights, the gradients and the optimizer's state; the
# weights of a stage are gathered when the stage runs.
# `tools/dist_train.sh CONFIG GPUS --fsdp` adds this file to a config, and a
# config may name it in its `_base_`. MMEngine's EMAHook does not work with it:
# the hook copies the model, and a sharded model cannot be copied.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmefficientmod.StageFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy='mmefficientmod.wrap_by_stage',
        use_orig_params=True,  # optimizer rules for single parameters need it
    ),
    # One file that every runner can read.
    state_dict_cfg='full',
)
