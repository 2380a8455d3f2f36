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

HANDSHAKE_SECONDS = 10.0
"""A connection that has not proved by then which worker it is, is closed."""
SPARE_FILES = 256  # open files besides connections


def _make_room(files: int) -> None:
    """Let this process have so many open files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        most = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class HubTransport(TcpEndpoint):
    """The transport of rank 0. Thread-safe: `listen`, `expect`, `declare_lost` and `wake` only."""

    def __init__(self, key: bytes) -> None:
        super().__init__(MASTER)
        self.size = 1
        self.last_heard: dict[Rank, float] = {}  # when (time.time()) a message last came
        self.rejected = 0  # connections that failed the handshake
        self._key = key
        self._listeners: list[socket.socket] = []
        self._handshakes: dict[socket.socket, tuple[tcp_handshake.ServerHandshake, float]] = {}
        self._expected: dict[str, Rank] = {}
        self._declared_lost: deque[Rank] = deque()

    def listen(self, host: str) -> int:
        """Listen on a free port of the interface `host` ("" is all); return the port."""
        listener = socket.create_server((host, 0), backlog=128)
        listener.setblocking(False)
        self._listeners.append(listener)
        self._selector.register(listener, selectors.EVENT_READ)
        self.wake()
        return int(listener.getsockname()[1])

    def expect(self, name: str) -> Rank:
        """Let a worker of this name connect, once; return its rank."""
        rank = self.size
        self._expected[name] = rank
        self.size += 1
        _make_room(self.size + SPARE_FILES)
        return rank

    @property
    def expected(self) -> set[Rank]:
        """Ranks that may still connect and have not done so."""
        return set(self._expected.values())

    @property
    def is_deserted(self) -> bool:
        """Whether no rank is connected, and none can still connect."""
        return not (self._connections or self._expected)

    @property
    def connected(self) -> set[Rank]:
        """Ranks that are connected."""
        return set(self._connections)

    def declare_lost(self, rank: Rank) -> None:
        """Count a rank as lost, whether it has connected or not."""
        for name, other in list(self._expected.items()):
            if other == rank:
                self._expected.pop(name, None)
        self._declared_lost.append(rank)
        self.wake()

    def send(self, rank: Rank, message: Message) -> None:
        parts = pack(rank, MASTER, message)
        connection = self._connections.get(rank)
        if connection is not None:
            self._send_parts(connection, parts)

    def receive(self) -> list[tuple[Rank, ToMaster]]:
        messages = []
        for connection, packet in self._exchange():
            self.last_heard[connection.rank] = time.time()
            destination, _ = route(packet)
            if destination == MASTER:
                messages.append((connection.rank, unpack(packet)))
            elif destination in self._connections:
                frame, large = packet
                head = LENGTH.pack(len(frame))
                parts: list[Buffer] = [head, frame, *(array.data for array in large)]
                self._send_parts(self._connections[destination], parts)
        self._drop_lost()
        return messages

    def _drop_lost(self) -> None:
        """Act on `declare_lost`, and reject connections whose handshake takes too long."""
        while self._declared_lost:
            rank = self._declared_lost.popleft()
            if rank in self._connections:
                self._lose(self._connections[rank])
            else:
                self._lost.append(rank)
        now = time.monotonic()
        for peer, (_, until) in list(self._handshakes.items()):
            if now > until:
                self._reject(peer)

    # Connections without a rank yet

    def _on_event(self, key: selectors.SelectorKey) -> None:
        found = key.fileobj
        assert isinstance(found, socket.socket)
        if found in self._handshakes:
            self._continue_handshake(found)
        elif found in self._listeners:
            with suppress(BlockingIOError, ConnectionError):  # it has gone again
                self._accept(found.accept()[0])

    def _accept(self, peer: socket.socket) -> None:
        handshake = tcp_handshake.ServerHandshake(self._key)
        peer.setblocking(False)
        try:
            peer.send(handshake.greeting)  # so few bytes leave at once
        except OSError:  # it has gone again
            peer.close()
            return
        self._handshakes[peer] = handshake, time.monotonic() + HANDSHAKE_SECONDS
        self._selector.register(peer, selectors.EVENT_READ)

    def _continue_handshake(self, peer: socket.socket) -> None:
        handshake, _ = self._handshakes[peer]
        try:
            data = peer.recv(handshake.wanted)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        handshake.take(data)
        if handshake.wanted and data:
            return
        name = handshake.verified_name() if data else None
        rank = None if name is None else self._expected.get(name)
        if name is None or rank is None:
            self._reject(peer)
            return
        del self._handshakes[peer]
        self._selector.unregister(peer)
        self.last_heard[rank] = time.time()
        self._open(peer, rank)
        self._expected.pop(name, None)
        self._send_parts(self._connections[rank], [bytearray(handshake.admission(rank))])

    def _reject(self, peer: socket.socket) -> None:
        self.rejected += 1
        del self._handshakes[peer]
        self._selector.unregister(peer)
        peer.close()

    def close(self) -> None:
        for peer in list(self._handshakes):
            self._reject(peer)
        for listener in self._listeners:
            listener.close()
        super().close()


class SpokeTransport(TcpEndpoint):
    """The transport of a worker. Once the connection breaks, rank 0 is lost."""

    size = 2  # as far as a worker can know; no worker asks

    def __init__(self, rank: Rank, connection: socket.socket) -> None:
        super().__init__(rank)
        self._open(connection, MASTER)

    def send(self, rank: Rank, message: Message) -> None:
        parts = pack(rank, self.rank, message)
        connection = self._connections.get(MASTER)
        if connection is not None:
            self._send_parts(connection, parts)

    def receive(self) -> list[tuple[Rank, ToWorker]]:
        return [(route(packet)[1], unpack(packet)) for _, packet in self._exchange()]
