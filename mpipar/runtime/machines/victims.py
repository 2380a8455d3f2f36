"""Pairs of workers for stealing: a thief that is idle, and a victim with tasks to give.

With many workers neither side can be searched for every message. Victims are in a heap by their
weight: the work that they have not started, in seconds, divided among the thieves on their way.
A weight also grows while the victim is silent, so victims are in a second list, longest silent
first. A weight in the heap is at least the true one, but for that silence; a weight that is much
too large is corrected when the victim comes to the top.
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

LOOKED_AT = 4
"""Victims of each list that are compared for one thief; also thieves without a good victim after
which a search ends."""
MOST_THIEVES = 4
"""Thieves that may be on their way to one victim, if that has as many tasks to give."""
SIMILAR = 0.8  # a weight that is at least this fraction of that in the heap is left there
SHORTEST_TASK = 1e-9  # seconds, until the first task has ended


class Victims:
    """The thieves that wait for a victim, and the victims that can be named to them."""

    def __init__(
        self, loads: WorkerLoads, *, threads: int, dice: random.Random | None = None
    ) -> None:
        self.requests: dict[Rank, int] = {}  # idle workers, each with the number of its request
        self._loads = loads
        self._threads = threads
        self._dice = dice
        self._request_count = 0
        self._queue: list[tuple[float, int, Rank]] = []  # a heap, the fastest workers first
        self._by_weight: list[tuple[float, Rank]] = []  # a heap of negative weights
        self._weights: dict[Rank, float] = {}  # older entries of the heap do not count
        self._candidates: OrderedDict[Rank, None] = OrderedDict()  # longest silent first

    # What has changed

    def add_request(self, rank: Rank) -> None:
        """A worker is idle: a victim is wanted for it."""
        self._request_count += 1
        self.requests[rank] = self._request_count
        heappush(self._queue, (self._loads.task_seconds(rank), self._request_count, rank))
        if len(self._queue) > 2 * len(self.requests) + LOOKED_AT:
            self._queue = [(self._loads.task_seconds(r), n, r) for r, n in self.requests.items()]
            heapify(self._queue)

    def remove_request(self, rank: Rank) -> None:
        """A worker has been given tasks: it needs no victim."""
        self.requests.pop(rank, None)

    def update(self, rank: Rank, *, heard: bool = False) -> None:
        """Look again whether a worker is a possible victim, after its load has changed.

        heard   a message has just come from the worker, or gone to it
        """
        load = self._loads[rank]
        thieves = load.thieves
        if load.is_empty or thieves >= MOST_THIEVES or thieves >= len(load.placed) - self._threads:
            self._candidates.pop(rank, None)
            return
        if heard or rank not in self._candidates:
            self._candidates[rank] = None
            self._candidates.move_to_end(rank, last=heard)
        weight = self._weight(rank)
        if weight > self._weights.get(rank, 0.0):
            self._push(rank, weight)

    def _start_steal(self, thief: Rank, victim: Rank) -> None:
        self._loads[thief].victim = victim
        self._loads[victim].thieves += 1
        self.update(victim)

    def end_steal(self, thief: Rank) -> None:
        """A thief, if it was told to ask a victim, has told the result."""
        load = self._loads[thief]
        victim, load.victim = load.victim, None
        if victim is not None and victim in self._loads:
            self._loads[victim].thieves -= 1
            self.update(victim)

    def rank_lost(self, rank: Rank) -> None:
        """A worker is lost; the loads still have it."""
        self.end_steal(rank)
        self.requests.pop(rank, None)
        self._candidates.pop(rank, None)
        self._weights.pop(rank, None)

    # Pairs

    def match(self) -> list[tuple[Rank, Rank]]:
        """Return pairs of a thief and the victim that it is to ask; these requests are over."""
        pairs: list[tuple[Rank, Rank]] = []
        failed: list[tuple[float, int, Rank]] = []
        while self._candidates and self._queue and len(failed) < LOOKED_AT:
            request = heappop(self._queue)
            thief = request[2]
            if self.requests.get(thief) != request[1]:
                continue  # the thief has been given tasks
            victim = self._best_victim(thief)
            if victim is None:
                failed.append(request)
                continue
            del self.requests[thief]
            self._start_steal(thief, victim)
            pairs.append((thief, victim))
        for request in failed:
            heappush(self._queue, request)
        return pairs

    def share(self, thief: Rank, victim: Rank) -> float:
        """Return the share of the victim's tasks with which both would end at the same time."""
        of_thief, of_victim = self._loads.task_seconds(thief), self._loads.task_seconds(victim)
        return of_victim / (of_thief + of_victim) if of_thief + of_victim > 0 else 0.5

    def _best_victim(self, thief: Rank) -> Rank | None:
        """Return the victim with the largest weight of those worth asking, or None."""
        if self._dice is not None:
            others = [rank for rank in self._candidates if rank != thief]
            return self._dice.choice(others) if others else None
        seconds = self._loads.task_seconds(thief)
        candidates = [*self._heaviest(), *islice(self._candidates, LOOKED_AT)]
        good = [
            rank for rank in candidates if rank != thief and self._is_worth_asking(rank, seconds)
        ]
        return max(good, key=lambda rank: (self._weight(rank), -rank), default=None)

    def _is_worth_asking(self, victim: Rank, seconds: float) -> bool:
        """Whether a thief that needs so many seconds for one task would end before the victim."""
        count = self._loads.not_started(victim)
        victims_end = self._loads.task_seconds(victim) * (1 + count / self._threads)
        return count >= 1 and seconds <= victims_end

    def _weight(self, rank: Rank) -> float:
        loads = self._loads
        seconds = max(loads.task_seconds(rank), SHORTEST_TASK)
        return loads.not_started(rank) * seconds / (1 + loads[rank].thieves)

    # The heap

    def _push(self, rank: Rank, weight: float) -> None:
        self._weights[rank] = weight
        heappush(self._by_weight, (-weight, rank))
        if len(self._by_weight) > 2 * len(self._weights) + LOOKED_AT:
            self._by_weight = [(-weight, rank) for rank, weight in self._weights.items()]
            heapify(self._by_weight)

    def _heaviest(self) -> list[Rank]:
        """Return the first victims of the heap; weights that are too large are corrected."""
        found: list[Rank] = []
        while self._by_weight and len(found) < LOOKED_AT:
            negative, rank = heappop(self._by_weight)
            if self._weights.get(rank) != -negative or rank in found:
                continue  # a later entry counts
            if rank not in self._candidates:
                del self._weights[rank]
                continue
            weight = self._weight(rank)
            if weight == 0:
                del self._weights[rank]
            elif weight < SIMILAR * -negative:
                self._push(rank, weight)
            else:
                found.append(rank)
        for rank in found:
            heappush(self._by_weight, (-self._weights[rank], rank))
        return found

    # Self-check

    def faults(self) -> Iterator[str]:
        """Describe what is kept here and disagrees with the loads."""
        thieves = Counter(load.victim for load in self._loads.values())
        for rank, load in self._loads.items():
            if load.thieves != thieves[rank]:
                yield f"rank {rank} is asked by {thieves[rank]} thieves, not {load.thieves}"
            most = 0 if load.is_empty else min(MOST_THIEVES, len(load.placed) - self._threads)
            if (rank in self._candidates) != (load.thieves < most):
                yield f"rank {rank} is a victim with nothing to give, or none although it has"
            if load.victim is not None and rank in self.requests:
                yield f"rank {rank} has a victim and asks for one"
        if not self._loads.keys() >= {*self.requests, *self._candidates, *self._weights}:
            yield "a lost rank is a thief or a victim"
        counting = {(-self._weights.get(rank, 0.0), rank) for rank in self._candidates}
        if not counting <= {*self._by_weight}:
            yield "the weight of a victim is not in the heap"
        queued = {rank: number for _, number, rank in sorted(self._queue, key=lambda q: q[1])}
        if not self.requests.items() <= queued.items():
            yield "the request of a thief is not in the heap"
