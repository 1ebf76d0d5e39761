"""mmcv's operators where mmcv itself was installed without them.

mmcv imports its compiled operators as the module ``mmcv._ext``, which a
plain installation does not have. :func:`install` lets Python find our own
module of that name (:mod:`mmefficientmod.ops.kernels`: the kernels of
torchvision and PyTorch, on CPU and CUDA) when there is no other.
"""

from .standin import OpNotServedError, install, is_standin

__all__ = ['OpNotServedError', 'install', 'is_standin']
