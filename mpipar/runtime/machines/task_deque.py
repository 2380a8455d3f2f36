"""A worker's tasks that have not started, and its part in moving them: as thief and as victim.

    SATED --nothing left--> HUNGRY --StealFrom--> ASKING --StealReply--> CLAIMING --word--> SATED
              (Idle)           ^   (StealRequest)    | empty, or        (Claim)       |
                               +---------------------+ victim gone <-- all refused ---+

A steal is a transaction that only the master can commit. What a victim gives is in flight until
the thief's claim is granted: the victim no longer has it, the thief must not run it, and the
master still books it on the victim. If the thief is lost meanwhile, the victim claims it back.
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
    """What a worker is doing about its own want of tasks."""

    SATED = auto()  # has tasks, or has not noticed that it has none
    HUNGRY = auto()  # has said Idle; the master will answer, at once or when work appears
    ASKING = auto()  # has asked a victim
    CLAIMING = auto()  # has been given tasks and asked the master for them


class TaskDeque:
    """The tasks of one worker in one run that it has not started. Pure: returns what to send."""

    def __init__(self, serial: int, dice: random.Random | None = None) -> None:
        self.serial = serial
        self.tasks: deque[Task] = deque()  # run from the left, stolen from the right
        self.apart: deque[Task] = deque()  # run before those, by themselves, and never stolen
        self.claims: dict[int, dict[int, Task]] = {}  # by number, awaiting the master's word
        self.given: dict[int, tuple[Rank, Task]] = {}  # handed to a thief in this run
        self.thief = StealState.SATED
        self.victim: Rank | None = None  # while ASKING
        self.asked = 0  # victims so far
        self.seen = 0  # assignments received: one per Place and per Granted
        self._waiting: list[tuple[Rank, StealRequest]] = []  # thieves that came before Place
        self._dice = dice
        self._claim_count = 0

    # Tasks from the master

    def place(
        self, tasks: Iterable[Task], is_cached: Callable[[int], bool], *, apart: bool = False
    ) -> list[Send]:
        """Take tasks; those whose block is here run first, so thieves get the others."""
        self.seen += 1
        for task in tasks:
            self._own(task, self.apart if apart else self.tasks)
        ordered = sorted(self.tasks, key=lambda t: t.block is not None and not is_cached(t.block))
        self.tasks = deque(ordered)
        if self.has_tasks and self.thief is StealState.HUNGRY:
            self.thief = StealState.SATED
        waiting, self._waiting = self._waiting, []
        return [send for thief, ask in waiting for send in self.give(thief, ask, is_cached)]

    @property
    def has_tasks(self) -> bool:
        """Whether there is something to start."""
        return bool(self.tasks or self.apart)

    def _own(self, task: Task, where: deque[Task]) -> None:
        """Take a task for good: that ends whatever else it was in the middle of here.

        The same task can be in two claims, one as a thief and one for what a lost thief was given.
        """
        for claimed in self.claims.values():
            claimed.pop(task.id, None)
        self.given.pop(task.id, None)
        where.append(task)

    def granted(self, message: Granted) -> None:
        """Put claimed tasks where they can run."""
        self.seen += 1
        claimed = self.claims.get(message.claim, {})
        for number in message.tasks:
            if number in claimed:
                self._own(claimed[number], self.tasks)
        self._end_claim(message.claim)

    def refused(self, message: Refused) -> None:
        """Drop claimed tasks: somebody else has them."""
        claimed = self.claims.get(message.claim, {})
        for number in message.tasks:
            claimed.pop(number, None)
        self._end_claim(message.claim)

    def _end_claim(self, claim: int) -> None:
        if not self.claims.get(claim):
            self.claims.pop(claim, None)
        if self.thief is StealState.CLAIMING and not self.claims:
            self.thief = StealState.SATED

    # Thief

    def want(self) -> list[Send]:
        """A thread has nothing to do: say so, unless that is known or tasks are on their way."""
        if self.thief is not StealState.SATED or self.has_tasks or self.claims or not self.seen:
            return []
        self.thief = StealState.HUNGRY
        return [Send(MASTER, Idle(self.serial))]

    def steal_from(self, message: StealFrom) -> list[Send]:
        """The master names a victim: ask it."""
        if self.thief is not StealState.HUNGRY:
            return []
        self.thief, self.victim = StealState.ASKING, message.victim
        self.asked += 1
        return [Send(message.victim, StealRequest(self.serial, message.share))]

    def loot(self, victim: Rank, reply: StealReply) -> list[Send]:
        """The victim answers: claim what it gave, or look elsewhere."""
        if self.thief is not StealState.ASKING or self.victim != victim:
            return []
        self.victim = None
        if not reply.tasks:
            self.thief = StealState.HUNGRY
            return [Send(MASTER, Idle(self.serial, victim, reply.seen))]
        self.thief = StealState.CLAIMING
        return self._claim(victim, reply.tasks)

    def _claim(self, victim: Rank, tasks: Iterable[Task]) -> list[Send]:
        self._claim_count += 1
        mine = {task.id: task for task in tasks}
        self.claims[self._claim_count] = mine
        return [Send(MASTER, Claim(self.serial, self._claim_count, victim, tuple(mine)))]

    # Victim

    def give(
        self, thief: Rank, request: StealRequest, is_cached: Callable[[int], bool]
    ) -> list[Send]:
        """Hand over a share, from the far end, of what has not started; wait for Place first."""
        if not self.seen:
            self._waiting.append((thief, request))
            return []
        amount = self._amount(request.share)
        loot = tuple(self.tasks.pop() for _ in range(amount))
        self.given.update((task.id, (thief, task)) for task in loot)
        cached = frozenset(t.block for t in loot if t.block is not None and is_cached(t.block))
        return [Send(thief, StealReply(self.serial, loot, cached, self.seen))]

    def _amount(self, share: float) -> int:
        if not self.tasks:
            return 0
        if self._dice is not None:
            return self._dice.randint(1, len(self.tasks))
        return max(1, min(len(self.tasks), ceil(share * len(self.tasks))))

    # Loss

    def gone(self, own: Rank, lost: Rank) -> list[Send]:
        """A rank is lost: claim back what it was given, and do not wait for its answer."""
        self._waiting = [(thief, ask) for thief, ask in self._waiting if thief != lost]
        back = [task for thief, task in self.given.values() if thief == lost]
        for task in back:
            del self.given[task.id]
        sends = self._claim(own, back) if back else []
        if self.thief is StealState.ASKING and self.victim == lost:
            self.thief, self.victim = StealState.HUNGRY, None
            sends.append(Send(MASTER, Idle(self.serial)))
        return sends
