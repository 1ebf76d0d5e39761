"""Matrix products of linear layers, by the library that is faster here.

On a CPU, PyTorch hands float32 products to one library, mostly MKL, which
runs at about half speed on some AMD processors. oneDNN, which is part of
PyTorch too, runs at full speed there; on other processors it depends on the
shape. So the libraries are measured, once for each class of shapes, and the
choice is kept in a file: another process computes the same numbers to the
last bit. ``docs/speed.md`` has what this gains.

The functions here compute a linear layer and its two gradients. They choose
only where nothing else depends on the choice; see :func:`_may_choose`.

The environment variable ``MMEFFICIENTMOD_MATMUL`` or :func:`use_library`
forces a library.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmefficientmod.atomic import atomic_write
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.environment import cpu_name
from mmefficientmod.torch_private import (
    HAS_ONEDNN_LINEAR,
    has_dispatch_modes,
    is_autocast_to_cpu,
    is_onednn_enabled,
    is_transformed,
    onednn_linear,
)

# 'auto' measures; 'pytorch' is what F.linear and matmul call.
LIBRARIES = ('auto', 'pytorch', 'onednn')
VARIABLE = 'MMEFFICIENTMOD_MATMUL'
# oneDNN has to take at most this part of the time of PyTorch's own.
GAIN = 0.85
# The most rows of a measured product: many enough to compute as fast as more
# would, few enough to take some milliseconds at most.
MOST_ROWS = 512
NARROW = 2**24  # product of rows and weights for which more rows are taken
# A measurement ends after so many rounds, or after a time in s, but not in the
# first round, in which oneDNN prepares itself.
ROUNDS, SECONDS = 5, 0.01
# oneDNN prepares itself for each number of rows, for about 1 ms, and keeps
# the preparations for 1024 products. With images of ever new sizes, PyTorch's
# own products are faster after this many numbers of rows.
MOST_SIZES = 12
# So many products are remembered; others are looked up by their class.
MOST_SHAPES = 4096

Way = Callable[..., Tensor]
# Kind, shapes of the factors, and threads.
Product = tuple[str, torch.Size, torch.Size, int]
# Kind, rows, K, N, and threads.
Group = tuple[str, int, int, int, int]


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    # oneDNN is faster if the result has more columns than rows.
    if x.shape[1] < grad.shape[1]:
        return onednn_linear(x.t(), grad.t(), None).t().contiguous()
    return onednn_linear(grad.t(), x.t(), None)


def _pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not x.is_contiguous():  # channels-last
        x = x.permute(0, 2, 3, 1)
        return onednn_linear(x, weight.flatten(1), bias).permute(0, 3, 1, 2)
    if len(x) > 1:
        return torch.mkldnn_convolution(
            x, weight, bias, [0, 0], [1, 1], [1, 1], 1
        )
    # The product of the weight and the image is in the layout of the output.
    out = onednn_linear(weight.flatten(1), x[0].flatten(1).t(), None)
    out = out.view(1, -1, *x.shape[2:])
    return out if bias is None else out.add_(bias.view(-1, 1, 1))


# How the libraries compute each kind of product.
WAYS: dict[str, dict[str, Way]] = {
    'linear': {'pytorch': F.linear, 'onednn': onednn_linear},
    'linear with GELU': {
        'pytorch': lambda *args: torch.ops.aten.gelu_(F.linear(*args)),
        'onednn': lambda x, w, b: onednn_linear(x, w, b, gelu=True),
    },
    'pointwise convolution': {'pytorch': F.conv2d, 'onednn': _pointwise_conv},
    'pointwise convolution, channels-last': {
        'pytorch': F.conv2d,
        'onednn': _pointwise_conv,
    },
    'input gradient': {
        'pytorch': torch.mm,
        'onednn': lambda grad, weight: onednn_linear(grad, weight.t(), None),
    },
    'weight gradient': {
        'pytorch': lambda grad, x: grad.t() @ x,
        'onednn': _weight_gradient,
    },
}
_chosen: dict[Product, Way] = {}
_numbers_of_rows: dict[Group, int] = {}
_names: dict[Group, str] = {}
_kept: dict[str, str] = {}  # this machine's choices in the file


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: ``(..., K)``.
        weight: ``(N, K)``.
        bias: ``(N,)``, or None.

    Returns:
        ``(..., N)``.
    """
    return _way('linear', x, weight)(x, weight, bias)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``GELU(x @ weight.T + bias)``, without gradients.

    Args:
        x: ``(..., K)``.
        weight: ``(N, K)``.
        bias: ``(N,)``, or None.

    Returns:
        ``(..., N)``.
    """
    return _way('linear with GELU', x, weight)(x, weight, bias)


def pointwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """A 1x1 convolution.

    Args:
        x: ``(N, C, H, W)``. There is a choice if it is contiguous, as it is
            or in PyTorch's ``channels_last`` format.
        weight: ``(C_out, C, 1, 1)``.
        bias: ``(C_out,)``, or None.

    Returns:
        ``(N, C_out, H, W)``, in the format of ``x``.
    """
    kind = 'pointwise convolution'
    if not x.is_contiguous():
        if not x.is_contiguous(memory_format=torch.channels_last):
            return F.conv2d(x, weight, bias)
        kind += ', channels-last'
    return _way(kind, x, weight)(x, weight, bias)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a linear layer's input, ``grad @ weight``.

    Args:
        grad: Gradient of the output, ``(rows, N)``.
        weight: ``(N, K)``.

    Returns:
        ``(rows, K)``.
    """
    return _way('input gradient', grad, weight)(grad, weight)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a linear layer's weight, ``grad.T @ x``.

    Args:
        grad: Gradient of the output, ``(rows, N)``.
        x: Input, ``(rows, K)``.

    Returns:
        ``(N, K)``.
    """
    return _way('weight gradient', grad, x)(grad, x)


def _way(kind: str, a: Tensor, b: Tensor) -> Way:
    """The way to compute a product, measured for the first of its class.

    Args:
        kind: A key of :data:`WAYS`.
        a: The first factor.
        b: The second factor.
    """
    own = WAYS[kind]['pytorch']
    shape = (kind, a.shape, b.shape, torch.get_num_threads())
    way = _chosen.get(shape)
    if way is own or not _may_choose(a, b):
        return own
    return _choose(shape) if way is None else way


def _may_choose(a: Tensor, b: Tensor) -> bool:
    """Whether it is only a question of speed which library multiplies.

    PyTorch's own operations are needed for other dtypes and devices, where
    they are fast, for autocast, gradients and ``torch.func``, and for a
    ``TorchDispatchMode``, such as a counter of FLOPs, which knows them alone.
    With ``torch.use_deterministic_algorithms`` nothing depends on a
    measurement.
    """
    return (
        a.dtype is torch.float32
        and b.dtype is torch.float32
        and a.is_cpu
        and a.numel() > 0
        and HAS_ONEDNN_LINEAR
        and is_onednn_enabled()
        and not torch.is_grad_enabled()
        and not is_autocast_to_cpu()
        and not torch.are_deterministic_algorithms_enabled()
        and not has_dispatch_modes()
        and not is_transformed()
    )


def _choose(product: Product) -> Way:
    """Choose the way for shapes that are new, or that were too many."""
    kind, a, b, threads = product
    if kind == 'weight gradient':
        (rows, n), k = a, b[1]
    else:
        n, k = b[:2]
        rows = a.numel() // (n if kind == 'input gradient' else k)
    # A class of shapes has up to twice the rows of the measured product, or
    # any number above the most.
    most = max(NARROW // (k * n), MOST_ROWS)
    measured = 1 << (min(rows, most).bit_length() - 1)
    group = (kind, measured, k, n, threads)
    if group not in _names:
        _names[group] = _name(group)
    name = _names[group]
    if name == 'onednn' and library() == 'auto':
        seen = _numbers_of_rows.get(group, 0)
        if seen == MOST_SIZES:
            name = 'pytorch'
        _numbers_of_rows[group] = min(seen + 1, MOST_SIZES)
    way = WAYS[kind][name]
    if len(_chosen) < MOST_SHAPES:
        _chosen[product] = way
    return way


def _name(group: Group) -> str:
    """Name of the way for a class of shapes: forced, kept, or measured."""
    if library() != 'auto':
        return library()
    if not _kept:
        _kept.update(_of_this_machine(_read()))
    name = _kept.get(_key(group))
    if name not in LIBRARIES[1:]:
        name = 'onednn' if measure(*group[:4]) <= GAIN else 'pytorch'
        _keep(_key(group), name)
    return name


@torch.no_grad()
def measure(kind: str, rows: int, k: int, n: int) -> float:
    """Measure the libraries at one product, with the threads in use.

    Args:
        kind: A key of :data:`WAYS`.
        rows: Rows of the layer's input.
        k: Channels of the input.
        n: Channels of the output.

    Returns:
        The time of oneDNN divided by that of PyTorch's own operation.
    """
    x, grad = torch.ones(rows, k), torch.ones(rows, n)
    weight, bias = torch.ones(n, k), torch.ones(n)
    kernel = weight.view(n, k, 1, 1)
    args = {
        'pointwise convolution': (x.view(1, k, rows, 1), kernel, bias),
        'pointwise convolution, channels-last': (
            x.view(1, rows, 1, k).permute(0, 3, 1, 2),
            kernel,
            bias,
        ),
        'linear': (x, weight, bias),
        'linear with GELU': (x, weight, bias),
        'input gradient': (grad, weight),
        'weight gradient': (grad, x),
    }[kind]
    times = dict.fromkeys(WAYS[kind], float('inf'))
    begin = time.perf_counter()
    # In turn, so that a pause of the machine does not hit one of them alone.
    for i in range(ROUNDS):
        for name, way in WAYS[kind].items():
            start = time.perf_counter()
            way(*args)
            times[name] = min(times[name], time.perf_counter() - start)
        if i and time.perf_counter() - begin > SECONDS:
            break
    return times['onednn'] / times['pytorch']


# ---------------------------------------------------------------- forcing one


def library() -> str:
    """The library in use, one of :data:`LIBRARIES`.

    Raises:
        ConfigError: If the environment variable has another value.
    """
    return _checked(_forced or os.environ.get(VARIABLE) or 'auto', VARIABLE)


def _checked(name: str, source: str) -> str:
    if name not in LIBRARIES:
        raise ConfigError(
            f'{source} is {name!r}; it must be one of {", ".join(LIBRARIES)}'
        )
    return name


_forced: str | None = None


def use_library(name: str | None) -> None:
    """Set the library for the products of this process.

    Args:
        name: ``'auto'`` chooses the faster one by measurement, ``'pytorch'``
            is that of PyTorch's own operations, and ``'onednn'`` is oneDNN.
            None: the environment variable ``MMEFFICIENTMOD_MATMUL`` decides,
            whose default is ``'auto'``.

    Raises:
        ConfigError: For another name, in the variable too.
    """
    global _forced
    _forced = None if name is None else _checked(name, 'use_library(name)')
    library()
    for store in _chosen, _names, _numbers_of_rows, _kept:
        store.clear()


@contextmanager
def using_library(name: str | None) -> Iterator[None]:
    """As :func:`use_library`, until the block ends."""
    before = _forced
    use_library(name)
    try:
        yield
    finally:
        use_library(before)


def summary() -> str:
    """Which library computes the products of this process, in one line.

    Returns:
        The line; empty if there was no product with a choice.
    """
    if not _names:
        return ''
    count = list(_names.values()).count('onednn')
    how = 'measured' if library() == 'auto' else 'forced'
    return (
        f'matrix products on the CPU: oneDNN for {count} of {len(_names)} '
        f"classes of shapes, PyTorch's own library for the others ({how}; "
        f'--matmul or {VARIABLE} forces one)'
    )


# ------------------------------------------------------------ keeping choices


def cache_file() -> Path:
    """The file with the choices of earlier processes of this user."""
    folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    if not os.path.isabs(folder):  # as for a user without a home folder
        folder = tempfile.gettempdir()
    return Path(folder) / 'mmefficientmod' / 'matmul.json'


def _machine() -> str:
    return f'{cpu_name()}, torch {torch.__version__}'


def _key(group: Group) -> str:
    kind, rows, k, n, threads = group
    return f'{kind}, {rows} rows, {k} to {n} channels, {threads} threads'


def _read() -> dict[str, dict[str, str]]:
    # Without the file, or with a damaged one, everything is measured again.
    with suppress(OSError, ValueError):
        content = json.loads(cache_file().read_text())
        if isinstance(content, dict):
            return content
    return {}


def _of_this_machine(content: dict[str, dict[str, str]]) -> dict[str, str]:
    kept = content.get(_machine())
    return kept if isinstance(kept, dict) else {}


def _keep(key: str, name: str) -> None:
    _kept[key] = name
    content = _read()  # other processes may have written choices since
    content[_machine()] = {**_of_this_machine(content), key: name}
    # A home folder may be read-only: then each process measures.
    with suppress(OSError), atomic_write(cache_file()) as draft:
        draft.write_text(json.dumps(content, indent=1))
