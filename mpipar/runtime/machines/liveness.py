"""Liveness: which ranks have been silent for too long, and what is done about it.

    WorkerLiveness   on rank 0: a worker that is silent for one patience is cut off
    MasterLiveness   on a worker: if rank 0 is silent for ORPHAN_PATIENCES, the worker leaves

During a run each side sends often enough, a Beat if there is nothing else to send. Time comes in as
the number of seconds that have passed; nothing here looks at a clock. A step of time longer than
LONGEST_STEP means that this process itself was stopped: the rest of it is no silence of others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpipar.runtime.machines.report_interval import beat_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mpipar.runtime.machines.messages import Hello, Rank

LONGEST_STEP = 1.0
"""So many seconds of one step of time count, at most, as silence of other ranks."""
BEATS_PER_PATIENCE = 4
LOOKS_PER_PATIENCE = 20
"""How often rank 0 looks for silent workers; with many workers each look takes a while."""
ORPHAN_PATIENCES = 10
"""In a run rank 0 is heard four times per patience, unless it is very busy, dead, or cut off."""


@dataclass(frozen=True)
class LostWorker:
    """A worker without which the job goes on: it is dead, or, with a reason, to be cut off."""

    rank: Rank
    hello: Hello | None  # None: the worker died before its Hello
    tasks: int  # how many tasks others run again
    left: int  # how many workers are left
    reason: str = ""  # why a worker that may still live is cut off; empty: the worker is dead

    def __str__(self) -> str:
        name = name_of(self.rank, self.hello)
        if not self.left:
            why = f" ({self.reason})" if self.reason else ""
            return f"{name} is lost{why}, and no worker is left"
        again = {0: "no task is", 1: "1 task is"}.get(self.tasks, f"{self.tasks} tasks are")
        why = f": {self.reason}" if self.reason else ""
        return f"{name} is lost{why}; {again} run again by the {self.left} left"


@dataclass(frozen=True, slots=True)
class Leave:
    """A worker's decision to end, because it seems to be cut off from rank 0."""

    reason: str


def name_of(rank: Rank, hello: Hello | None) -> str:
    """Return a worker's rank, host and process, for a reader."""
    where = "" if hello is None else f" on {hello.host} (process {hello.process})"
    return f"rank {rank}{where}"


def who_leaves(rank: Rank, other: Rank, hosts: Mapping[Rank, str]) -> Rank:
    """Return the one of two workers to cut off when they cannot reach each other.

    This is the worker on the host with fewer workers, so that of two hosts it is always the same.

    hosts   the host of each worker
    """
    count = Counter(hosts.values())
    first = {hosts[each]: each for each in sorted(hosts, reverse=True)}
    return max(rank, other, key=lambda r: (-count[hosts[r]], first[hosts[r]], r))


class WorkerLiveness:
    """When rank 0 last heard each worker, and when rank 0 last sent a Beat to all workers."""

    def __init__(self, ranks: Iterable[Rank], patience: float) -> None:
        """`patience`: seconds that a worker may be silent."""
        self._patience = patience
        self._now = 0.0  # seconds of all runs so far
        self._heard = dict.fromkeys(ranks, 0.0)
        self._next_look = 0.0
        self._next_beat = patience / BEATS_PER_PATIENCE

    def begin(self) -> None:
        """A run begins: the silence before it says nothing."""
        self._heard = dict.fromkeys(self._heard, self._now)

    def heard(self, rank: Rank) -> None:
        """A message has come from a worker, perhaps a new one."""
        self._heard[rank] = self._now

    def lost(self, rank: Rank) -> None:
        """A worker is lost."""
        del self._heard[rank]

    def tick(self, seconds: float) -> dict[Rank, float]:
        """Let time pass in a run; return the workers that are silent for too long, with seconds."""
        self._now += min(seconds, LONGEST_STEP)
        if self._now < self._next_look:
            return {}
        self._next_look = self._now + self._patience / LOOKS_PER_PATIENCE
        bound = self._now - self._patience
        return {rank: self._now - heard for rank, heard in self._heard.items() if heard < bound}

    def late(self) -> int:
        """Return how many workers have been silent for half a patience. Any thread may ask."""
        bound = self._now - self._patience / 2
        return sum(heard < bound for heard in tuple(self._heard.values()))

    def beat_is_due(self) -> bool:
        """Return whether rank 0 is to send a Beat to all workers now; True once for each Beat."""
        if self._now < self._next_beat:
            return False
        self._next_beat = self._now + self._patience / BEATS_PER_PATIENCE
        return True


class MasterLiveness:
    """When a worker last heard rank 0, and when it last sent something to rank 0."""

    def __init__(self, ranks: int, patience: float) -> None:
        """`ranks`: how many there are; `patience`: that of rank 0, in seconds."""
        self._beat_seconds = min(beat_seconds(ranks), patience / BEATS_PER_PATIENCE)
        self._bound = ORPHAN_PATIENCES * patience
        self._unheard = 0.0  # seconds since a message of rank 0
        self._unsent = 0.0  # seconds since a message to rank 0

    def heard(self) -> None:
        """A message has come from rank 0."""
        self._unheard = 0.0

    def sent(self) -> None:
        """This worker sends a message to rank 0."""
        self._unsent = 0.0

    def tick(self, seconds: float) -> Leave | None:
        """Let time pass in a run; return Leave if rank 0 has been silent for too long."""
        self._unsent += seconds
        self._unheard += min(seconds, LONGEST_STEP)
        if self._unheard <= self._bound:
            return None
        return Leave(f"nothing was heard of rank 0 for {self._unheard:.0f} s")

    @property
    def seconds_to_beat(self) -> float:
        """After how many seconds a Beat is due; 0: now."""
        return max(0.0, self._beat_seconds - self._unsent)
