"""The transport over TCP: workers that any command has started connect back to rank 0, the hub.

    worker 1 --- hub (rank 0) --- worker 2          worker 1 -> worker 2 goes through the hub

For jobs without MPI: child processes, jobs of a batch system. Workers come when they can, and a
connection that breaks is a lost rank.
"""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from mpipar.runtime.machines.messages import MASTER
from mpipar.runtime.transports import tcp_handshake
from mpipar.runtime.transports.tcp_connection import TcpEndpoint, pack, route
from mpipar.runtime.wire.framing import LENGTH, unpack

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Message, Rank, ToMaster, ToWorker
    from mpipar.runtime.wire.framing import Buffer

GREETING_SECONDS = 10.0
"""A connection that has not shown by then who it is, is closed."""
SPARE_FILES = 256  # open files besides connections


def _make_room(files: int) -> None:
    """Let this process have so many open files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        most = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class HubTransport(TcpEndpoint):
    """Rank 0's end. Used by one thread, but for `listen`, `expect`, `give_up` and `wake`."""

    def __init__(self, key: bytes) -> None:
        super().__init__(MASTER)
        self.size = 1
        self.heard: dict[Rank, float] = {}  # when (time.time()) a rank last said something
        self.turned_away = 0  # connections of strangers
        self._key = key
        self._listeners: list[socket.socket] = []
        self._doors: dict[socket.socket, tuple[tcp_handshake.ServerHandshake, float]] = {}
        self._expected: dict[str, Rank] = {}
        self._given_up: deque[Rank] = deque()

    def listen(self, host: str) -> int:
        """Listen on a free port of the interface `host` ("" is all); return the port."""
        listener = socket.create_server((host, 0), backlog=128)
        listener.setblocking(False)
        self._listeners.append(listener)
        self._selector.register(listener, selectors.EVENT_READ)
        self.wake()
        return int(listener.getsockname()[1])

    def expect(self, name: str) -> Rank:
        """A worker of this name may connect, once; return its rank."""
        rank = self.size
        self._expected[name] = rank
        self.size += 1
        _make_room(self.size + SPARE_FILES)
        return rank

    @property
    def absent(self) -> set[Rank]:
        """Ranks that are expected and have not come."""
        return set(self._expected.values())

    @property
    def is_deserted(self) -> bool:
        """Whether no rank is connected, and none expected."""
        return not (self._lines or self._expected)

    @property
    def present(self) -> set[Rank]:
        """Ranks that are connected."""
        return set(self._lines)

    def give_up(self, rank: Rank) -> None:
        """Count a rank as lost, whether it has come or not."""
        for name, other in list(self._expected.items()):
            if other == rank:
                self._expected.pop(name, None)
        self._given_up.append(rank)
        self.wake()

    def send(self, rank: Rank, message: Message) -> None:
        parts = pack(rank, MASTER, message)
        line = self._lines.get(rank)
        if line is not None:
            self._post(line, parts)

    def receive(self) -> list[tuple[Rank, ToMaster]]:
        messages = []
        for line, packet in self._turn():
            self.heard[line.rank] = time.time()
            destination, _ = route(packet)
            if destination == MASTER:
                messages.append((line.rank, unpack(packet)))
            elif destination in self._lines:
                frame, large = packet
                head = LENGTH.pack(len(frame))
                parts: list[Buffer] = [head, frame, *(array.data for array in large)]
                self._post(self._lines[destination], parts)
        self._forsake()
        return messages

    def _forsake(self) -> None:
        """Act on `give_up`, and on visitors who do not say who they are."""
        while self._given_up:
            rank = self._given_up.popleft()
            if rank in self._lines:
                self._lose(self._lines[rank])
            else:
                self._lost.append(rank)
        now = time.monotonic()
        for visitor, (_, until) in list(self._doors.items()):
            if now > until:
                self._turn_away(visitor)

    # Visitors

    def _attend(self, key: selectors.SelectorKey) -> None:
        found = key.fileobj
        assert isinstance(found, socket.socket)
        if found in self._doors:
            self._hear(found)
        elif found in self._listeners:
            with suppress(BlockingIOError, ConnectionError):  # it has gone again
                self._greet(found.accept()[0])

    def _greet(self, visitor: socket.socket) -> None:
        door = tcp_handshake.ServerHandshake(self._key)
        visitor.setblocking(False)
        try:
            visitor.send(door.salute)  # what is so short goes at once
        except OSError:  # it has gone again
            visitor.close()
            return
        self._doors[visitor] = door, time.monotonic() + GREETING_SECONDS
        self._selector.register(visitor, selectors.EVENT_READ)

    def _hear(self, visitor: socket.socket) -> None:
        door, _ = self._doors[visitor]
        try:
            data = visitor.recv(door.wanted)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        door.take(data)
        if door.wanted and data:
            return
        name = door.judge() if data else None
        rank = None if name is None else self._expected.get(name)
        if name is None or rank is None:
            self._turn_away(visitor)
            return
        del self._doors[visitor]
        self._selector.unregister(visitor)
        self.heard[rank] = time.time()
        self._open(visitor, rank)
        self._expected.pop(name, None)
        self._post(self._lines[rank], [bytearray(door.verdict(rank))])

    def _turn_away(self, visitor: socket.socket) -> None:
        self.turned_away += 1
        del self._doors[visitor]
        self._selector.unregister(visitor)
        visitor.close()

    def close(self) -> None:
        for visitor in list(self._doors):
            self._turn_away(visitor)
        for listener in self._listeners:
            listener.close()
        super().close()


class SpokeTransport(TcpEndpoint):
    """A worker's end. Once the connection breaks, rank 0 is lost."""

    size = 2  # as far as a worker can know; no worker asks

    def __init__(self, rank: Rank, connection: socket.socket) -> None:
        super().__init__(rank)
        self._open(connection, MASTER)

    def send(self, rank: Rank, message: Message) -> None:
        parts = pack(rank, self.rank, message)
        line = self._lines.get(MASTER)
        if line is not None:
            self._post(line, parts)

    def receive(self) -> list[tuple[Rank, ToWorker]]:
        return [(route(packet)[1], unpack(packet)) for _, packet in self._turn()]
