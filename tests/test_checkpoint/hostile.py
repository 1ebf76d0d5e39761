"""Files that no reader may obey: those that run code, are damaged or lie.

Each function writes a file. ``content`` is a sound checkpoint; ``trap`` is a
path that appears if code of the file runs.
"""

from __future__ import annotations

import argparse
import copy
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import torch
from torch import nn

PROTOCOL = pickle.PROTO + b'\x02'


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def with_call(content, trap):
    return {**content, 'extra': Call(os.mkdir, str(trap))}


def call(path, content, trap):
    torch.save(with_call(content, trap), path)


def call_in_old_format(path, content, trap):
    torch.save(
        with_call(content, trap), path, _use_new_zipfile_serialization=False
    )


def call_beside_options(path, content, trap):
    options = {'args': argparse.Namespace(lr=1)}
    torch.save(with_call({**options, **content}, trap), path)


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition('.')
    return pickle.GLOBAL + f'{module}\n{attribute}\n'.encode()


def calling(function: bytes, *arguments: bytes) -> bytes:
    joined = pickle.MARK + b''.join(arguments) + pickle.TUPLE
    return function + joined + pickle.REDUCE


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(data)]) + data


def storage(numel: int, old: bool = False) -> bytes:
    """The instructions that refer to the only storage of a file."""
    parts = text('storage') + name('torch.FloatStorage') + text('0')
    parts += text('cpu') + number(numel)
    if old:  # no view
        parts += pickle.NONE
    return pickle.MARK + parts + pickle.TUPLE + pickle.BINPERSID


def tensor(
    numel: int, shape: tuple, stride: tuple, old: bool = False
) -> bytes:
    """The instructions that build a tensor of one storage."""

    def numbers(values):
        return pickle.MARK + b''.join(map(number, values)) + pickle.TUPLE

    return calling(
        name('torch._utils._rebuild_tensor_v2'),
        storage(numel, old),
        number(0),
        numbers(shape),
        numbers(stride),
        pickle.NEWFALSE,
        calling(name('collections.OrderedDict')),
    )


def item(key: str, value: bytes) -> bytes:
    """The instructions for a dict of one item."""
    return pickle.EMPTY_DICT + text(key) + value + pickle.SETITEM


def write_zip(path, program: bytes, data: bytes = b'\0' * 4, **options):
    """A zip file in the layout of PyTorch."""
    with zipfile.ZipFile(path, 'w', **options) as archive:
        archive.writestr('c/data.pkl', PROTOCOL + program + pickle.STOP)
        archive.writestr('c/byteorder', 'little')
        archive.writestr('c/data/0', data)
        archive.writestr('c/version', '3\n')


def write_old(path, program: bytes, data: bytes = b'\0' * 4):
    path.write_bytes(in_old_format(program, data))


