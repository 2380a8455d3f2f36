"""What every transport must be able to do, as small programs that each of its ranks runs.

Each returns whether this rank heard what it should. Written for two ranks or more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mpipar.runtime.machines.messages import BlockReply, BlockRequest, Finished, Place
from mpipar.runtime.stage import Task

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Message, Rank
    from mpipar.runtime.transports.transport import Transport

PATIENCE = 30.0


def hear(transport: Transport[Message], count: int) -> list[tuple[Rank, Message]]:
    """Wait for that many messages and for everything sent to have left."""
    heard: list[tuple[Rank, Message]] = []
    until = time.monotonic() + PATIENCE
    while (len(heard) < count or transport.backlog()) and time.monotonic() < until:
        arrived = transport.receive()
        heard += arrived
        transport.pause(moved=bool(arrived))
    return heard


def neighbours_talk(transport: Transport[Message]) -> bool:
    after, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    transport.send(after, BlockRequest(1, transport.rank))
    return hear(transport, 1) == [(before, BlockRequest(1, before))]


def order_of_a_pair_is_kept(transport: Transport[Message]) -> bool:
    """Also when a small message follows a large one."""
    sizes = [10, 3_000_000, 1, 200_000, 5, 1_000_000, 0]
    after, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    for number, size in enumerate(sizes):
        transport.send(after, BlockReply(1, number, {"x": np.full(size, number, np.uint8)}))
    heard = hear(transport, len(sizes))
    right = [
        isinstance(message, BlockReply)
        and source == before
        and message.block == number
        and message.arrays["x"].shape == (size,)
        and bool(np.all(message.arrays["x"] == number))
        for number, (size, (source, message)) in enumerate(zip(sizes, heard, strict=True))
    ]
    return all(right)


def everybody_talks_to_everybody(transport: Transport[Message]) -> bool:
    count = 50
    others = [rank for rank in range(transport.size) if rank != transport.rank]
    for number in range(count):
        for rank in others:
            transport.send(rank, Place(number, (Task(transport.rank, None, "x" * number),)))
    heard = hear(transport, count * len(others))
    for rank in others:
        wanted = [Place(n, (Task(rank, None, "x" * n),)) for n in range(count)]
        if [message for source, message in heard if source == rank] != wanted:
            return False
    return True


def objects_and_views_arrive_whole(transport: Transport[Message]) -> bool:
    after = (transport.rank + 1) % transport.size
    grid = np.arange(90_000.0).reshape(300, 300)
    result = {"view": grid[::2, 5:], "turned": grid.T, "text": "word " * 9999, "none": None}
    transport.send(after, Finished(1, ((7, result),), 0.5))
    ((_, message),) = hear(transport, 1)
    if not isinstance(message, Finished):
        return False
    found = message.results[0][1]
    return (
        np.array_equal(found["view"], result["view"])
        and np.array_equal(found["turned"], grid.T)
        and (found["text"], found["none"]) == (result["text"], None)
    )


CONVERSATIONS = [
    neighbours_talk,
    order_of_a_pair_is_kept,
    everybody_talks_to_everybody,
    objects_and_views_arrive_whole,
]
