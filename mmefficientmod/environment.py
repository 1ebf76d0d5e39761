"""What the package runs on: versions of libraries, CPU and GPUs."""

from __future__ import annotations

import functools
import os
import platform
from importlib import import_module, metadata
from pathlib import Path

import torch

from mmefficientmod.compat import installed_stack, list_versions
from mmefficientmod.ops import is_standin
from mmefficientmod.version import __version__

# Libraries whose versions matter, besides PyTorch and the toolboxes.
LIBRARIES = ('timm', 'onnx', 'onnxruntime', 'onnxruntime-gpu', 'triton')


def machine(device: torch.device) -> dict[str, str]:
    """Describe what a measurement runs on.

    Args:
        device: The device that is measured, the CPU or a GPU.

    Returns:
        ``cpu``, ``cores``, for a GPU ``gpu`` and ``cuda``, ``system``,
        ``python`` and ``mmefficientmod``, then the name and version of each
        installed library that matters.
    """
    found = dict(cpu=cpu_name(), cores=str(os.cpu_count()))
    if device.type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
        found['cuda'] = str(torch.version.cuda)
    found['system'] = f'{platform.system()} {platform.machine()}'
    found['python'] = platform.python_version()
    found['mmefficientmod'] = __version__
    return found | installed_stack()[1] | _library_versions()


def bug_report() -> str:
    """Describe the environment for a bug report.

    Imports mmcv, to find out whether its compiled ops load.

    Returns:
        A few lines of ``name: value``.
    """
    stack, packages = installed_stack()
    # PyTorch's own answer has the build, such as 2.13.0+cu130.
    packages |= dict(torch=torch.__version__)
    lines = {
        'mmefficientmod': __version__,
        'Python': f'{platform.python_version()} on {platform.platform()}',
        'Stack': f'{stack}: {list_versions(packages)}',
        'mmcv ops': _mmcv_ops(),
        'Libraries': list_versions(_library_versions()) or 'none',
        'CPU': f'{cpu_name()}, {os.cpu_count()} cores',
        'GPU': _gpus(),
    }
    return '\n'.join(f'{name}: {value}' for name, value in lines.items())


def _library_versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _mmcv_ops() -> str:
    if is_standin():
        return "stand-in, by torchvision's and PyTorch's kernels"
    try:
        import_module('mmcv._ext')
    except ImportError as error:
        return f'compiled, but they do not load: {error}'
    return 'compiled'


@functools.cache  # Linux takes long to write /proc/cpuinfo for many cores
def cpu_name() -> str:
    """The name of the processor, ``'unknown'`` if the system has none."""
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(':')
            if key.strip() == 'model name':
                return value.strip()
    return platform.processor() or 'unknown'


def _gpus() -> str:
    if torch.cuda.is_available():
        names = [
            torch.cuda.get_device_name(i)
            for i in range(torch.cuda.device_count())
        ]
        return f'{", ".join(names)} (CUDA {torch.version.cuda})'
    if torch.backends.mps.is_available():
        return 'MPS'
    return 'none that PyTorch can use'
