"""The transport over TCP passes what the others pass; strangers do not get in."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import pytest

from mpipar.errors import UnavailableError
from mpipar.runtime.clusters import tcp_cluster
from mpipar.runtime.machines.messages import BlockReply, BlockRequest
from mpipar.runtime.transports import tcp_connection, tcp_handshake, tcp_transport
from mpipar.runtime.transports.transport import UnsendableError
from tests.support.conversations import CONVERSATIONS, hear

KEY = tcp_handshake.new_key()


def turn_until(hub, condition, seconds=10.0):
    """Move the hub until something is the case; return what has arrived meanwhile."""
    arrived, until = [], time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        arrived += hub.receive()
        hub.pause(moved=False)
    assert condition()
    return arrived


def join(hub, name, key=KEY):
    """Connect a worker; return its end."""
    found: list[Any] = []

    def visit():
        with suppress(UnavailableError):
            found.append(tcp_cluster.connect("127.0.0.1", hub.port, key, name))
        found.append(None)

    stranger = threading.Thread(target=visit)
    stranger.start()
    turn_until(hub, lambda: found)
    stranger.join(10)
    return found[0]


@contextmanager
def star(workers):
    """A hub and the ends of its workers, by rank."""
    with ExitStack() as stack:
        hub: Any = tcp_transport.HubTransport(KEY)
        hub.port = hub.listen("127.0.0.1")
        stack.callback(hub.close)
        for rank in range(1, workers + 1):
            assert hub.expect(f"w{rank}") == rank
        # The other way round: ranks go by name, not by who comes first.
        spokes = [join(hub, f"w{rank}") for rank in range(workers, 0, -1)][::-1]
        for spoke in spokes:
            stack.callback(spoke.close)
            spoke.size = workers + 1
        yield [hub, *spokes]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("size", [2, 4])
def test_conversation(conversation, size):
    over, verdicts = threading.Event(), {}

    def talk(end):
        verdicts[end.rank] = conversation(end)
        while not over.is_set():  # the hub must pass on what the others still say
            end.receive()
            end.pause(moved=False)

    with star(size - 1) as ends:
        threads = [threading.Thread(target=talk, args=(end,)) for end in ends]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 40
        while len(verdicts) < size and time.monotonic() < until:
            time.sleep(0.005)
        over.set()
        for thread in threads:
            thread.join(10)
    assert verdicts == dict.fromkeys(range(size), True)


def test_broken_connection_is_a_lost_rank_and_no_hindrance():
    with star(2) as (hub, first, second):
        first.send(2, BlockReply(1, 2, {"x": np.zeros(10_000_000, np.uint8)}))  # hangs in between
        hub.send(2, BlockReply(1, 2, {"x": np.zeros(10_000_000, np.uint8)}))
        assert hub.backlog() > 0
        second.close()
        lost = []
        turn_until(hub, lambda: lost.extend(hub.lost()) or lost)
        assert (lost, hub.lost(), hub.backlog()) == ([2], [], 0)
        hub.send(2, BlockRequest(1, 1))
        first.send(2, BlockRequest(1, 1))
        turn_until(first, lambda: not first.backlog() or hub.receive())
        hub.send(1, BlockRequest(1, 7))
        assert hear(first, 1) == [(0, BlockRequest(1, 7))]


def test_worker_notices_that_the_hub_is_gone():
    with star(1) as (hub, spoke):
        hub.close()
        lost = []
        turn_until(spoke, lambda: lost.extend(spoke.lost()) or lost)
        assert lost == [0]
        spoke.send(0, BlockRequest(1, 1))


@pytest.mark.parametrize(
    ("name", "key"),
    [("w2", tcp_handshake.new_key()), ("w9", KEY), ("w1", KEY)],
    ids=["wrong key", "unknown name", "name that has been used"],
)
def test_stranger_is_rejected(name, key):
    with star(1) as (hub, _):
        hub.expect("w2")
        with pytest.raises(UnavailableError, match="turned away"):
            _visit_in_turns(hub, name, key)
        assert hub.rejected == 1
        assert hub.expected == {2}
        assert hub.lost() == []


def _visit_in_turns(hub, name, key):
    over = threading.Event()

    def turn():
        while not over.is_set():
            hub.receive()
            hub.pause(moved=False)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        tcp_cluster.connect("127.0.0.1", hub.port, key, name)
    finally:
        over.set()
        thread.join(10)


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\0" * 1000])
def test_noise_on_the_port_disturbs_nobody(noise, monkeypatch):
    monkeypatch.setattr(tcp_transport, "HANDSHAKE_SECONDS", 0.1)
    with star(1) as (hub, spoke), socket.create_connection(("127.0.0.1", hub.port)) as stranger:
        stranger.sendall(noise)
        turn_until(hub, lambda: hub.rejected)
        spoke.send(0, BlockRequest(1, 3))
        heard = []
        turn_until(hub, lambda: heard.extend(hub.receive()) or heard)
        assert heard == [(1, BlockRequest(1, 3))]


def test_rank_that_does_not_come_can_be_given_up():
    with star(1) as (hub, _):
        hub.expect("late")
        hub.declare_lost(2)
        lost = []
        turn_until(hub, lambda: lost.extend(hub.lost()) or lost)
        assert (lost, hub.expected) == ([2], set())
        assert join(hub, "late") is None


def test_another_version_is_told_apart(monkeypatch):
    monkeypatch.setattr(tcp_handshake, "_VERSION", b"mpipar 0.0.0".ljust(32))
    server = tcp_handshake.ServerHandshake(KEY)
    monkeypatch.setattr(tcp_handshake, "_VERSION", b"mpipar 1.0.0".ljust(32))
    with pytest.raises(UnavailableError, match=r"'mpipar 0\.0\.0'"):
        tcp_handshake.ClientHandshake(KEY, "w1").reply(server.greeting)


def test_nobody_listening_is_said_so():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnavailableError, match="the manager has ended"):
        tcp_cluster.connect("127.0.0.1", port, KEY, "w1")


def test_unpicklable_message_is_refused_before_a_byte_has_left():
    with star(1) as (hub, _):
        with pytest.raises(UnsendableError, match="cannot be pickled"):
            hub.send(1, lambda: None)
        assert hub.backlog() == 0


def test_pause_ends_with_a_message_or_a_wake(monkeypatch):
    with star(1) as (hub, spoke):
        monkeypatch.setattr(tcp_connection, "PAUSE", 20.0)
        for call in (hub.wake, lambda: spoke.send(0, BlockRequest(1, 1))):
            hub.receive()
            other = threading.Timer(0.01, call)
            other.start()
            start = time.monotonic()
            hub.pause(moved=False)
            assert time.monotonic() - start < 10
            other.join()  # the message may be here before the call is over
