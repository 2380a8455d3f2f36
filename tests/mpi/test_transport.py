"""The MPI transport passes what the in-process one passes, and more."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import pytest

from mpipar.runtime.clusters import mpi_cluster
from mpipar.runtime.machines.messages import BlockReply, Bye, Stop
from mpipar.runtime.transports import mpi_requests
from mpipar.runtime.transports.transport import UnsendableError
from tests.support.conversations import CONVERSATIONS, hear
from tests.support.ranks import assert_on_all_ranks

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_conversation(world, conversation):
    assert_on_all_ranks(world, conversation(mpi_cluster.MpiTransport(world)))


def test_buffers_beyond_one_piece_are_cut_and_joined(world, monkeypatch):
    monkeypatch.setattr(mpi_requests, "PIECE", 1 << 16)
    transport = mpi_cluster.MpiTransport(world)
    after = (world.rank + 1) % world.size
    array = np.arange(100_003.0)
    transport.send(after, BlockReply(1, 2, {"x": array}))
    ((_, message),) = hear(transport, 1)
    assert_on_all_ranks(world, np.array_equal(message.arrays["x"], array))


def test_backlog_counts_what_has_not_left(world):
    transport = mpi_cluster.MpiTransport(world)
    after = (world.rank + 1) % world.size
    transport.send(after, BlockReply(1, 2, {"x": np.zeros(10_000_000, np.uint8)}))
    large = transport.backlog()
    hear(transport, 1)
    assert_on_all_ranks(world, (large >= 10_000_000, transport.backlog()) == (True, 0))


def test_unpicklable_message_is_refused_before_a_byte_has_left(world):
    transport = mpi_cluster.MpiTransport(world)
    unsendable: Any = lambda: None  # noqa: E731
    try:
        transport.send((world.rank + 1) % world.size, unsendable)
    except UnsendableError as error:
        said = str(error)
    assert_on_all_ranks(world, "cannot be pickled" in said and transport.backlog() == 0)


@pytest.mark.mpi(min_size=3, max_size=3)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_spawned_rank_talks_to_all_although_linked_to_rank_0_alone(world, conversation):
    """The last rank plays one that was spawned."""
    last = world.size - 1
    small = world.Split(int(world.rank == last))
    if world.rank == last:
        link = MPI.COMM_SELF.Create_intercomm(0, world, 0)
        transport = mpi_cluster.MpiTransport(link, spawned_as=last)
        transport.send(0, Bye())
    else:
        transport = mpi_cluster.MpiTransport(small)
        if world.rank == 0:
            assert transport.add_spawned(MPI.COMM_SELF.Create_intercomm(0, world, last)) == last
            transport.send(last, Bye())  # goes nowhere: it has not said a word
            assert hear(transport, 1) == [(last, Bye())]
        transport.size = world.size
    world.Barrier()
    fine = conversation(transport)
    everybody = world.Ibarrier()
    while not everybody.Test():  # rank 0 passes on what the others say
        transport.receive()
    assert_on_all_ranks(world, fine and transport.rank == world.rank)


def test_rank_that_is_cut_off_is_told_so_and_heard_no_more(world):
    transport = mpi_cluster.MpiTransport(world)
    if world.rank == 0:
        transport.cut_off(1, "silent for long")
        transport.send(1, BlockReply(1, 2, {"x": np.zeros(10_000_000, np.uint8)}))
        fine = transport.backlog() == 0 and transport.cut_off_ranks() == [1]
    elif world.rank == 1:
        fine = hear(transport, 1) == [(0, Stop("silent for long"))]
        transport.send(0, BlockReply(1, 2, {"x": np.zeros(10_000_000, np.uint8)}))
        transport.send(0, Bye())
        hear(transport, 0)
    else:
        fine = True
    heard, everybody = list[object](), world.Ibarrier()
    while not everybody.Test() or (world.rank == 0 and transport.cut_off_ranks()):
        heard += transport.receive()
    assert_on_all_ranks(world, fine and not heard)
