"""Several processes without a GPU: gloo in the place of NCCL.

MMEngine's launchers put every process on a GPU. Where there is none, the
group is made here before MMEngine looks for one, and models are wrapped
without device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import isclass
from typing import Any

import torch
from mmengine.dist import is_distributed
from mmengine.registry import MODEL_WRAPPERS
from torch.nn.parallel import DistributedDataParallel

from mmefficientmod.config.nodes import ConfigError


def start(launcher: str) -> None:
    """Check the launcher, and make the process group where there is no GPU.

    With GPUs MMEngine makes it.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ConfigError: If it did not start this process, or needs GPUs that
            are not there.
    """
    if launcher == 'none':
        return
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for processes that torchrun started; '
            'tools/dist_train.sh and tools/dist_test.sh do it'
        )
    if torch.cuda.is_available():
        local_rank = int(os.environ.get('LOCAL_RANK', 0))
        if launcher == 'pytorch' and local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f'process {local_rank + 1} of this machine has no GPU: '
                f'PyTorch sees {torch.cuda.device_count()}'
            )
        return
    if launcher != 'pytorch':
        raise ConfigError(
            f'--launcher {launcher} needs GPUs, and PyTorch sees none here; '
            'on the CPU there is --launcher pytorch'
        )
    if not is_distributed():
        torch.distributed.init_process_group('gloo')


def stop() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        torch.distributed.destroy_process_group()


def without_device(wrapper: Mapping[str, Any] | None) -> dict[str, Any]:
    """A ``model_wrapper_cfg`` for the CPU.

    Args:
        wrapper: That of the config, or None for MMEngine's default.

    Returns:
        A copy that puts data parallelism on no device.
    """
    cfg = dict(wrapper or dict(broadcast_buffers=False))
    kind = cfg.setdefault('type', 'MMDistributedDataParallel')
    kind = kind if isclass(kind) else MODEL_WRAPPERS.get(kind)
    if isclass(kind) and issubclass(kind, DistributedDataParallel):
        cfg['device_ids'] = None
    return cfg
