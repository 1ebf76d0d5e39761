"""Reading the pickle in a checkpoint as data.

A pickle is a program for a small machine. Its instructions are harmless, but
for those that find, call or change objects of Python. Here these find only the
names of :data:`NAMES`, call only the functions of this module, and change only
plain containers.

PyTorch's own weights-only unpickler does not suffice. That of torch 2.1 reads
no checkpoint of MMEngine, and sets items of any object. In no version can a
name be replaced that it knows, and some of these take memory for whatever size
a file claims, import modules, or give objects on which a file can set
attributes. So the standard library's unpickler is restricted here, which is
equally strict with every version of PyTorch.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmefficientmod.checkpoint.names import (
    DTYPES,
    NAMES,
    STORAGES,
    ForbiddenError,
    Name,
    NumpyType,
    Storage,
    checked_key,
    refused,
    set_array,
    set_history,
    versions_of_layers,
)

# The instructions for plain values: those of protocol 2, which PyTorch writes,
# and the few that protocols 3 and 4 use in their place. Those of protocol 0,
# and other ways to call a function, are left out.
PLAIN = """
PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1
BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINSTRING
SHORT_BINSTRING TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST EMPTY_DICT
EMPTY_SET BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
BINPERSID
"""


def _code(name: str) -> int:
    return getattr(pickle, name)[0]


# The unpickler of the standard library in Python, whose instructions can be
# replaced. The one in C cannot, and takes memory for any number of a value.
_Machine: Any = pickle._Unpickler


class DataUnpickler(_Machine):
    """Reads one pickle of plain values, tensors and MMEngine's log.

    Args:
        file: Where to read, with ``read`` and ``readline``. ``read`` must not
            take memory for more bytes than there are.
        find_storage: Gives the values of tensors for the arguments of a
            persistent id: element type, key, and number of elements, then in
            old files what part of it a view takes.

    ``load`` raises a :class:`ForbiddenError` for any other object. For a
    damaged pickle it may raise an exception of any type.
    """

    def __init__(
        self,
        file: Any,
        find_storage: Callable[..., Storage] | None = None,
    ) -> None:
        super().__init__(file, encoding='utf-8')
        self.find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        full = f'{module}.{name}'
        if full in NAMES:
            return NAMES[full]
        if module == 'torch' and name in DTYPES:
            return DTYPES[name]
        if module in ('torch', 'torch.storage', 'torch.cuda'):
            if name in STORAGES:
                return STORAGES[name]
            if re.fullmatch(r'QU?Int\w+Storage', name):
                refused('quantised')()
        raise ForbiddenError(full)

    def persistent_load(self, pid: Any) -> Storage:
        kind = pid[0] if type(pid) is tuple and pid else None
        if kind == 'module':
            raise ForbiddenError('a whole model with its source code')
        if kind != 'storage' or self.find_storage is None or len(pid) < 5:
            raise ValueError('a value refers to no storage')
        _, dtype, key, _, numel, *view = pid
        if type(dtype) is not torch.dtype or type(key) is not str:
            raise ValueError('a storage has no type or no name')
        if type(numel) is not int or numel < 0:
            raise ValueError('a storage has no number of elements')
        return self.find_storage(dtype, key, numel, *view)

    def load_frame(self) -> None:
        """Skip the length of a part, which is read like the others."""
        self.read(8)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        name = self.stack[-1]
        if type(name) is not Name or name.build is None:
            raise ForbiddenError('a call of other than an allowed name')
        if type(arguments) is not tuple:
            raise ValueError('the arguments of a call are no tuple')
        self.stack[-1] = name.build(*arguments)

    def load_newobj(self) -> None:
        self.load_reduce()

    def load_build(self) -> None:
        """Set the state of an object, which changes no class."""
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is np.ndarray:
            set_array(target, state)
        elif type(target) is NumpyType:
            target.set_state(state)
        elif type(target) is HistoryBuffer:
            set_history(target, state)
        elif type(target) is argparse.Namespace and type(state) is dict:
            vars(target).update({str(k): v for k, v in state.items()})
        elif type(target) is OrderedDict and type(state) is dict:
            versions = versions_of_layers(state.get('_metadata'))
            if versions is not None:
                vars(target)['_metadata'] = versions
        else:
            raise ForbiddenError('a change of a class or function')

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError('items are added to other than a list')
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict, Counter):
            raise ValueError('items are set in other than a dict')
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise ValueError('items are added to other than a set')
        self.stack[-1].update(map(checked_key, items))

    dispatch = {
        **{
            code: _Machine.dispatch[code] for code in map(_code, PLAIN.split())
        },
        pickle.FRAME[0]: load_frame,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
    }
