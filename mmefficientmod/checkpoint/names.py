"""What the names in a checkpoint stand for: functions that build plain data.

PyTorch, NumPy and MMEngine write names of functions into the pickle of a
checkpoint. Each of them stands for a function here, which checks its arguments
before it takes memory, and builds a tensor, an array or a container. All other
names are refused.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

# The types of keys. Others may take time without end to hash: a tuple of
# tuples of one tuple, a hundred times nested, takes a few hundred bytes.
KEY_TYPES = (str, int, float, bool, bytes, type(None))
DTYPES = {
    name: dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and not name.startswith(('q', 'bits'))
}
# Element types of the classes of storages that files name.
STORAGES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexFloatStorage': torch.complex64,
    'ComplexDoubleStorage': torch.complex128,
    'UntypedStorage': torch.uint8,
}
# Kinds of tensors that no model here has, and how PyTorch builds them.
REFUSED_TENSORS = {
    'torch._utils._rebuild_qtensor': 'quantised',
    'torch._utils._rebuild_sparse_tensor': 'sparse',
    'torch._utils._rebuild_sparse_csr_tensor': 'sparse',
    'torch._utils._rebuild_meta_tensor_no_storage': 'meta, without values,',
    'torch._utils._rebuild_nested_tensor': 'nested',
}
NUMPY_TYPE = re.compile(r'[<>|=]?([biufc]\d{1,2}|[SU]\d{1,4})')


class ForbiddenError(pickle.UnpicklingError):
    """A file holds an object that only code of its own can build."""


@dataclass(frozen=True)
class Storage:
    """Values of tensors.

    Attributes:
        data: The bytes, uint8 ``(nbytes,)``.
        dtype: Type of an element.
    """

    data: Tensor
    dtype: torch.dtype


class Name:
    """What a name in a file stands for: a function of this module, or none.

    A file can neither set an attribute of it nor reach the function.
    """

    __slots__ = ('build',)

    def __init__(self, build: Callable[..., Any] | None = None) -> None:
        self.build = build


class Blank:
    """Takes the place of an object that is not read."""

    __slots__ = ()


class NumpyType:
    """A type of NumPy, of which a file may set the byte order."""

    __slots__ = ('code',)

    def __init__(self, code: str, *_: object) -> None:
        if type(code) is not str or not NUMPY_TYPE.fullmatch(code):
            raise ForbiddenError('numpy.dtype of other than numbers and text')
        self.code = code.lstrip('<>|=')

    def set_state(self, state: Any) -> None:
        order = state[1]
        if order not in ('<', '>', '|', '='):
            raise ValueError('a type of NumPy has no byte order')
        self.code = order + self.code.lstrip('<>|=')

    def dtype(self) -> np.dtype:
        return np.dtype(self.code)


def _scalar(kind: Any, data: Any) -> Any:
    if type(kind) is not NumpyType or type(data) is not bytes:
        raise ForbiddenError('numpy.core.multiarray.scalar')
    return np.frombuffer(data, kind.dtype(), count=1)[0]


def _new_array(*_: object) -> np.ndarray:
    return np.empty(0)


def set_array(array: np.ndarray, state: Any) -> None:
    _, shape, kind, fortran, data = state
    if type(kind) is not NumpyType or type(data) is not bytes:
        raise ForbiddenError('numpy.ndarray of objects')
    dtype = kind.dtype()
    _check_numbers(shape)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError('an array has other than the claimed size')
    set_state: Any = array.__setstate__  # whose declared types are narrower
    set_state((1, shape, dtype, fortran is True, data))


def _history(*_: object) -> HistoryBuffer:
    return HistoryBuffer()


def set_history(history: HistoryBuffer, state: Any) -> None:
    """Take the logged values, and nothing else, from a file."""
    values, counts = state['_log_history'], state['_count_history']
    for array in values, counts:
        if type(array) is not np.ndarray or array.dtype.kind not in 'biuf':
            raise ValueError('the training log has other values than numbers')
        if array.ndim != 1 or len(array) != len(values):
            raise ValueError('the training log has no columns of one length')
    length = state.get('max_length', len(values))
    if type(length) is not int or length < len(values):
        raise ValueError('the training log is longer than its max_length')
    history._log_history, history._count_history = values, counts
    history.max_length = length


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *_: object
) -> Tensor:
    if type(storage) is not Storage:
        raise ValueError('a tensor has no storage')
    return _typed_tensor(storage, offset, size, stride, storage.dtype)


def _tensor_of_type(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    *_: object,
) -> Tensor:
    if type(storage) is not Storage or type(dtype) is not torch.dtype:
        raise ValueError('a tensor has no storage or no type')
    return _typed_tensor(storage, offset, size, stride, dtype)


def _typed_tensor(
    storage: Storage,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """A tensor in a storage, once it is clear that it lies in it.

    PyTorch would enlarge the storage to whatever a file claims.
    """
    _check_numbers((offset, *size, *stride))
    if len(size) != len(stride):
        raise ValueError('shape and strides of a tensor differ in length')
    values = storage.data.view(dtype)
    numel = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    # A tensor that repeats its values would be any size when it is copied.
    if numel and (last >= len(values) or numel > len(values)):
        raise ValueError(
            f'a tensor claims the shape {tuple(size)}, for which the file '
            f'has {len(values)} values'
        )
    if not numel:
        return torch.empty(tuple(size), dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(
        values.untyped_storage(),
        values.storage_offset() + offset,
        tuple(size),
        tuple(stride),
    )


def _check_numbers(values: Sequence[Any]) -> None:
    if any(type(n) is not int or n < 0 for n in values):
        raise ValueError('a shape has other than whole numbers')


def _parameter(data: Any, requires_grad: Any = True, *_: object) -> Tensor:
    if type(data) is not Tensor:
        raise ValueError('a parameter has no tensor')
    return nn.Parameter(data, bool(requires_grad))


def _tensor_with_attributes(function: Any, *rest: Any) -> Any:
    """A tensor of a subclass or with attributes, without either."""
    if type(function) is not Name or function.build is None:
        raise ValueError('a tensor has no function that builds it')
    return function.build(*rest[1])


def refused(kind: str) -> Callable[..., Any]:
    def build(*_: object) -> Any:
        raise ValueError(
            f'a tensor in it is {kind} and only dense tensors are read'
        )

    return build


def _size(values: Any = ()) -> torch.Size:
    _check_numbers(values)
    return torch.Size(values)


def _device(kind: Any, *index: Any) -> torch.device:
    _check_numbers(index)
    if type(kind) is not str:
        raise ValueError('a device has no name')
    return torch.device(kind, *index)


def _encode(text: Any, encoding: Any = 'latin1') -> bytes:
    # Other encodings would be imported by their name in the file.
    if encoding not in ('latin1', 'latin-1'):
        raise ForbiddenError('_codecs.encode to other than latin1')
    return text.encode('latin1')


def _bytearray(data: Any = b'', *encoding: Any) -> bytearray:
    if type(data) is str:
        data = _encode(data, *encoding)
    if type(data) is not bytes:  # a number would be a length
        raise ForbiddenError('bytearray of other than bytes')
    return bytearray(data)


def _ordered(pairs: Any = ()) -> OrderedDict:
    return OrderedDict((checked_key(k), v) for k, v in pairs)


def _counter(counts: Any = None) -> Counter:
    if counts is not None and type(counts) is not dict:
        raise ValueError('a Counter is made of other than a dict')
    return Counter(counts)


def _set(values: Any = ()) -> set:
    return set(map(checked_key, values))


def _complex(real: float = 0.0, imaginary: float = 0.0) -> complex:
    return complex(float(real), float(imaginary))


def versions_of_layers(metadata: Any) -> OrderedDict | None:
    """The versions of the layers, for which PyTorch adapts weights."""
    if type(metadata) not in (dict, OrderedDict):
        return None
    return OrderedDict(
        (layer, dict(version=entry['version']))
        for layer, entry in metadata.items()
        if type(entry) is dict and type(entry.get('version')) is int
    )


def _method(owner: Any, name: Any) -> Blank:
    """A method of the training log, which is not needed to read it.

    With ``getattr`` of other objects, a file could find any function.
    """
    if owner is not HISTORY or type(name) is not str or name[:1] == '_':
        raise ForbiddenError('builtins.getattr')
    return Blank()


HISTORY_NAME = 'mmengine.logging.history_buffer.HistoryBuffer'
HISTORY = Name(_history)
_CORES = ('numpy.core', 'numpy._core')
_BUILTINS = ('builtins', '__builtin__')
# What the names in a file stand for. Parts of MMEngine's training log are
# read as data, since a training that goes on needs them.
NAMES: dict[str, Name] = {
    'argparse.Namespace': Name(argparse.Namespace),  # options of timm
    'collections.OrderedDict': Name(_ordered),
    'collections.Counter': Name(_counter),
    'torch.Size': Name(_size),
    'torch.device': Name(_device),
    'torch.Tensor': Name(),
    'torch._tensor.Tensor': Name(),
    'torch.nn.parameter.Parameter': Name(_parameter),
    'torch._utils._rebuild_parameter': Name(_parameter),
    'torch._utils._rebuild_parameter_with_state': Name(_parameter),
    'torch._utils._rebuild_tensor': Name(_tensor),
    'torch._utils._rebuild_tensor_v2': Name(_tensor),
    'torch._utils._rebuild_tensor_v3': Name(_tensor_of_type),
    'torch._tensor._rebuild_from_type_v2': Name(_tensor_with_attributes),
    'torch.serialization._get_layout': Name(refused('sparse')),
    **{name: Name(refused(kind)) for name, kind in REFUSED_TENSORS.items()},
    '_codecs.encode': Name(_encode),
    **{f'{b}.bytearray': Name(_bytearray) for b in _BUILTINS},
    **{f'{b}.set': Name(_set) for b in _BUILTINS},
    **{f'{b}.complex': Name(_complex) for b in _BUILTINS},
    **{f'{b}.getattr': Name(_method) for b in _BUILTINS},
    HISTORY_NAME: HISTORY,
    # The methods, as protocol 4 names them.
    **{
        f'{HISTORY_NAME}.{method}': Name()
        for method in ('min', 'max', 'current', 'mean')
    },
    'numpy.ndarray': Name(),
    'numpy.dtype': Name(NumpyType),
    **{f'{c}.multiarray._reconstruct': Name(_new_array) for c in _CORES},
    **{f'{c}.multiarray.scalar': Name(_scalar) for c in _CORES},
}


def checked_key(key: Any) -> Any:
    if type(key) not in KEY_TYPES:
        raise ValueError(f'a key is a {type(key).__name__}')
    return key
