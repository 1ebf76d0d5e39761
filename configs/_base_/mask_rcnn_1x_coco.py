# Mask R-CNN on COCO, 1x (12 epochs) at a total batch of 16: MMDetection's own
# config with the optimizer of the EfficientMod authors. A config names the
# backbone and the channels of its four levels.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
# Registers the backbones, and lets torchvision's kernels serve where mmcv has
# no compiled ones, also for who runs the dumped config.
custom_imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)

# 8 GPUs of 2 images. `--auto-scale-lr` of tools/train.py follows other totals.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.05),
)
