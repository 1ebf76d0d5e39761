"""Several processes, also on machines without a GPU.

MMEngine's launchers assign a GPU to each process. On a machine without a GPU,
:func:`start` creates the process group, with the backend gloo, before MMEngine
does, and :func:`without_device` lets MMEngine wrap a model that is on the CPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from inspect import isclass
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed
from mmengine.registry import MODEL_WRAPPERS
from torch.nn.parallel import DistributedDataParallel

from mmefficientmod.config.nodes import ConfigError

# What torchrun sets for each process.
VARIABLES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def start(launcher: str, timeout: float) -> None:
    """Check the launcher, and create the process group if there is no GPU.

    With GPUs, MMEngine creates it.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        timeout: For so many minutes a process waits for another one.

    Raises:
        ConfigError: If the launcher did not start this process, or if it
            needs GPUs that the machine does not have.
    """
    if launcher == 'none':
        return
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if launcher == 'pytorch' and missing:
        raise ConfigError(
            '--launcher pytorch is for processes that torchrun started, and '
            f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} not '
            'set; tools/dist_train.sh and tools/dist_test.sh start them'
        )
    if launcher == 'pytorch':
        _check_numbers()
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
        limit = timedelta(minutes=timeout)
        store, rank, size = next(dist.rendezvous('env://', timeout=limit))
        # After a restart (--max-restarts), torchrun's store still has the
        # addresses of the processes that ended.
        attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
        dist.init_process_group(
            'gloo',
            store=dist.PrefixStore(f'attempt {attempt}', store),
            rank=rank,
            world_size=size,
            timeout=limit,
        )


def _check_numbers() -> None:
    """Refuse numbers of processes that do not go together."""
    numbers = {x: os.environ[x] for x in VARIABLES if x != 'MASTER_ADDR'}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise ConfigError(f'{name} is {value!r}, which is no number')
    if int(numbers['RANK']) >= int(numbers['WORLD_SIZE']):
        raise ConfigError(
            f'RANK={numbers["RANK"]} must be less than the number of '
            f'processes, WORLD_SIZE={numbers["WORLD_SIZE"]}'
        )


def failure_of_another(error: BaseException) -> str | None:
    """The message if a process waits for another one that does not answer.

    Args:
        error: An error of a collective operation.

    Returns:
        A sentence, or None if the error is another one.
    """
    text = str(error)
    if not isinstance(error, RuntimeError):
        return None
    if re.search('[Tt]imed out', text) and re.search('gloo|wait', text):
        return (
            'another process did not answer in time; its own output or log '
            'may say why. --dist-timeout MINUTES waits longer'
        )
    if re.search('gloo.*(closed|reset|refused|broken)', text, re.I):
        return 'another process has ended; its own output says why'
    return None


def stop() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


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
