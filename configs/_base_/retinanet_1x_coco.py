# RetinaNet on COCO, 1x (12 epochs) at a total batch of 16: MMDetection's own
# config with the optimizer that the EfficientMod authors use for Mask R-CNN;
# they published no RetinaNet. A config that inherits from this one sets the
# backbone and the channels of its four levels.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
# Registers the backbones and replaces mmcv's compiled ops if there are none,
# also when somebody runs the dumped config.
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)

# 8 GPUs of 2 images. For another total batch, use `--auto-scale-lr` of
# tools/train.py.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.05),
)
