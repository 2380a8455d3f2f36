"""Links between workers that are broken, though all workers reach rank 0: a switch, a firewall.

What a worker awaits of another one may then never come, and nobody is silent towards rank 0:

    Begin, of the parent in the tree     it asks rank 0, which from then on sends it to its host
    a block, of a former victim          the worker asks rank 0 for it
    the answer to a steal                Unreachable: one of the two leaves, for tasks may be lost
    a part of the sum, in either way     rank 0 begins again, with trees within hosts (`master.py`)

This is what is done when it has not come for LONG patiences; after one, rank 0 gives up a worker
that is silent towards itself. Pure.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from mpipar.runtime.machines.messages import (
    MASTER,
    BlockRequest,
    NeedArrays,
    Rank,
    Send,
    Unreachable,
)
from mpipar.runtime.machines.task_deque import StealState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mpipar.runtime.machines.worker import WorkerMachine

LONG = 2.0
"""Patiences that a worker waits for another one."""
LOOKS = 20
"""How often it looks at the clock in that time."""


class PeerWait(NamedTuple):
    """Something that is awaited; `which` tells it from an earlier one of its kind."""

    kind: str
    rank: Rank
    which: tuple[int, ...]


class PeerTimeouts:
    """What one worker awaits of others, and for how long."""

    def __init__(self, patience: float) -> None:
        """`patience` is that of rank 0, in seconds."""
        self._bound = LONG * patience
        self._passed = 0.0
        self._ages: dict[PeerWait, float] = {}

    def pass_time(self, worker: WorkerMachine, seconds: float) -> list[Send]:
        """Time has passed, in which this process was running; return what to send."""
        self._passed += seconds
        if self._passed < self._bound / LOOKS:
            return []
        passed, self._passed = self._passed, 0.0
        before = self._ages
        self._ages = {wait: before.get(wait, -passed) + passed for wait in _awaited(worker)}
        late = [wait for wait, age in self._ages.items() if age > self._bound]
        for wait in late:
            self._ages[wait] = 0.0
        return [_give_up(worker, wait) for wait in late]


def _awaited(worker: WorkerMachine) -> Iterator[PeerWait]:
    run = worker.run
    if run is None:
        return
    if not run.begun:
        yield PeerWait("begin", worker.rank, ())  # the same in every run until one has begun
    if run.deque.thief is StealState.ASKING and run.deque.victim is not None:
        yield PeerWait("steal", run.deque.victim, (run.serial, run.deque.asked))
    for block, rank in worker.fetching.items():
        if rank != MASTER:
            yield PeerWait("block", rank, (block,))


def _give_up(worker: WorkerMachine, wait: PeerWait) -> Send:
    assert worker.run is not None
    if wait.kind == "begin":
        return Send(MASTER, NeedArrays(worker.run.serial, worker.rank))
    if wait.kind == "block":
        (block,) = wait.which
        worker.fetching[block] = MASTER
        return Send(MASTER, BlockRequest(worker.generation, block))
    return Send(MASTER, Unreachable(worker.run.serial, wait.rank))


def who_leaves(rank: Rank, other: Rank, hosts: Mapping[Rank, str]) -> Rank:
    """Return which of two workers that cannot reach each other the job goes on without.

    The one on the host that has fewer workers, so that of two hosts it is always the same one.
    hosts   of all workers
    """
    count = Counter(hosts.values())
    first = {hosts[each]: each for each in sorted(hosts, reverse=True)}
    return max(rank, other, key=lambda r: (-count[hosts[r]], first[hosts[r]], r))
