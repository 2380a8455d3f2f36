"""Connections over TCP: messages with an address on them, and how one rank's end waits for them.

Every message ends with where it is to go and whence it comes, so that it can be passed on without
a look into it.
"""

from __future__ import annotations

import selectors
import socket
import struct
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from mpipar.runtime.machines.messages import Stop
from mpipar.runtime.transports.transport import UnsendableError
from mpipar.runtime.wire import codec
from mpipar.runtime.wire.framing import FrameReader, enclosed

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Message, Rank
    from mpipar.runtime.wire.framing import Buffer, Packet

PAUSE = 0.05
"""Seconds of a pause; traffic ends it at once, so this only paces the clocks of the loops."""
AT_ONCE = 64  # reads from one connection in a turn
VIEWS = 64  # buffers handed to the system at a time
ALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
"""A host that has vanished is noticed after about 90 seconds, also by a worker that is idle."""

_ROUTE = struct.Struct("<ii")  # destination, source
_Events = list[tuple[selectors.SelectorKey, int]]


def pack(destination: Rank, source: Rank, message: Message) -> list[Buffer]:
    """Return what is to be written. Raises UnsendableError."""
    try:
        frame, large = codec.encode(message)
    except Exception as error:  # whatever a __reduce__ of a program raises
        name = type(message).__name__
        raise UnsendableError(
            f"{name} for rank {destination} cannot be pickled: {error}"
        ) from error
    return [*enclosed(frame, _ROUTE.pack(destination, source)), *large]


def route(packet: Packet) -> tuple[Rank, Rank]:
    """Return where a message is to go, and whence it comes."""
    frame, _ = packet
    destination, source = _ROUTE.unpack_from(frame, len(frame) - _ROUTE.size)
    return destination, source


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in ALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TcpConnection:
    """A connection, and what is waiting to leave over it."""

    def __init__(self, connection: socket.socket, rank: Rank) -> None:
        _tune(connection)
        connection.setblocking(False)
        self.connection = connection
        self.rank = rank  # at the other end
        self._reader = FrameReader(connection)
        self._waiting: deque[memoryview] = deque()

    def post(self, parts: list[Buffer]) -> int:
        """Take parts to send; return their bytes."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        self._waiting.extend(views)
        return sum(map(len, views))

    def flush(self) -> int:
        """Send what the system takes; return the bytes. Raises OSError."""
        total = 0
        while self._waiting:
            try:
                sent = self.connection.sendmsg(list(islice(self._waiting, VIEWS)))
            except BlockingIOError:
                break
            total += sent
            while sent:
                view = self._waiting.popleft()
                if sent < len(view):
                    self._waiting.appendleft(view[sent:])
                    break
                sent -= len(view)
        return total

    @property
    def is_waiting(self) -> bool:
        """Whether there is something left to send."""
        return bool(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """How much that is."""
        return sum(map(len, self._waiting))

    def take(self) -> tuple[list[Packet], bool]:
        """Return what has wholly arrived, and whether the other end is still there."""
        packets, alive = list[Any](), True
        try:
            for _ in range(AT_ONCE):
                alive = self._reader.receive()
                while (packet := self._reader.next()) is not None:
                    packets.append(packet)
                if not alive:
                    break
        except BlockingIOError:
            pass
        except OSError:
            alive = False
        return packets, alive


class TcpEndpoint:
    """One rank's end: its lines, how it waits for them, and how others wake it."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self._lines: dict[Rank, TcpConnection] = {}
        self._backlog = 0
        self._lost: deque[Rank] = deque()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ringer = socket.socketpair()
        for end in (self._bell, self._ringer):
            end.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._ready: _Events = []  # found by `pause`, for the next `receive`

    # Lines

    def _open(self, connection: socket.socket, rank: Rank) -> None:
        line = self._lines[rank] = TcpConnection(connection, rank)
        self._selector.register(connection, selectors.EVENT_READ, line)

    def _lose(self, line: TcpConnection) -> None:
        if self._shut(line):
            self._lost.append(line.rank)

    def _shut(self, line: TcpConnection) -> bool:
        """Break a connection; False if it is broken already."""
        if self._lines.get(line.rank) is not line:
            return False
        del self._lines[line.rank]
        self._selector.unregister(line.connection)
        line.connection.close()
        self._backlog -= line.waiting_bytes
        return True

    def _post(self, line: TcpConnection, parts: list[Buffer]) -> None:
        self._backlog += line.post(parts)
        self._flush(line)

    def _flush(self, line: TcpConnection) -> None:
        try:
            self._backlog -= line.flush()
        except OSError:
            self._lose(line)
            return
        watched = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.is_waiting else 0)
        if self._selector.get_key(line.connection).events != watched:
            self._selector.modify(line.connection, watched, line)

    def _turn(self) -> list[tuple[TcpConnection, Packet]]:
        """Move what can be moved; return what has arrived."""
        found, self._ready = self._ready or self._selector.select(0), []
        arrived = []
        for key, events in found:
            line = key.data
            if isinstance(line, TcpConnection):
                if events & selectors.EVENT_WRITE and self._lines.get(line.rank) is line:
                    self._flush(line)
                if events & selectors.EVENT_READ and self._lines.get(line.rank) is line:
                    packets, alive = line.take()
                    arrived += [(line, packet) for packet in packets]
                    if not alive:
                        self._lose(line)
            elif key.fileobj is self._bell:
                with suppress(BlockingIOError):
                    self._bell.recv(4096)
            else:
                self._attend(key)
        return arrived

    def _attend(self, key: selectors.SelectorKey) -> None:
        """Take care of a connection that is no line."""
        raise NotImplementedError

    # The transport

    def backlog(self) -> int:
        return self._backlog

    def lost(self) -> list[Rank]:
        return [self._lost.popleft() for _ in range(len(self._lost))]

    def pause(self, *, moved: bool, relaxed: bool = False) -> None:
        del relaxed  # a message ends this pause anyway
        if not moved and not self._ready:
            self._ready = self._selector.select(PAUSE)

    def wake(self) -> None:
        with suppress(OSError):  # full: it is rung already; or closed
            self._ringer.send(b"!")

    def crowd(self, crowding: float) -> None:
        """Pauses end with the next message anyway."""

    def cut_off(self, rank: Rank, reason: str = "") -> None:
        """Break its connection, after a word why."""
        line = self._lines.get(rank)
        if line is None:
            return
        if reason:
            self._post(line, pack(rank, self.rank, Stop(reason)))
        self._shut(line)

    def strays(self) -> list[Rank]:
        """A worker whose connection is broken leaves."""
        return []

    def close(self) -> None:
        """Break all connections."""
        for line in list(self._lines.values()):
            self._lose(line)
        self._selector.close()
        self._bell.close()
        self._ringer.close()
