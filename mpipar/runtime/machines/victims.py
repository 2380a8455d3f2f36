"""Who robs whom: the hungry workers, and the victims with most work that has not started.

With many workers neither can be looked through for every message. Victims are in a heap by their
weight (work not started, in seconds, divided among the thieves on their way), and in a list by
when they were last heard of, because a weight also grows with silence. A weight in the heap is
never too small but by silence; one that is much too large is put right when it comes to the top.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from mpipar.runtime.machines.loads import WorkerLoads
    from mpipar.runtime.machines.messages import Rank

LOOKS = 4
"""So many victims are looked at for a thief, and so many thieves that find none, at a time."""
RAIDS = 4
"""No more thieves than this are on their way to one victim; nor more than there is to take."""
ALIKE = 0.8  # a weight that is not smaller than so much of that in the heap is left there
INSTANT = 1e-9  # seconds of a task, before the first has ended


class Victims:
    """Brings thieves and victims together."""

    def __init__(
        self, loads: WorkerLoads, *, threads: int, dice: random.Random | None = None
    ) -> None:
        self.hungry: dict[Rank, int] = {}  # with the number of the request
        self._loads = loads
        self._threads = threads
        self._dice = dice
        self._requests = 0
        self._thieves: list[tuple[float, int, Rank]] = []  # heap by pace: the fast eat first
        self._heap: list[tuple[float, Rank]] = []  # by weight, negative
        self._weights: dict[Rank, float] = {}  # the entry of the heap that counts
        self._silent: OrderedDict[Rank, None] = OrderedDict()  # victims, longest silent first

    # What has changed

    def ask(self, rank: Rank) -> None:
        """A worker is hungry."""
        self._requests += 1
        self.hungry[rank] = self._requests
        heappush(self._thieves, (self._loads.pace(rank), self._requests, rank))
        if len(self._thieves) > 2 * len(self.hungry) + LOOKS:
            self._thieves = [(self._loads.pace(r), n, r) for r, n in self.hungry.items()]
            heapify(self._thieves)

    def feed(self, rank: Rank) -> None:
        """A worker has got tasks."""
        self.hungry.pop(rank, None)

    def note(self, rank: Rank, *, heard: bool = False) -> None:
        """Something has changed about a worker; `heard`: it is not silent just now."""
        load = self._loads[rank]
        raids = load.raids
        if load.dry or raids >= RAIDS or raids >= len(load.placed) - self._threads:
            self._silent.pop(rank, None)
            return
        if heard or rank not in self._silent:
            self._silent[rank] = None
            self._silent.move_to_end(rank, last=heard)
        weight = self._weight(rank)
        if weight > self._weights.get(rank, 0.0):
            self._push(rank, weight)

    def raid(self, thief: Rank, victim: Rank | None) -> None:
        """A thief is on its way to a victim, or (None) is no longer."""
        load = self._loads[thief]
        former, load.asking = load.asking, victim
        if former is not None and former in self._loads:
            self._loads[former].raids -= 1
            self.note(former)
        if victim is not None:
            self._loads[victim].raids += 1
            self.note(victim)

    def lose(self, rank: Rank) -> None:
        """A worker is about to be taken out of the loads."""
        self.raid(rank, None)
        self.hungry.pop(rank, None)
        self._silent.pop(rank, None)
        self._weights.pop(rank, None)

    # Pairs

    def match(self) -> list[tuple[Rank, Rank]]:
        """Return pairs of a thief, hungry no more, and the victim that it is to ask."""
        pairs: list[tuple[Rank, Rank]] = []
        failed: list[tuple[float, int, Rank]] = []
        while self._silent and self._thieves and len(failed) < LOOKS:
            request = heappop(self._thieves)
            thief = request[2]
            if self.hungry.get(thief) != request[1]:
                continue  # it has got tasks meanwhile
            victim = self._victim(thief)
            if victim is None:
                failed.append(request)
                continue
            del self.hungry[thief]
            self.raid(thief, victim)
            pairs.append((thief, victim))
        for request in failed:
            heappush(self._thieves, request)
        return pairs

    def share(self, thief: Rank, victim: Rank) -> float:
        """Return the thief's share, so that both would end together at their measured speeds."""
        own, its = self._loads.pace(thief), self._loads.pace(victim)
        return its / (own + its) if own + its > 0 else 0.5

    def _victim(self, thief: Rank) -> Rank | None:
        """Return whom to rob: most work not started, by measured time, fewest other thieves."""
        if self._dice is not None:
            others = [rank for rank in self._silent if rank != thief]
            return self._dice.choice(others) if others else None
        own = self._loads.pace(thief)
        candidates = [*self._heaviest(), *islice(self._silent, LOOKS)]
        good = [rank for rank in candidates if rank != thief and self._pays(own, rank)]
        return max(good, key=lambda rank: (self._weight(rank), -rank), default=None)

    def _pays(self, own: float, victim: Rank) -> bool:
        """Whether the victim would not be done sooner than the thief with a single task."""
        surplus = self._loads.surplus(victim)
        return surplus >= 1 and own <= self._loads.pace(victim) * (1 + surplus / self._threads)

    def _weight(self, rank: Rank) -> float:
        loads = self._loads
        return loads.surplus(rank) * max(loads.pace(rank), INSTANT) / (1 + loads[rank].raids)

    # The heap

    def _push(self, rank: Rank, weight: float) -> None:
        self._weights[rank] = weight
        heappush(self._heap, (-weight, rank))
        if len(self._heap) > 2 * len(self._weights) + LOOKS:
            self._heap = [(-weight, rank) for rank, weight in self._weights.items()]
            heapify(self._heap)

    def _heaviest(self) -> list[Rank]:
        """Return some victims at the top of the heap, after putting their weights right."""
        found: list[Rank] = []
        while self._heap and len(found) < LOOKS:
            negative, rank = heappop(self._heap)
            if self._weights.get(rank) != -negative or rank in found:
                continue  # another entry counts
            if rank not in self._silent:
                del self._weights[rank]
                continue
            weight = self._weight(rank)
            if weight == 0:
                del self._weights[rank]
            elif weight < ALIKE * -negative:
                self._push(rank, weight)
            else:
                found.append(rank)
        for rank in found:
            heappush(self._heap, (-self._weights[rank], rank))
        return found

    # Self-check

    def faults(self) -> Iterator[str]:
        """Describe what is kept here and disagrees with the loads."""
        thieves = Counter(load.asking for load in self._loads.values())
        for rank, load in self._loads.items():
            if load.raids != thieves[rank]:
                yield f"rank {rank} is asked by {thieves[rank]} thieves, not {load.raids}"
            most = 0 if load.dry else min(RAIDS, len(load.placed) - self._threads)
            if (rank in self._silent) != (load.raids < most):
                yield f"rank {rank} is a victim with nothing to give, or none although it has"
            if load.asking is not None and rank in self.hungry:
                yield f"rank {rank} has a victim and asks for one"
        if not self._loads.keys() >= {*self.hungry, *self._silent, *self._weights}:
            yield "a lost rank is a thief or a victim"
        if not {*self._heap} >= {(-self._weights.get(rank, 0.0), rank) for rank in self._silent}:
            yield "the weight of a victim is not in the heap"
        asked = {(number, rank) for _, number, rank in self._thieves}
        if not asked >= {(number, rank) for rank, number in self.hungry.items()}:
            yield "the request of a thief is not in the heap"
