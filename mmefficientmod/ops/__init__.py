"""mmcv's operators for an mmcv that was installed without compiled ones.

mmcv imports its compiled operators as the module ``mmcv._ext``, which an
installation by pip or uv does not have. After :func:`install`, Python finds
:mod:`mmefficientmod.ops.kernels` in its place: the same functions from kernels
of torchvision and PyTorch, on CPU and CUDA. A compiled module has priority.
"""

from .standin import OpNotServedError, install, is_standin

__all__ = ['OpNotServedError', 'install', 'is_standin']
