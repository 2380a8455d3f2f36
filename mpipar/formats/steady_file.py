"""A file that is read by offset over hours: what fails for a moment is tried again.

    fill --> open, compare the head --> preadv --> all bytes are there
                 ^                        | an error, or the end of the file
                 +-- wait, open anew <----+        after the last wait: an error with the offset

Network disks fail for a moment when a server restarts (EIO, ESTALE, ETIMEDOUT), and show a file as
absent or shorter until their caches are renewed.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

from mpipar.errors import InputError, MissingInputError, MpiparError, reason_of
from mpipar.formats.reading import READING_ADVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WAITS: Final = (0.1, 0.4, 1.0, 2.0, 4.0)  # seconds between tries


MOMENTARY: Final = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO})
Found = TypeVar("Found")


def steadily(read: Callable[[], Found]) -> Found:
    """Return what a function returns; call it again if it fails as disks do for a moment.

    raises   its MissingInputError in the end; at once, if the file is not there or not ours to read
    """
    for wait in WAITS:
        try:
            return read()
        except MissingInputError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in MOMENTARY:
                raise
        time.sleep(wait)
    return read()


class _ShorterError(Exception):
    """The file ends before the bytes that are wanted."""


class SteadyFile:
    """A file whose first bytes are known, opened when it is read.

    `fill` and `close` may be called from different threads.
    """

    def __init__(self, path: Path, head: bytes) -> None:
        """`head`: the first bytes, which must still be there whenever the file is opened."""
        self.path = path
        self.retries = 0  # reads that had to be tried again
        self._head = head
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def fill(self, views: Sequence[memoryview], offset: int) -> None:
        """Read the bytes from `offset` on into the views, none of them empty, one after the other.

        raises   MissingInputError if they cannot be read, InputError if they are not there any more
        """
        left = list(views)
        with self._lock:
            error = self._try(left, offset)
            if error is None:
                return
            end = offset + sum(map(len, views))
            for wait in WAITS:
                self._close()
                self.retries += 1
                time.sleep(wait)
                error = self._try(left, end - sum(map(len, left)))
                if error is None:
                    return
            self._close()
            raise self._named(error, end - sum(map(len, left))) from error

    def take_retries(self) -> int:
        """Return how many reads had to be tried again since the last call."""
        taken = self.retries
        self.retries -= taken
        return taken

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._lock:
            self._close()

    def _try(self, left: list[memoryview], offset: int) -> OSError | _ShorterError | None:
        """Read all that is left, unless something fails; then return that."""
        try:
            if self._descriptor is None:
                self._descriptor = self._open()
            while left:  # no view is empty
                offset += _advance(self._descriptor, left, offset)
        except (OSError, _ShorterError) as error:
            return error
        return None

    def _open(self) -> int:
        """Return a descriptor of the file, whose head must still be the one that was checked.

        A header has the statistics of its pixels; the file's time says less, because files are
        touched so that they are not swept.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._compare(os.read(descriptor, len(self._head)))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _compare(self, head: bytes) -> None:
        if len(head) < len(self._head):
            raise _ShorterError
        if head != self._head:
            raise InputError(
                f"{self.path} has changed since it was checked: its header is another one; start "
                "the run again when nothing writes the file any more"
            )

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _named(self, error: OSError | _ShorterError, offset: int) -> MpiparError:
        """Return the error for the user, who has waited already."""
        tried = f"tried {len(WAITS) + 1} times in {sum(WAITS):.1f} s"
        if isinstance(error, OSError):
            reason = reason_of(error, READING_ADVICE)
            return MissingInputError(
                f"{self.path} can no longer be read at byte {offset} ({tried}): {reason}"
            )
        return InputError(
            f"{self.path} became shorter while it was read: byte {offset} is gone ({tried}); does "
            "another program write the file?"
        )


def _advance(descriptor: int, left: list[memoryview], offset: int) -> int:
    """Read what one call gives; take the full views off the list. Returns how many bytes."""
    done = count = os.preadv(descriptor, left, offset)
    if not count:
        raise _ShorterError
    full = 0
    while full < len(left) and done >= len(left[full]):
        done -= len(left[full])
        full += 1
    del left[:full]
    if done:
        left[0] = left[0][done:]
    return count
