"""Sealed HDF5 files: written once under a temporary name, published by link(), never touched again.

HDF5 writes through a file object of ours, because HDF5 cannot handle a full disk (after a failed
write, the library can neither close nor forget the file) nor ^C (h5py drops exceptions that are
raised inside its calls to us). So `_NeverRaisingFile` keeps the first error and drops the bytes
that follow, and we raise the error once HDF5 has closed. An interrupt between the lines of that
class may still be lost, with the bytes of that write; so all is read back before it counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np

from mpipar.errors import CorruptStoreError, StoreError
from mpipar.store import durable, schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

_CHUNK_BYTES: Final = 4 << 20
_HASH_BYTES: Final = 1 << 20
_SLAB_BYTES: Final = 16 << 20
_SIGNATURE_MAGIC: Final = b"MPIPARH5"
_END_OF_HDF5: Final = slice(40, 48)  # of a file of the default version: its length
_SIGNATURE_BYTES: Final = len(_SIGNATURE_MAGIC) + 32
_OVERHEAD: Final = 4096  # bytes of HDF5's own per array, roughly


class _NeverRaisingFile(io.RawIOBase):
    """A file for HDF5 that never raises; `error` is the first error, for `_fill` to raise."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._position = 0
        self._end = 0
        self.error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:  # a buffer; typing has no name for it before 3.12
        data = b""
        with self._errors_kept():
            data = os.pread(self._fd, len(buffer), self._position)
            buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size, done = len(view), 0
        with self._errors_kept():
            while done < size and self.error is None:
                done += os.pwrite(self._fd, view[done:], self._position + done)
        self._position += size
        self._end = max(self._end, self._position)
        return size

    def truncate(self, size: int | None = None) -> int:
        end = self._position if size is None else size
        with self._errors_kept():
            if self.error is None:
                os.ftruncate(self._fd, end)
        self._end = end
        return end

    @contextlib.contextmanager
    def _errors_kept(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.error = self.error or error


@dataclass(frozen=True)
class Sealed:
    """Size and sha256 of a finished file."""

    size: int
    sha256: str


def write_hdf5(
    temporary: Path,
    fill: Callable[[h5py.File], None],
    is_whole: Callable[[h5py.File], bool],
    needed: int,
    *,
    signed: bool = False,
) -> Sealed:
    """Write an HDF5 file under a temporary name, durable and hashed; on failure no file is left.

    fill       writes the contents
    is_whole   reads the file back and compares
    needed     bytes, for the error of a full disk
    signed     whether its checksum is added after its end, where HDF5 does not look
    """
    try:
        with durable.named_errors(temporary, needed):
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                _fill(fd, fill)
                if signed:
                    _sign(fd)
                os.fsync(fd)
                sealed = _seal(fd)
            finally:
                os.close(fd)
        _read_back(temporary, is_whole)
    except BaseException:
        durable.discard(temporary)
        raise
    return sealed


def _read_back(temporary: Path, is_whole: Callable[[h5py.File], bool]) -> None:
    try:
        with open_hdf5(temporary) as file:
            whole = is_whole(file)
    except (CorruptStoreError, OSError, KeyError):
        whole = False
    if not whole:
        raise StoreError(f"{temporary}: what was written cannot be read back; try again")


def _fill(fd: int, fill: Callable[[h5py.File], None]) -> None:
    target = _NeverRaisingFile(fd)
    try:
        # the default libver: files of the newer formats need a repair after a kill
        with h5py.File(target, "w") as file:
            fill(file)
    except Exception:
        if target.error is None:
            raise
    if target.error is not None:
        raise target.error


def _seal(fd: int) -> Sealed:
    digest = hashlib.sha256()
    size = 0
    while data := os.pread(fd, _HASH_BYTES, size):
        digest.update(data)
        size += len(data)
    return Sealed(size, digest.hexdigest())


def _sign(fd: int) -> None:
    sealed = _seal(fd)
    end = _SIGNATURE_MAGIC + bytes.fromhex(sealed.sha256)
    while end:
        written = os.pwrite(fd, end, sealed.size)
        end, sealed = end[written:], Sealed(sealed.size + written, sealed.sha256)


def require_signed(path: Path) -> None:
    """Raise CorruptStoreError if a file's own checksum is wrong; files of mpipar 0.1 have none.

    Those end where HDF5 ends: the first block of a file says where that is.
    """
    data = path.read_bytes()
    body, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
    if signature.startswith(_SIGNATURE_MAGIC):
        if hashlib.sha256(body).digest() != signature[len(_SIGNATURE_MAGIC) :]:
            raise CorruptStoreError(f"{path}: is damaged: its checksum is wrong")
    elif int.from_bytes(data[_END_OF_HDF5], "little") != len(data):
        raise CorruptStoreError(f"{path}: is damaged: it is not as long as it says")


def seal_of(path: Path) -> Sealed:
    """Return size and sha256 of a file as it is now."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return _seal(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class SegmentContents:
    """What a segment holds: arrays, attributes of the commit, and attributes of single arrays."""

    arrays: Mapping[str, NDArray[Any]]
    attributes: dict[str, Any]
    described: Mapping[str, Mapping[str, Any]]


def bytes_needed(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Return about how many bytes a segment of these arrays has."""
    return sum(array.nbytes + _OVERHEAD for array in arrays.values()) + _OVERHEAD


def write_segment(temporary: Path, contents: SegmentContents) -> Sealed:
    """Write the arrays of a commit as one file; its attributes are copied there for people."""
    arrays = contents.arrays

    def fill(file: h5py.File) -> None:
        for name, value in contents.attributes.items():
            put_attribute(file, name, value)
        for name, array in arrays.items():
            dataset = _put(file, name, np.asarray(array))
            for key, value in contents.described.get(name, {}).items():
                dataset.attrs[key] = value

    def is_whole(file: h5py.File) -> bool:
        return all(_is_kept(file[name], np.asarray(array)) for name, array in arrays.items())

    return write_hdf5(temporary, fill, is_whole, bytes_needed(arrays))


def put_attribute(group: h5py.Group, name: str, value: object) -> None:
    """Store a plain value as it is, others as JSON; long ones as an array, for HDF5's limit."""
    if isinstance(value, str | bool | int | float) and not _is_long(value):
        group.attrs[name] = value
    else:
        text = schema.encode(value)
        if len(text) < _OVERHEAD:
            group.attrs[name] = text.decode()
        else:
            group.require_group("long_attributes")[name] = np.frombuffer(text, np.uint8)


def attributes_of(path: Path) -> dict[str, Any]:
    """Return what `put_attribute` has stored at the root of a file.

    raises   CorruptStoreError
    """
    with open_hdf5(path) as file:
        try:
            values = {name: _from_attribute(value) for name, value in file.attrs.items()}
            for name, data in file.get("long_attributes", {}).items():
                values[name] = json.loads(data[...].tobytes())
        except Exception as error:  # h5py raises nearly any type for a damaged file
            raise CorruptStoreError(f"{path}: attributes are damaged: {error}") from error
    return values


def _from_attribute(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str) and (value[:1] in {"{", "["} or value == "null"):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def _is_long(value: str | float) -> bool:
    if isinstance(value, str):
        return len(value) >= _OVERHEAD or "\0" in value
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _put(file: h5py.File, name: str, array: NDArray[Any]) -> h5py.Dataset:
    if array.size == 0 or array.ndim == 0:  # cannot be chunked, so has no checksum of its own
        return file.create_dataset(name, data=array, dtype=array.dtype)
    filters: dict[str, Any] = {"fletcher32": True}
    if array.dtype.kind == "S":  # text is padded to the longest one
        filters |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    return file.create_dataset(
        name, data=array, dtype=array.dtype, chunks=_chunks(array), **filters
    )


def _is_kept(dataset: h5py.Dataset, array: NDArray[Any]) -> bool:
    """Whether a dataset has the array's bits; read in slabs, so no large array is held twice."""
    if (dataset.shape, dataset.dtype) != (array.shape, array.dtype):
        return False
    if array.size == 0 or array.ndim == 0:
        return bool(_read(dataset).tobytes() == array.tobytes())
    rows = max(1, _SLAB_BYTES * len(array) // array.nbytes)
    return all(
        dataset[start : start + rows].tobytes() == array[start : start + rows].tobytes()
        for start in range(0, len(array), rows)
    )


def _read(dataset: h5py.Dataset) -> NDArray[Any]:
    array: NDArray[Any] = np.empty(dataset.shape, dataset.dtype)
    if array.size:
        dataset.read_direct(array)  # no conversion: NaNs keep their bits
    return array


def _chunks(array: NDArray[Any]) -> tuple[int, ...]:
    """Return a chunk shape: whole trailing axes while they fit, then a part of the next."""
    chunk = [1] * array.ndim
    room = max(1, _CHUNK_BYTES // array.dtype.itemsize)
    for axis in reversed(range(array.ndim)):
        chunk[axis] = max(1, min(array.shape[axis], room))
        room //= chunk[axis]
    return tuple(chunk)


def open_hdf5(path: Path) -> h5py.File:
    """Open a sealed file for reading, without a lock: it never changes, and locks may fail."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        # a user of `mpipar.open` may have it open with locks, and HDF5 opens a file in one way only
        with contextlib.suppress(OSError):
            return h5py.File(path, "r")
        raise CorruptStoreError(f"{path}: cannot be opened: {error}; see `mpipar check`") from error


class StoredArrays(Mapping[str, "NDArray[Any]"]):
    """The arrays of a sealed file by name; each is read when asked for, and not kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_hdf5(path) as file:
            try:
                self._names = tuple(name for name in file if isinstance(file[name], h5py.Dataset))
            except Exception as error:  # h5py raises nearly any type for a damaged file
                raise CorruptStoreError(f"{path}: is damaged: {error}") from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        with open_hdf5(self._path) as file:
            try:
                return _read(file[name])
            except Exception as error:  # h5py raises nearly any type for a damaged file
                text = f"{self._path}: array {name!r} is damaged: {error}"
                raise CorruptStoreError(text) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
