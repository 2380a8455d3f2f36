"""Pools of workers that connect over TCP: how rank 0 opens one, and how a worker serves it."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

from mpipar.errors import UnavailableError
from mpipar.runtime.loops import worker_loop
from mpipar.runtime.loops.late_workers import ExternalWorkers
from mpipar.runtime.pool import Pool
from mpipar.runtime.process.environment import tune_process
from mpipar.runtime.transports import tcp_handshake
from mpipar.runtime.transports.tcp_transport import SpokeTransport

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Rank
    from mpipar.runtime.transports.tcp_transport import HubTransport

CACHE_BYTES = 1 << 30
CONNECT_SECONDS = 600.0


def open_pool(hub: HubTransport, *, patience: float) -> Pool:
    """Open a pool of the workers that `hub` expects, now or later. The pool begins without any.

    patience  seconds of silence after which a worker counts as lost
    """
    tune_process()
    workers = ExternalWorkers(lambda: hub.expected | hub.connected, patience)

    def close(silent: list[Rank]) -> None:
        del silent  # a worker ends when its connection is closed
        hub.close()

    pool = Pool(hub, threads=1, cache_bytes=CACHE_BYTES, on_close=close, late_workers=workers)
    pool.description = "workers over TCP"
    return pool


def serve(host: str, port: int, key: bytes, name: str) -> worker_loop.Departure:
    """Connect to a hub and work for it until it says stop. Raises UnavailableError."""
    tune_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for rank 0 to act on
    transport = connect(host, port, key, name)
    departure = worker_loop.serve(transport)
    transport.close()
    return departure


def connect(host: str, port: int, key: bytes, name: str) -> SpokeTransport:
    """Connect to a hub. Raises UnavailableError that says why that is not possible."""
    handshake = tcp_handshake.ClientHandshake(key, name)
    try:
        connection = socket.create_connection((host, port), CONNECT_SECONDS)
    except OSError as error:
        raise UnavailableError(
            f"worker {name} cannot connect to {host}:{port} ({error}): {_advice(error)}"
        ) from error
    rank = None
    try:
        connection.sendall(handshake.reply(_read(connection, tcp_handshake.GREETING)))
        rank = handshake.rank(_read(connection, tcp_handshake.ADMISSION))
    except OSError:
        pass  # closed: so the hub rejects a worker
    finally:
        if rank is None:
            connection.close()
    if rank is None:
        raise UnavailableError(
            f"worker {name} was turned away by {host}:{port}: its name or its key is not known "
            "there; was it started for an earlier run?"
        )
    return SpokeTransport(rank, connection)


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionResetError("the connection was closed")
        data += more
    return data


def _advice(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there, so the manager has ended; that is normal if it was done"
    return (
        "is there a firewall between this host and the manager's, or has that one several network "
        "addresses? Then name the one that workers can reach: Manager(host=...)"
    )
