"""A worker's tasks that have not started, and how they move between a thief and a victim.

    BUSY --nothing left--> IDLE --StealFrom--> ASKING --StealReply--> CLAIMING --answered--> BUSY
             (Idle)         ^  (StealRequest)    |                    (Claim)
                            +--------------------+
                      empty reply, or victim lost (Idle)

A steal is a transaction that only the master can commit. The tasks that a victim hands over are in
flight until the thief's claim is granted: the victim no longer has them, the thief must not run
them, and for the master the victim still owns them. If the thief is lost meanwhile, the victim
claims them back.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from math import ceil
from typing import TYPE_CHECKING

from mpipar.runtime.machines.messages import (
    MASTER,
    Claim,
    Granted,
    Idle,
    Rank,
    Refused,
    Send,
    StealFrom,
    StealReply,
    StealRequest,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from mpipar.runtime.stage import Task


class StealState(Enum):
    """How far a worker is with getting tasks from others; see the diagram above."""

    BUSY = auto()  # has tasks, or has not reported that it has none
    IDLE = auto()  # has sent Idle; the master answers at once, or when there are tasks
    ASKING = auto()  # has asked a victim
    CLAIMING = auto()  # has been given tasks and asked the master for them


class TaskDeque:
    """The tasks of one worker in one run that it has not started. Methods return what to send."""

    def __init__(self, serial: int, dice: random.Random | None = None) -> None:
        self.serial = serial
        self.tasks: deque[Task] = deque()  # run from the left, stolen from the right
        self.alone: deque[Task] = deque()  # run before those, one at a time, and never stolen
        self.claims: dict[int, dict[int, Task]] = {}  # by number of the claim, not answered yet
        self.given: dict[int, tuple[Rank, Task]] = {}  # by task: what thieves were given
        self.steal_state = StealState.BUSY
        self.victim: Rank | None = None  # while ASKING
        self.asked = 0  # how many victims so far
        self.seen = 0  # assignments received: one per Place and per Granted
        self._early_requests: list[tuple[Rank, StealRequest]] = []  # before the first Place
        self._dice = dice
        self._claim_count = 0

    # Tasks from the master

    def place(
        self, tasks: Iterable[Task], is_cached: Callable[[int], bool], *, alone: bool = False
    ) -> list[Send]:
        """Add tasks. Those whose block is in the cache run first, so that thieves get the others.

        alone   the tasks have failed, or ranks were lost with them
        """
        self.seen += 1
        for task in tasks:
            self._accept(task, self.alone if alone else self.tasks)
        ordered = sorted(self.tasks, key=lambda t: t.block is not None and not is_cached(t.block))
        self.tasks = deque(ordered)
        if self.has_tasks and self.steal_state is StealState.IDLE:
            self.steal_state = StealState.BUSY
        requests, self._early_requests = self._early_requests, []
        answers = [self.on_steal_request(*request, is_cached) for request in requests]
        return [send for sends in answers for send in sends]

    @property
    def has_tasks(self) -> bool:
        """Whether there is something to start."""
        return bool(self.tasks or self.alone)

    def _accept(self, task: Task, where: deque[Task]) -> None:
        """Add a task that this worker now owns, and end all claims of that task.

        The same task can be in two claims: it was given to a thief that is lost, and offered here
        by a victim.
        """
        for claimed in self.claims.values():
            claimed.pop(task.id, None)
        self.given.pop(task.id, None)
        where.append(task)

    def on_granted(self, message: Granted) -> None:
        """Add claimed tasks that this worker now owns."""
        self.seen += 1
        claimed = self.claims.get(message.claim, {})
        for number in message.tasks:
            if number in claimed:
                self._accept(claimed[number], self.tasks)
        self._end_claim(message.claim)

    def on_refused(self, message: Refused) -> None:
        """Drop claimed tasks that another worker owns."""
        claimed = self.claims.get(message.claim, {})
        for number in message.tasks:
            claimed.pop(number, None)
        self._end_claim(message.claim)

    def _end_claim(self, claim: int) -> None:
        if not self.claims.get(claim):
            self.claims.pop(claim, None)
        if self.steal_state is StealState.CLAIMING and not self.claims:
            self.steal_state = StealState.BUSY

    # Thief

    def report_idle(self) -> list[Send]:
        """A thread has nothing to do: report that once, unless there are tasks or claims."""
        if self.steal_state is not StealState.BUSY or not self.seen:
            return []
        if self.has_tasks or self.claims:
            return []
        self.steal_state = StealState.IDLE
        return [Send(MASTER, Idle(self.serial))]

    def on_steal_from(self, message: StealFrom) -> list[Send]:
        """The master names a victim: ask that one for tasks."""
        if self.steal_state is not StealState.IDLE:
            return []
        self.steal_state, self.victim = StealState.ASKING, message.victim
        self.asked += 1
        return [Send(message.victim, StealRequest(self.serial, message.share))]

    def on_steal_reply(self, victim: Rank, reply: StealReply) -> list[Send]:
        """The victim answers: claim the tasks that it gave, or report idle again."""
        if self.steal_state is not StealState.ASKING or self.victim != victim:
            return []
        self.victim = None
        if not reply.tasks:
            self.steal_state = StealState.IDLE
            return [Send(MASTER, Idle(self.serial, victim, reply.seen))]
        self.steal_state = StealState.CLAIMING
        return self._claim(victim, reply.tasks)

    def _claim(self, victim: Rank, tasks: Iterable[Task]) -> list[Send]:
        self._claim_count += 1
        claimed = {task.id: task for task in tasks}
        self.claims[self._claim_count] = claimed
        return [Send(MASTER, Claim(self.serial, self._claim_count, victim, tuple(claimed)))]

    # Victim

    def on_steal_request(
        self, thief: Rank, request: StealRequest, is_cached: Callable[[int], bool]
    ) -> list[Send]:
        """Hand over a share of the tasks, those that would run last. Before Place, wait."""
        if not self.seen:
            self._early_requests.append((thief, request))
            return []
        count = self._count_of(request.share)
        tasks = tuple(self.tasks.pop() for _ in range(count))
        self.given.update((task.id, (thief, task)) for task in tasks)
        cached = frozenset(t.block for t in tasks if t.block is not None and is_cached(t.block))
        return [Send(thief, StealReply(self.serial, tasks, cached, self.seen))]

    def _count_of(self, share: float) -> int:
        if not self.tasks:
            return 0
        if self._dice is not None:
            return self._dice.randint(1, len(self.tasks))
        return max(1, min(len(self.tasks), ceil(share * len(self.tasks))))

    # Loss

    def on_rank_lost(self, own: Rank, lost: Rank) -> list[Send]:
        """A rank is lost: claim back the tasks that it was given, and await no answer from it."""
        self._early_requests = [early for early in self._early_requests if early[0] != lost]
        back = [task for thief, task in self.given.values() if thief == lost]
        for task in back:
            del self.given[task.id]
        sends = self._claim(own, back) if back else []
        if self.steal_state is StealState.ASKING and self.victim == lost:
            self.steal_state, self.victim = StealState.IDLE, None
            sends.append(Send(MASTER, Idle(self.serial)))
        return sends
