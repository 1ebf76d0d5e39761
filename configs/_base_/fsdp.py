# Fully sharded data parallel through MMEngine's FlexibleRunner: weights,
# gradients and the state of the optimizer are dealt out to the processes and
# gathered a stage at a time. `tools/dist_train.sh CONFIG GPUS --fsdp` puts it
# on a config; it may also stand in the `_base_` of one. MMEngine's EMAHook
# copies the model, which cannot be done once it is dealt out.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='StageFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy='wrap_by_stage',
        use_orig_params=True,  # which rules for single parameters need
    ),
    # One file that any runner reads.
    state_dict_cfg='full',
)
