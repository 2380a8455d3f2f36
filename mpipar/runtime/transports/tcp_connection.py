"""Connections over TCP, and the part that the transports of rank 0 and of a worker have in common.

Every message ends with its route, the ranks of its receiver and its sender. So rank 0 can pass the
message on without unpickling it.
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
READS_PER_TURN = 64  # reads from one connection in a turn
BUFFERS_PER_SEND = 64  # buffers handed to the system at a time
KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
"""A host that has vanished is noticed after about 90 seconds, also by a worker that is idle."""

_ROUTE = struct.Struct("<ii")  # destination, source
_Events = list[tuple[selectors.SelectorKey, int]]


def pack(destination: Rank, source: Rank, message: Message) -> list[Buffer]:
    """Return the bytes of a message with its route. Raises UnsendableError."""
    try:
        frame, large = codec.encode(message)
    except Exception as error:  # whatever a __reduce__ of a program raises
        name = type(message).__name__
        raise UnsendableError(
            f"{name} for rank {destination} cannot be pickled: {error}"
        ) from error
    return [*enclosed(frame, _ROUTE.pack(destination, source)), *large]


def route(packet: Packet) -> tuple[Rank, Rank]:
    """Return the receiver and the sender of a message."""
    frame, _ = packet
    destination, source = _ROUTE.unpack_from(frame, len(frame) - _ROUTE.size)
    return destination, source


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TcpConnection:
    """A connection to one rank, with the bytes that wait to be sent."""

    def __init__(self, sock: socket.socket, rank: Rank) -> None:
        _tune(sock)
        sock.setblocking(False)
        self.socket = sock
        self.rank = rank  # of the other side
        self._reader = FrameReader(sock)
        self._waiting: deque[memoryview] = deque()

    def enqueue(self, parts: list[Buffer]) -> int:
        """Add parts to what waits to be sent; return their bytes."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        self._waiting.extend(views)
        return sum(map(len, views))

    def flush(self) -> int:
        """Send as much as the system accepts; return the bytes. Raises OSError."""
        total = 0
        while self._waiting:
            try:
                sent = self.socket.sendmsg(list(islice(self._waiting, BUFFERS_PER_SEND)))
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
        """Whether something waits to be sent."""
        return bool(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """The bytes that wait to be sent."""
        return sum(map(len, self._waiting))

    def receive(self) -> tuple[list[Packet], bool]:
        """Return the messages that have wholly arrived, and whether the connection is open."""
        packets, alive = list[Any](), True
        try:
            for _ in range(READS_PER_TURN):
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
    """The connections of one rank, and one wait for all of them, which other threads can end."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self._connections: dict[Rank, TcpConnection] = {}
        self._backlog = 0
        self._lost: deque[Rank] = deque()
        self._selector = selectors.DefaultSelector()
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        for end in (self._wakeup_reader, self._wakeup_writer):
            end.setblocking(False)
        self._selector.register(self._wakeup_reader, selectors.EVENT_READ)
        self._ready: _Events = []  # found by `pause`, for the next `receive`

    # Connections

    def _open(self, sock: socket.socket, rank: Rank) -> None:
        connection = self._connections[rank] = TcpConnection(sock, rank)
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _is_open(self, connection: TcpConnection) -> bool:
        return self._connections.get(connection.rank) is connection

    def _lose(self, connection: TcpConnection) -> None:
        if self._disconnect(connection):
            self._lost.append(connection.rank)

    def _disconnect(self, connection: TcpConnection) -> bool:
        """Close a connection; return False if it is closed already."""
        if not self._is_open(connection):
            return False
        del self._connections[connection.rank]
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._backlog -= connection.waiting_bytes
        return True

    def _send_parts(self, connection: TcpConnection, parts: list[Buffer]) -> None:
        self._backlog += connection.enqueue(parts)
        self._flush(connection)

    def _flush(self, connection: TcpConnection) -> None:
        try:
            self._backlog -= connection.flush()
        except OSError:
            self._lose(connection)
            return
        watched = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.is_waiting else 0)
        if self._selector.get_key(connection.socket).events != watched:
            self._selector.modify(connection.socket, watched, connection)

    def _exchange(self) -> list[tuple[TcpConnection, Packet]]:
        """Send and receive what is possible now; return the messages that have arrived."""
        found, self._ready = self._ready or self._selector.select(0), []
        arrived = []
        for key, events in found:
            connection = key.data
            if isinstance(connection, TcpConnection):
                if events & selectors.EVENT_WRITE and self._is_open(connection):
                    self._flush(connection)
                if events & selectors.EVENT_READ and self._is_open(connection):
                    packets, alive = connection.receive()
                    arrived += [(connection, packet) for packet in packets]
                    if not alive:
                        self._lose(connection)
            elif key.fileobj is self._wakeup_reader:
                with suppress(BlockingIOError):
                    self._wakeup_reader.recv(4096)
            else:
                self._on_event(key)
        return arrived

    def _on_event(self, key: selectors.SelectorKey) -> None:
        """Handle an event of a socket that belongs to no rank."""
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
        with suppress(OSError):  # full, so a wakeup is pending; or closed
            self._wakeup_writer.send(b"!")

    def set_crowding(self, crowding: float) -> None:
        """Pauses end with the next message anyway."""

    def cut_off(self, rank: Rank, reason: str = "") -> None:
        """Close the connection to a rank, after a Stop with the reason."""
        connection = self._connections.get(rank)
        if connection is None:
            return
        if reason:
            self._send_parts(connection, pack(rank, self.rank, Stop(reason)))
        self._disconnect(connection)

    def cut_off_ranks(self) -> list[Rank]:
        """None: a worker whose connection is closed ends."""
        return []

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._connections.values()):
            self._lose(connection)
        self._selector.close()
        self._wakeup_reader.close()
        self._wakeup_writer.close()