def in_old_format(program: bytes, data: bytes = b'\0' * 4) -> bytes:
    """A file in the format before PyTorch 1.6."""
    system = dict(protocol_version=1001, little_endian=True, type_sizes={})
    before = 0x1950A86A20F9469CFC6C, 1001, system
    parts = [pickle.dumps(value, 2) for value in before]
    parts += [PROTOCOL + program + pickle.STOP, pickle.dumps(['0'], 2)]
    parts += [struct.pack('<q', len(data) // 4), data]
    return b''.join(parts)


def call_by_getattr(path, content, trap):
    """Finds ``exec`` by ``getattr``, which MMEngine allows."""
    get = name('builtins.getattr')
    module = calling(get, get, text('__self__'))
    code = text(f'import os; os.mkdir({str(trap)!r})')
    program = calling(calling(get, module, text('exec')), code)
    write_zip(path, item('state_dict', program))


def config_text(path, content, trap):
    """MMEngine runs the text of the config."""
    changed = copy.deepcopy(content)
    code = f'import os\nos.mkdir({str(trap)!r})\nmodel = dict()\n'
    changed['meta'] = {**content.get('meta', {}), 'cfg': code}
    torch.save(changed, path)


def config_text_of_old_version(path, content, trap):
    changed = copy.deepcopy(content)
    code = f'import os\nos.mkdir({str(trap)!r})\n'
    changed['meta'] = {**content.get('meta', {}), 'config': code}
    torch.save(changed, path)


def set_on_class(target: str, key: str, value: bytes) -> bytes:
    """The instructions that set an attribute of a class."""
    return (
        name(target)
        + pickle.NONE
        + item(key, value)
        + (pickle.TUPLE2 + pickle.BUILD)
    )


def source_of_module(path, content, trap):
    """PyTorch writes a patch file where a class has ``dump_patches``."""
    owner = 'argparse.Namespace'
    module = text('module') + name(owner) + text(str(trap)) + text('text')
    program = set_on_class(owner, 'dump_patches', pickle.NEWTRUE)
    program += pickle.MARK + module + pickle.TUPLE + pickle.BINPERSID
    write_old(path, pickle.MARK + program + pickle.TUPLE)


def attribute_of_storages(path, content, trap):
    """Without ``nbytes``, nothing can be saved any more."""
    owner = 'torch.storage.UntypedStorage'
    program = set_on_class(owner, 'nbytes', pickle.NONE)
    write_zip(path, item('state_dict', program))


def attribute_of_a_name(path, content, trap):
    """The same for whatever stands for an allowed name."""
    owner = 'torch._utils._rebuild_tensor_v2'
    program = set_on_class(owner, '__code__', pickle.NONE)
    write_zip(path, item('state_dict', program))


# Files that run code, write a file or change a class.
RUNNING = [
    call,
    call_in_old_format,
    call_beside_options,
    call_by_getattr,
    config_text,
    config_text_of_old_version,
    source_of_module,
    attribute_of_storages,
    attribute_of_a_name,
]


def weights_of(content):
    return content.get('state_dict', content)


def saving(change):
    """A file with a change of the content."""

    def write(path, content, trap=None):
        changed = copy.deepcopy(content)
        result = change(changed, *list(weights_of(changed).items())[:1])
        torch.save(changed if result is None else result, path)

    write.__name__ = change.__name__
    return write


def writing(make):
    """A file with the bytes that a function makes of a sound one."""

    def write(path, content, trap=None):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        path.write_bytes(make(buffer.getvalue()))

    write.__name__ = make.__name__
    return write


@writing
def a_text(_):
    return b'<html>404</html>\n'


@writing
def empty(_):
    return b''


@writing
def one_byte(_):
    return pickle.PROTO


@writing
def half(data):
    return data[: len(data) // 2]


def half_in_old_format(path, content, trap=None):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@writing
def flipped_bit(data):
    """One bit of the first weight, of which the pickle knows nothing."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {i.filename: i for i in archive.infolist()}
        info = next(i for n, i in sizes.items() if n.endswith('/data/0'))
        extra = data[info.header_offset + 26 :]
        lengths = sum(struct.unpack('<HH', extra[:4]))
        place = info.header_offset + 30 + lengths + 2
    changed = bytearray(data)
    changed[place] ^= 4
    return bytes(changed)


@saving
def a_list(content, _):
    return [content]


@saving
def a_number(content, _):
    return 3


@saving
def weights_in_a_list(content, _):
    content['state_dict'] = list(weights_of(content).values())


@saving
def numbers_as_names(content, _):
    weights = weights_of(content)
    content['state_dict'] = dict(enumerate(weights.values()))


def replacing(change):
    """A file in which one weight is changed."""

    def write(path, content, trap=None):
        changed = copy.deepcopy(content)
        weights = weights_of(changed)
        key = next(k for k, v in weights.items() if v.ndim > 1)
        weights[key] = change(weights[key])
        torch.save(changed, path)

    write.__name__ = change.__name__
    return write


@replacing
def quantised(weight):
    return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


@replacing
def sparse(weight):
    return weight.to_sparse()


@replacing
def complex_values(weight):
    return weight.to(torch.complex64)


@replacing
def whole_numbers(weight):
    return weight.to(torch.int8)


@replacing
def without_values(weight):
    return weight.to('meta')


@replacing
def not_a_number(weight):
    weight.view(-1)[3] = float('nan')
    return weight


@replacing
def infinite(weight):
    weight.view(-1)[3] = float('inf')
    return weight


@saving
def meta_as_list(content, _):
    content['meta'] = [content.get('meta')]


@saving
def data_meta_as_text(content, _):
    content['meta'] = {**content.get('meta', {}), 'dataset_meta': 'text'}


@saving
def classes_as_numbers(content, _):
    data = dict(classes=[1, 2], palette=None)
    content['meta'] = {**content.get('meta', {}), 'dataset_meta': data}


def program(path, content, trap=None):
    torch.jit.save(torch.jit.script(nn.Identity()), path)


DAMAGED = [
    a_text,
    empty,
    one_byte,
    half,
    half_in_old_format,
    flipped_bit,
    a_list,
    a_number,
    weights_in_a_list,
    numbers_as_names,
    quantised,
    sparse,
    complex_values,
    whole_numbers,
    without_values,
    not_a_number,
    infinite,
    meta_as_list,
    data_meta_as_text,
    classes_as_numbers,
    program,
]


WITHOUT_WEIGHTS = [a_list, a_number, weights_in_a_list]


def pipe(path, content, trap=None):
    os.mkfifo(path)


def device(path, content, trap=None):
    path.symlink_to('/dev/zero')


def folder(path, content, trap=None):
    path.mkdir()


def claim(path, content, trap=None):
    """A tensor of 8 GB in a storage of 4 bytes."""
    shape, stride = (20000, 100000), (100000, 1)
    write_zip(path, item('a.weight', tensor(1, shape, stride)))


def claim_of_storage(path, content, trap=None):
    """A storage of 8 GB in a record of 4 bytes."""
    shape, stride = (20000, 100000), (100000, 1)
    write_zip(path, item('a.weight', tensor(2 * 10**9, shape, stride)))


def claim_in_old_format(path, content, trap=None):
    shape, stride = (20000, 100000), (100000, 1)
    program = tensor(2 * 10**9, shape, stride, old=True)
    write_old(path, item('a.weight', program))


def repeated(path, content, trap=None):
    """One value that is 8 GB as soon as it is copied."""
    write_zip(path, item('a.weight', tensor(1, (20000, 100000), (0, 0))))


def compressed(path, content, trap=None):
    """64 MB of zeros in 64 KB."""
    data = bytes(1 << 26)
    program = item('a.weight', tensor(1 << 24, (1 << 24,), (1,)))
    write_zip(path, program, data, compression=zipfile.ZIP_DEFLATED)


def nested(path, content, trap=None):
    """A list of two lists of two lists, 2^60 values in all."""
    value = []
    for _ in range(60):
        value = [value, value]
    torch.save({**content, 'meta': dict(dataset_meta=dict(a=value))}, path)


def nested_key(path, content, trap=None):
    """A key whose hash takes 2^60 steps."""
    key = pickle.EMPTY_TUPLE
    for i in range(60):
        put = pickle.BINPUT + bytes([i])
        key += put + pickle.BINGET + bytes([i]) + pickle.TUPLE2
    pair = pickle.EMPTY_DICT + key + pickle.NONE + pickle.SETITEM
    write_zip(path, pair)


def endless(path, content, trap=None):
    value = []
    value.append(value)
    torch.save({**content, 'extra': value}, path)


def long_bytes(path, content, trap=None):
    size = calling(name('builtins.bytearray'), number(10**11))
    write_zip(path, item('a', size))


def large_tensor(path, content, trap=None):
    size = calling(name('torch.FloatTensor'), number(10**11))
    write_zip(path, item('a.weight', size))


def shared(path, content, trap=None):
    """40 names for one tensor of 4 MB, as if they were 160 MB."""
    weight = torch.zeros(1 << 20)
    torch.save({f'{i}.weight': weight.view(-1) for i in range(40)}, path)


UNBOUNDED = [
    shared,
    pipe,
    device,
    folder,
    claim,
    claim_of_storage,
    claim_in_old_format,
    repeated,
    compressed,
    nested,
    nested_key,
    endless,
    long_bytes,
    large_tensor,
]


def sound(weights=None):
    """A checkpoint as MMEngine writes one, with a training log."""
    from mmengine.logging import HistoryBuffer

    weights = nn.Linear(3, 2).state_dict() if weights is None else weights
    log = OrderedDict(loss=HistoryBuffer([1.0, 2.0], [1, 1]))
    info = dict(epoch=1, iter=2)
    # Of two parameters, as the model of the tests has.
    optimizer = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    return dict(
        meta=dict(epoch=1, iter=2, seed=3, cfg='model = dict()'),
        state_dict=weights,
        optimizer=optimizer.state_dict(),
        message_hub=dict(
            log_scalars=log,
            runtime_info=info,
            resumed_keys=OrderedDict(loss=True),
        ),
    )
