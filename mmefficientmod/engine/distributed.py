"""Several processes, also on machines without a GPU.

MMEngine's launchers assign a GPU to each process. On a machine without a GPU,
:func:`start` creates the process group, with the backend gloo, before MMEngine
does, and :func:`without_device` lets MMEngine wrap a model that is on the CPU.
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
    """Check the launcher, and create the process group if there is no GPU.

    With GPUs, MMEngine creates it.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ConfigError: If the launcher did not start this process, or if it
            needs GPUs that the machine does not have.
    """
    if launcher == 'none':
        return
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for processes that torchrun started; '
            'tools/dist_train.sh and tools/dist_test.sh start them'
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
            'on CPUs, use --launcher pytorch'
        )
    if not is_distributed():
        torch.distributed.init_process_group('gloo')


def stop() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        torch.distributed.destroy_process_group()


def num_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_local_processes() -> int:
    """Number of processes of a distributed run on this machine.

    torchrun sets it. Slurm gives each process cores of its own.
    """
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1))


def without_device(wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """A ``model_wrapper_cfg`` for CPUs.

    Args:
        wrapper: The dict of the config.

    Returns:
        A copy; data parallelism gets ``device_ids=None``.
    """
    cfg = dict(wrapper)
    wrapper_type = cfg.setdefault('type', 'MMDistributedDataParallel')
    if not isclass(wrapper_type):
        wrapper_type = MODEL_WRAPPERS.get(wrapper_type)
    if isclass(wrapper_type) and issubclass(
        wrapper_type, DistributedDataParallel
    ):
        cfg['device_ids'] = None
    return cfg
