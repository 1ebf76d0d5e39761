# Fully sharded data parallel through MMEngine's FlexibleRunner: weights,
# gradients and the state of the optimizer are dealt out to the processes and
# gathered a stage at a time. `tools/dist_train.sh CONFIG GPUS --fsdp` puts it
# on any config; it may also stand in the `_base_` of one.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='StageFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy='wrap_by_stage',
        use_orig_params=True,  # which weight decay by name needs
    ),
    # One file that any runner reads.
    state_dict_cfg='full',
)
