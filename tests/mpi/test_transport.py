"""The MPI transport passes what the in-process one passes, and more."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.runtime import mpi
from mpipar.runtime.messages import BlockReply
from mpipar.runtime.transport import UnsendableError
from tests.support.conversations import CONVERSATIONS, hear
from tests.support.ranks import assert_on_all_ranks

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_conversation(world, conversation):
    assert_on_all_ranks(world, conversation(mpi.MpiTransport(world)))


def test_buffers_beyond_one_piece_are_cut_and_joined(world, monkeypatch):
    monkeypatch.setattr(mpi, "PIECE", 1 << 16)
    transport = mpi.MpiTransport(world)
    after = (world.rank + 1) % world.size
    array = np.arange(100_003.0)
    transport.send(after, BlockReply(1, 2, {"x": array}))
    ((_, message),) = hear(transport, 1)
    assert_on_all_ranks(world, np.array_equal(message.arrays["x"], array))


def test_backlog_counts_what_has_not_left(world):
    transport = mpi.MpiTransport(world)
    after = (world.rank + 1) % world.size
    transport.send(after, BlockReply(1, 2, {"x": np.zeros(10_000_000, np.uint8)}))
    large = transport.backlog()
    hear(transport, 1)
    assert_on_all_ranks(world, (large >= 10_000_000, transport.backlog()) == (True, 0))


def test_unpicklable_message_is_refused_before_a_byte_has_left(world):
    transport = mpi.MpiTransport(world)
    try:
        transport.send((world.rank + 1) % world.size, lambda: None)
    except UnsendableError as error:
        said = str(error)
    assert_on_all_ranks(world, "cannot be pickled" in said and transport.backlog() == 0)
