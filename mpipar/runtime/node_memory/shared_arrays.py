"""Arrays that the ranks of one host share: each large array lies once in memory, read-only.

    SharedArrays.publish(values)   arrays --> a sealed file of memory, its descriptor kept open
                .handles           values with an ArrayHandle for each large array, to be sent to
                                   ranks of the host
    SharedArrays.attach(handles)   /proc/PROCESS/fd/DESCRIPTOR --> the same memory, mapped

The file (memfd_create) has no name anywhere, so there is nothing to clean up after a kill -9, and
no small /dev/shm limits it: the kernel frees it with the last descriptor and the last mapping. A
process that attaches keeps a descriptor of its own, and can hand the memory on even if the process
that published it is dead.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.system import boot_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LARGE = 1 << 20
"""Bytes from which an array is published; smaller ones are as soon sent."""
ALIGNMENT = 64
TOKEN_BYTES = 16
PIECE = 1 << 30  # bytes of one write; the kernel takes less than 2 GiB at once


class UnmappableError(Exception):
    """Memory that another process has published cannot be mapped here."""


@dataclass(frozen=True, slots=True)
class ArrayHandle:
    """Where a published array lies. Stands for it in messages between ranks of one host."""

    process: int
    descriptor: int
    inode: int
    size: int  # of the file
    token: bytes  # its first bytes
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ArraySlot:
    """Where in the file an array lies."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.dtype.itemsize * prod(self.shape)


def _has_memory_files() -> bool:
    return sys.platform == "linux" and hasattr(os, "memfd_create")


def memory_name() -> str:
    """Return what processes that can map each other's memory have in common; empty if none can."""
    boot = boot_id()
    if not boot or not _has_memory_files():
        return ""
    try:
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class SharedArrays:
    """The large arrays of one mapping of values, in memory that this process holds open."""

    def __init__(self, descriptor: int, token: bytes, values: Mapping[str, Any]) -> None:
        """Map a file; `values` has an ArraySlot for each array in it. Use `publish`, `attach`."""
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        slots = [value for value in values.values() if isinstance(value, ArraySlot)]
        memory = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
        if memory[:TOKEN_BYTES] != token or any(slot.end > len(memory) for slot in slots):
            raise UnmappableError("another file")

        def array(slot: ArraySlot) -> NDArray[Any]:
            found: NDArray[Any] = np.ndarray(slot.shape, slot.dtype, memory, slot.offset)
            return found

        def handle(slot: ArraySlot) -> ArrayHandle:
            where = os.getpid(), descriptor, status.st_ino, status.st_size, token
            return ArrayHandle(*where, slot.offset, slot.dtype, slot.shape)

        self.values = {k: array(v) if isinstance(v, ArraySlot) else v for k, v in values.items()}
        """As the stage sees them. The arrays keep the memory alive even after `close`."""
        self.handles = {k: handle(v) if isinstance(v, ArraySlot) else v for k, v in values.items()}
        """The same for another process of this host, as long as this arrays is open."""
        _OPEN[id(self.values)] = self

    def close(self) -> None:
        """Let no other process attach from now on."""
        _OPEN.pop(id(self.values), None)
        self.values, self.handles = {}, {}
        os.close(self._descriptor)

    @classmethod
    def publish(cls, values: Mapping[str, Any]) -> SharedArrays | None:
        """Copy large arrays into memory that other processes can attach.

        Returns None if no array is large, or where there is no such memory.
        """
        slots = _slots(values)
        if not slots or not _has_memory_files():
            return None
        token = secrets.token_bytes(TOKEN_BYTES)
        try:
            file = os.memfd_create("mpipar", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                _write(file, memoryview(token), 0)
                for name, slot in slots.items():
                    _write(file, memoryview(values[name].reshape(-1).view(np.uint8)), slot.offset)
                seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
                # Opened anew: a sealed file can be mapped only through a read-only descriptor.
                return cls._open(f"/proc/self/fd/{file}", token, {**values, **slots})
            finally:
                os.close(file)
        except (OSError, UnmappableError):
            return None

    @classmethod
    def attach(cls, values: Mapping[str, Any]) -> SharedArrays:
        """Map what another process has published; `values` are its `handles`.

        Raises UnmappableError.
        """
        handles = {name: value for name, value in values.items() if isinstance(value, ArrayHandle)}
        handle = next(iter(handles.values()))
        path = f"/proc/{handle.process}/fd/{handle.descriptor}"
        slots = {name: ArraySlot(t.offset, t.dtype, t.shape) for name, t in handles.items()}
        try:
            # Checked before it is opened: the descriptor may be another file by now, or a pipe.
            status = Path(path).stat()
            if (status.st_ino, status.st_size) != (handle.inode, handle.size):
                raise UnmappableError(f"{path} is another file")
            if not stat.S_ISREG(status.st_mode):
                raise UnmappableError(f"{path} is no file")
            return cls._open(path, handle.token, {**values, **slots})
        except (OSError, ValueError) as error:
            raise UnmappableError(f"{path}: {error}") from error

    @classmethod
    def _open(cls, path: str, token: bytes, values: Mapping[str, Any]) -> SharedArrays:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return cls(descriptor, token, values)
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise


_OPEN: dict[int, SharedArrays] = {}
"""The shared arrays that are open, by the identity of their values."""


def values_for_child(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return values as a child process gets them: with handles, if they are shared. Thread-safe."""
    shared = _OPEN.get(id(values))
    handles = {} if shared is None else shared.handles
    return handles or values


def has_handles(values: Mapping[str, Any]) -> bool:
    """Whether some of the values are handles of arrays in the memory of another process."""
    return any(isinstance(value, ArrayHandle) for value in values.values())


def _slots(values: Mapping[str, Any]) -> dict[str, ArraySlot]:
    """Lay out the large arrays in a file; only those that are read-only already."""
    slots: dict[str, ArraySlot] = {}
    offset = ALIGNMENT
    for name, value in values.items():
        if type(value) is np.ndarray and value.nbytes >= LARGE and _is_plain(value):
            slots[name] = ArraySlot(offset, value.dtype, value.shape)
            offset = slots[name].end + -slots[name].end % ALIGNMENT
    return slots


def _is_plain(array: NDArray[Any]) -> bool:
    flags = array.flags
    return flags.c_contiguous and not flags.writeable and not array.dtype.hasobject


def _write(file: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done : done + PIECE], offset + done)
