"""Durable writes: a file is whole under its final name, or that name is as it was before.

    temporary name -> write -> fsync file -> link (new name) or rename (replace) -> fsync folder

A final name is never opened for writing. link() publishes a name that is new; rename() replaces
what was there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.errors import DiskFullError, StoreError, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some network file systems
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _always() -> None:
    """Let anybody write."""


def is_disk_full(error: OSError) -> bool:
    """Whether space or quota is at fault."""
    return error.errno in _FULL


@contextlib.contextmanager
def named_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn the system's errors into DiskFullError or StoreError, with path and bytes needed."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path, needed, error) from error
        raise StoreError(f"{path}: cannot be written: {reason_of(error)}") from error


@contextlib.contextmanager
def named_read_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors while reading below `path` into StoreError."""
    try:
        yield
    except OSError as error:
        raise not_readable(Path(error.filename or path), error) from error


def not_readable(path: Path, error: OSError) -> StoreError:
    """Return the error to raise when the system does not let `path` be read."""
    return StoreError(f"{path}: cannot be read: {reason_of(error)}")


def disk_full(path: Path, needed: int, error: OSError) -> DiskFullError:
    """Return the error to raise when `path` could not be written for lack of space."""
    free = "unknown"
    with contextlib.suppress(OSError):
        free = str(shutil.disk_usage(path if path.is_dir() else path.parent).free)
    reason = os.strerror(error.errno) if error.errno else str(error)
    need = f"{needed} bytes were needed and {free}" if needed else f"{free} bytes"
    return DiskFullError(
        f"{path}: {reason}: {need} are free on that disk (a quota may allow less); "
        "the state before stands; make space, then resume"
    )


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`: a short write is legal, and is how a filling disk first shows."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make a file's bytes durable, also those that another library wrote."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_temporary(temporary: Path, data: bytes) -> None:
    """Write a file under its temporary name; on failure no file is left."""
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        discard(temporary)
        raise


def publish(temporary: Path, final: Path, *, verify: Callable[[], None] = _always) -> None:
    """Give a finished, synced file its final name; FileExistsError if that name is not new.

    verify   raises if this process may no longer write; called directly before the link
    """
    try:
        verify()
        _link_once(temporary, final)
    finally:
        discard(temporary)
    sync_folder(final.parent)


def _link_once(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)
    except FileExistsError:
        # over NFS a repeated request can report EEXIST for a link that succeeded: the count tells
        if temporary.stat().st_nlink != 2:  # noqa: PLR2004 - the temporary and the final name
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # a file system without hard links: take the name by O_EXCL, then put the file there
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        temporary.replace(final)


def replace(
    temporary: Path, final: Path, *, sync: bool = True, verify: Callable[[], None] = _always
) -> None:
    """Put a finished file in the place of an older one; readers see one of the two, whole.

    sync     whether the rename is durable on return, and not only whole
    verify   raises if this process may no longer write; called directly before the rename
    """
    move(temporary, final, verify=verify)
    if sync:
        sync_folder(final.parent)


def move(temporary: Path, final: Path, *, verify: Callable[[], None]) -> None:
    """As `replace`, but durable only when the folder has been synced: for many files at once."""
    try:
        verify()
        temporary.replace(final)
    except BaseException:
        discard(temporary)
        raise


def discard(path: Path) -> None:
    """Remove a file that nothing refers to; if it cannot be removed, it stays."""
    with contextlib.suppress(OSError):
        path.unlink()
