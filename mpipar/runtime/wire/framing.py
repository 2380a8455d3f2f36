"""Messages over a stream socket: the frames of `codec`, each behind its length.

    length | frame | large buffers, whose sizes the frame tells
    int64

There is no limit on the size of an array, and no copy: the receiver reads it into the memory of
the new array.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mpipar.runtime.wire.codec import Frame, decode, encode, large_sizes

if TYPE_CHECKING:
    import socket

    from numpy.typing import NDArray

LENGTH = struct.Struct("<q")
AT_ONCE = 1 << 17
"""Bytes asked for at a time, where no large buffer is being filled."""

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Packet: TypeAlias = "tuple[bytearray, list[NDArray[np.uint8]]]"
"""The bytes of a message that has arrived; `unpack` returns the message."""


def pack(message: object) -> list[Buffer]:
    """Return the parts of a message that are to be written, in this order."""
    frame, large = encode(message)
    return [*enclosed(frame), *large]


def enclosed(frame: Frame, tail: bytes = b"") -> list[Buffer]:
    """Return the parts to be written for a frame and a tail, with their length in front.

    A small frame becomes one part with both. The frame must not be used any more.
    """
    head = LENGTH.pack(len(frame) + len(tail))
    if not isinstance(frame, bytearray):
        return [head, frame, tail] if tail else [head, frame]
    frame[:0] = head
    frame += tail
    return [frame]


def unpack(packet: Packet) -> Any:
    """Return the message; its arrays lie in the packet's memory. Raises what pickle raises."""
    return decode(*packet)


class FrameReader:
    """Reads packets from a socket, which may be a blocking one or not."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._buffer = bytearray()
        self._position = 0  # of the next byte in the buffer that is not in a packet
        self._frame: bytearray | None = None  # whose large buffers are being read
        self._large: list[NDArray[np.uint8]] = []
        self._holes: list[memoryview] = []  # of `_large`, what has not arrived; last first

    def receive(self) -> bool:
        """Read once; return False if the other side has closed the socket."""
        if not self._holes:
            data = self._link.recv(AT_ONCE)
            self._buffer += data
            return bool(data)
        hole = self._holes[-1]
        count = self._link.recv_into(hole)  # may raise BlockingIOError
        self._holes[-1:] = [hole[count:]] if count < len(hole) else []
        return count > 0

    def next(self) -> Packet | None:
        """Return the next packet that has wholly arrived, or None."""
        if self._frame is None and not self._next_frame():
            return None
        if self._holes:
            return None
        packet = self._frame, self._large
        self._frame = None
        return packet  # type: ignore[return-value]

    def _next_frame(self) -> bool:
        """Take a frame out of the buffer, and what has arrived of its large buffers."""
        buffer, start = self._buffer, self._position + LENGTH.size
        if len(buffer) < start:
            return self._drop_used()
        (length,) = LENGTH.unpack_from(buffer, self._position)
        if len(buffer) < start + length:
            return self._drop_used()
        self._frame = buffer[start : start + length]
        self._position = start + length
        self._large = [np.empty(size, np.uint8) for size in large_sizes(self._frame)]
        self._holes = []
        for array in self._large:
            here = buffer[self._position : self._position + array.size]
            self._position += len(here)
            array[: len(here)] = np.frombuffer(here, np.uint8)
            if len(here) < array.size:
                self._holes.insert(0, array.data[len(here) :])
        return True

    def _drop_used(self) -> bool:
        """Drop the bytes that are in packets already; return False."""
        del self._buffer[: self._position]
        self._position = 0
        return False
