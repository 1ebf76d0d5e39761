"""The two formats of PyTorch's files: their checks, pickle and storages.

Since PyTorch 1.6 a checkpoint is a zip file that compresses nothing, with a
pickle and one record for each storage. Before, it was a sequence of pickles
followed by the storages. PyTorch does not compare the checksums of the zip
file, and believes the sizes that the pickle claims. So the files are opened
here, by the standard library: a damaged value is noticed, and memory is taken
only for bytes that the file has.

The functions raise a ``ForbiddenError`` for objects that are not read. For a
damaged file they may raise an exception of any type.
"""

from __future__ import annotations

import io
import pickle
import stat
import struct
import sys
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mmefficientmod.checkpoint.names import Storage
from mmefficientmod.checkpoint.unpickling import DataUnpickler

ZIP_START = b'PK\x03\x04'
# The first pickles of the older format.
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
OLD_PROTOCOL = 1001
BLOCK = 1 << 22  # bytes that are read at once
# An instruction of one byte may make an object of a hundred. Those of a tensor
# take about a hundred reads.
MOST_READS = 5_000_000


def fault_of(path: Path) -> str | None:
    """Why a path is not opened; None if it is a file with content.

    Opening a pipe waits for its writer, and a device may have no end.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 'does not exist'
    if stat.S_ISDIR(status.st_mode):
        return 'is a folder'
    if not stat.S_ISREG(status.st_mode):
        return 'is a pipe or a device, no file'
    return None if status.st_size else 'is empty'


def read_container(file: BinaryIO) -> Any:
    """The content of a checkpoint in one of the two formats.

    Args:
        file: The file, opened to read bytes, at its beginning.

    Raises:
        ForbiddenError: If it has objects that are not read.
        ValueError: If it has neither format, or a size or checksum is wrong.
            The file may cause any other exception, too.
    """
    start = file.read(4)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if start == ZIP_START:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile:  # the list of records is at its end
            raise ValueError('it is cut off') from None
        with archive:
            return _ZipReader(archive, size).load()
    if start[:1] == pickle.PROTO:
        return _OldReader(file, size).load()
    raise ValueError('it is in no format of PyTorch')


class _ZipReader:
    """Reads a zip file, each record once."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        infos = archive.infolist()
        self.archive = archive
        self.records = {info.filename: info for info in infos}
        self.storages: dict[str, Tensor] = {}
        if any(name.endswith('/constants.pkl') for name in self.records):
            raise ValueError('it is a program of TorchScript')
        if len(self.records) < len(infos):
            raise ValueError('two of its records have one name')
        if any(
            info.compress_type != zipfile.ZIP_STORED
            or info.compress_size != info.file_size
            for info in infos
        ):
            raise ValueError('it has compressed records, as no checkpoint has')
        if sum(info.file_size for info in infos) > size:
            raise ValueError('its records claim more bytes than it has')
        found = [n for n in self.records if n.endswith('/data.pkl')]
        if len(found) != 1:
            raise ValueError('it has no record data.pkl')
        self.folder = found[0].removesuffix('data.pkl')

    def load(self) -> Any:
        order = self._read('byteorder', default=sys.byteorder.encode())
        if order != sys.byteorder.encode():
            raise ValueError('its values have another byte order')
        data = self._read('data.pkl')
        program = _Bounded(io.BytesIO(data), len(data))
        content = DataUnpickler(program, self._find).load()
        for info in list(self.records.values()):  # checksums of the others
            with self.archive.open(info) as record:
                while record.read(BLOCK):
                    pass
        return content

    def _read(self, name: str, default: bytes | None = None) -> bytes:
        info = self.records.pop(self.folder + name, None)
        if info is None:
            if default is None:
                raise ValueError(f'it has no record {name}')
            return default
        return self.archive.read(info)

    def _find(self, dtype: torch.dtype, key: str, numel: int) -> Storage:
        wanted = numel * dtype.itemsize
        if key not in self.storages:
            name = f'{self.folder}data/{key}'
            info = self.records.pop(name, None)
            if info is None:
                raise ValueError(f'it has no record data/{key}')
            data = torch.empty(info.file_size, dtype=torch.uint8)
            with self.archive.open(info) as record:
                _fill(data, record)
            self.storages[key] = data
        data = self.storages[key]
        if len(data) != wanted:
            raise ValueError(
                f'a storage claims {wanted} bytes and has {len(data)}'
            )
        return Storage(data, dtype)


class _OldReader:
    """Reads the older format, in which the values follow the tensors."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = _Bounded(file, size)
        self.left = size  # bytes that storages may still take
        self.storages: dict[str, tuple[Tensor, int]] = {}

    def load(self) -> Any:
        for expected in MAGIC_NUMBER, OLD_PROTOCOL:
            if self._pickle() != expected:
                raise ValueError('it is in no format of PyTorch')
        system = self._pickle()
        if not isinstance(system, dict) or system.get('little_endian') != (
            sys.byteorder == 'little'
        ):
            raise ValueError('its values have another byte order')
        content = DataUnpickler(self.file, self._find).load()
        keys = self._pickle()
        if (
            type(keys) is not list
            or len(keys) != len(self.storages)
            or any(type(key) is not str for key in keys)
        ):
            raise ValueError('it has other storages than tensors')
        for key in keys:
            data, numel = self.storages.pop(key)
            (given,) = struct.unpack('<q', self.file.read(8))
            if given != numel:
                raise ValueError('a storage has another size than claimed')
            _fill(data, self.file)
        return content

    def _pickle(self) -> Any:
        return DataUnpickler(self.file).load()

    def _find(
        self, dtype: torch.dtype, key: str, numel: int, view: Any = None
    ) -> Storage:
        if key not in self.storages:
            nbytes = numel * dtype.itemsize
            self.left -= nbytes
            if self.left < 0:
                raise ValueError('its storages claim more bytes than it has')
            data = torch.empty(nbytes, dtype=torch.uint8)
            self.storages[key] = data, numel
        data = self.storages[key][0]
        if view is not None:
            _, offset, length = view
            if any(type(n) is not int or n < 0 for n in (offset, length)):
                raise ValueError('a view has no offset or no length')
            first, last = (
                n * dtype.itemsize for n in (offset, offset + length)
            )
            if last > len(data):
                raise ValueError('a view lies outside of its storage')
            data = data[first:last]
        return Storage(data, dtype)


class _Bounded:
    """A file that takes no memory for more bytes than it has.

    It also ends after so many reads that a checkpoint does not need.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.reads = 0

    def read(self, count: int) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise ValueError('its pickle is too long for a checkpoint')
        data = self.file.read(min(count, self.size - self.file.tell()))
        if len(data) < count:
            raise EOFError('it ends too early')
        return data

    def readline(self) -> bytes:
        return self.file.readline()


def _fill(data: Tensor, source: IO[bytes] | _Bounded) -> None:
    """Read the bytes of a storage in blocks."""
    view = data.numpy()
    for start in range(0, len(view), BLOCK):
        block = view[start : start + BLOCK]
        got = source.read(len(block))
        if len(got) != len(block):
            raise EOFError('it ends too early')
        block[:] = np.frombuffer(got, np.uint8)
    # The checksum of a zip file is compared at the end of a record.
    if isinstance(source, zipfile.ZipExtFile) and source.read(1):
        raise ValueError('a record is longer than claimed')
