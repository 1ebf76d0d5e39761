"""mmcv's operators, from the kernels of torchvision and PyTorch.

Every public function has the name, the arguments and the results of the
function of that name in a compiled ``mmcv._ext``: most write their result
into a tensor of the caller. They run on the device of their tensors, CPU or
CUDA. float16 and bfloat16 are computed in float32 and cast back. Wrong shapes
raise ValueError.

Arguments that only a compiled kernel needs (work space such as ``columns``,
and ``im2col_step``, which splits a batch) are accepted and ignored.

Unless said otherwise, boxes are ``(x1, y1, x2, y2)`` in pixels, and an RoI is
``(image index, x1, y1, x2, y2)`` in pixels of the input image.
"""

import torch
import torchvision

from .boxes import (
    bbox_overlaps,
    nms,
    nms_match,
    softnms,
)
from .deform_attn import (
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .masked_conv import (
    masked_col2im_forward,
    masked_im2col_forward,
)
from .rois import (
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)

__all__ = [
    'bbox_overlaps',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]


def get_compiler_version() -> str:
    """The compiler of mmcv, for MMEngine's environment report."""
    return f'none (mmefficientmod over torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """The CUDA version of mmcv, for MMEngine's environment report."""
    return f'none (CUDA of PyTorch: {torch.version.cuda})'
