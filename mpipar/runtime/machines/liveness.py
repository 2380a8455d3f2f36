"""Who is still there: for how long a rank has been silent, and what follows from it.

    rank 0     gives up a worker that has said nothing for one patience        WorkerLiveness
    a worker   leaves when rank 0 has said nothing for ORPHAN_PATIENCES        MasterLiveness

During a run each side speaks often enough, with a Beat if there is nothing else to say. Time comes
in as the seconds that have passed, and nothing here looks at a clock. A step of time that is longer
than LONGEST_STEP means that this very process was stopped, which says nothing about other ranks.
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
"""Seconds of one step of time that count as silence of others."""
BEATS_PER_PATIENCE = 4
LOOKS_PER_PATIENCE = 20
"""How often rank 0 looks for silent workers: with many workers that costs something."""
ORPHAN_PATIENCES = 10
"""In a run rank 0 is heard four times per patience, unless it is very busy, gone, or cut off."""


@dataclass(frozen=True)
class LostWorker:
    """A worker without which the job goes on: dead, or, if there is a reason, to be cut off."""

    rank: Rank
    hello: Hello | None  # None: it died before it had greeted
    tasks: int  # that others run again
    left: int  # workers
    reason: str = ""  # why a worker that may still live is given up; empty: it is dead

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
    """A worker's own decision to leave a job that it seems to be cut off from."""

    reason: str


def name_of(rank: Rank, hello: Hello | None) -> str:
    """Return a worker's rank, host and process, for a reader."""
    where = "" if hello is None else f" on {hello.host} (process {hello.process})"
    return f"rank {rank}{where}"


def who_leaves(rank: Rank, other: Rank, hosts: Mapping[Rank, str]) -> Rank:
    """Return which of two workers that cannot reach each other the job goes on without.

    The one on the host that has fewer workers, so that of two hosts it is always the same one.
    hosts   of all workers
    """
    count = Counter(hosts.values())
    first = {hosts[each]: each for each in sorted(hosts, reverse=True)}
    return max(rank, other, key=lambda r: (-count[hosts[r]], first[hosts[r]], r))


class WorkerLiveness:
    """Rank 0's view: when each worker was last heard, and when the workers last heard of rank 0."""

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
        """A worker, perhaps a new one, has said something."""
        self._heard[rank] = self._now

    def lost(self, rank: Rank) -> None:
        """A worker is lost."""
        del self._heard[rank]

    def tick(self, seconds: float) -> dict[Rank, float]:
        """Time has passed in a run; return who is silent for too long, and for how many seconds."""
        self._now += min(seconds, LONGEST_STEP)
        if self._now < self._next_look:
            return {}
        self._next_look = self._now + self._patience / LOOKS_PER_PATIENCE
        bound = self._now - self._patience
        return {rank: self._now - heard for rank, heard in self._heard.items() if heard < bound}

    def beat_is_due(self) -> bool:
        """Whether the workers are to hear of rank 0 now; True once, then not for a while."""
        if self._now < self._next_beat:
            return False
        self._next_beat = self._now + self._patience / BEATS_PER_PATIENCE
        return True


class MasterLiveness:
    """A worker's view: for how long rank 0 has said nothing, and for how long nobody told it."""

    def __init__(self, ranks: int, patience: float) -> None:
        """`ranks`: how many there are; `patience`: that of rank 0, in seconds."""
        self._beat_seconds = min(beat_seconds(ranks), patience / BEATS_PER_PATIENCE)
        self._bound = ORPHAN_PATIENCES * patience
        self._unheard = 0.0  # seconds in which rank 0 said nothing
        self._unsaid = 0.0  # seconds in which this worker said nothing to rank 0

    def heard(self) -> None:
        """Rank 0 has said something."""
        self._unheard = 0.0

    def spoke(self) -> None:
        """This worker says something to rank 0."""
        self._unsaid = 0.0

    def tick(self, seconds: float) -> Leave | None:
        """Time has passed in a run; return a reason to leave, if there is one now."""
        self._unsaid += seconds
        self._unheard += min(seconds, LONGEST_STEP)
        if self._unheard <= self._bound:
            return None
        return Leave(f"nothing was heard of rank 0 for {self._unheard:.0f} s")

    @property
    def seconds_to_beat(self) -> float:
        """How long this worker may still say nothing; 0: a Beat is due."""
        return max(0.0, self._beat_seconds - self._unsaid)
