"""Who owns each task: the only authority, on rank 0.

    WAITING --ASSIGNED--> PLACED --FINISHED--> HELD --BANKED--> DONE
       ^                   | | MOVED (stolen)   |
       +--FAILED, RANK_LOST--+------RANK_LOST---+

WAITING: nobody's. PLACED: on one worker, perhaps running, perhaps in the hands of a thief that
has not claimed it yet. HELD: its result is here, its contribution only in one worker's partial.
DONE: its contribution is in a sum that has reached rank 0. Pure: no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from mpipar.errors import ProtocolError
from mpipar.runtime.messages import (
    Claim,
    Failed,
    Granted,
    Idle,
    Place,
    Rank,
    Refused,
    Send,
    StealFrom,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from mpipar.runtime.stage import Task


class State(Enum):
    """Where a task is; see the diagram above."""

    WAITING = auto()
    PLACED = auto()
    HELD = auto()
    DONE = auto()


class Event(Enum):
    """What moves a task."""

    ASSIGNED = auto()
    MOVED = auto()
    FINISHED = auto()
    FAILED = auto()
    BANKED = auto()
    RANK_LOST = auto()


NEXT: Final = {
    (State.WAITING, Event.ASSIGNED): State.PLACED,
    (State.PLACED, Event.MOVED): State.PLACED,
    (State.PLACED, Event.FINISHED): State.HELD,
    (State.PLACED, Event.FAILED): State.WAITING,
    (State.PLACED, Event.RANK_LOST): State.WAITING,
    (State.HELD, Event.BANKED): State.DONE,
    (State.HELD, Event.RANK_LOST): State.WAITING,
}
BY_OWNER: Final = frozenset({Event.FINISHED, Event.FAILED, Event.RANK_LOST})
"""Events that only the rank on which the task is can cause."""


@dataclass(slots=True)
class Entry:
    """One task's state, and how it came there."""

    task: Task
    state: State = State.WAITING
    rank: Rank | None = None  # owner if PLACED, holder if HELD
    failed_on: list[Rank] = field(default_factory=list)
    story: list[tuple[Event, Rank | None]] = field(default_factory=list)

    def move(self, event: Event, rank: Rank | None) -> None:
        """Make a transition, or raise ProtocolError and change nothing."""
        after = NEXT.get((self.state, event))
        if after is None or (event in BY_OWNER and rank != self.rank):
            story = ", ".join(f"{what.name} {who}" for what, who in self.story)
            raise ProtocolError(
                f"task {self.task.id} cannot take {event.name} (rank {rank}) while "
                f"{self.state.name} (rank {self.rank}); its story: {story or 'none'}"
            )
        self.story.append((event, rank))
        self.state = after
        self.rank = None if after is State.WAITING else rank


@dataclass(slots=True)
class Load:
    """One worker as the scheduler sees it."""

    placed: set[int] = field(default_factory=set)
    issued: int = 0  # assignments sent: Place and Granted messages
    done: int = 0
    seconds: float = 0.0  # of computing those
    silence: float = 0.0  # seconds since it last finished or got a task
    dry: bool = False  # answered a thief with nothing, and got nothing since
    asking: Rank | None = None  # the victim that it was told to ask


class Scheduler:
    """Placement, stealing, retries and losses of one run."""

    def __init__(
        self,
        serial: int,
        ranks: Iterable[Rank],
        *,
        threads: int = 1,
        tries: int = 3,
        sums: bool = True,
        dice: random.Random | None = None,
    ) -> None:
        self.serial = serial
        self.entries: dict[int, Entry] = {}
        self.loads: dict[Rank, Load] = {rank: Load() for rank in ranks}
        self.hungry: dict[Rank, None] = {}  # in the order in which they asked
        self.failure: Failed | None = None
        self.steals = 0
        self.stolen = 0
        self.finished = 0  # tasks HELD or DONE
        self.rerun = 0  # tasks that a lost rank had
        self._threads = threads
        self._tries = tries
        self._sums = sums
        self._dice = dice

    # Placement

    def add(self, tasks: Sequence[Task], home: dict[int, Rank]) -> list[Send]:
        """Place new tasks: where `home` says that a block is cached, the others evenly in order.

        Every worker gets a Place, even an empty one: it opens the run for its thieves.
        """
        shares: dict[Rank, list[Task]] = {rank: [] for rank in self.loads}
        rest = []
        for task in tasks:
            self.entries[task.id] = Entry(task)
            rank = home.get(task.block) if task.block is not None else None
            if rank in shares and self._dice is None:
                shares[rank].append(task)
            else:
                rest.append(task)
        self._spread(rest, shares)
        return [self._place(rank, share) for rank, share in shares.items()]

    def _spread(self, tasks: list[Task], shares: dict[Rank, list[Task]]) -> None:
        """Cut tasks into runs of neighbours that level the shares."""
        if self._dice is not None:
            for task in tasks:
                shares[self._dice.choice(list(shares))].append(task)
            return
        left, position = len(tasks), 0
        by_load = sorted(shares, key=lambda rank: -len(shares[rank]))
        for index, rank in enumerate(by_load):
            others = by_load[index:]
            level = -(-(left + sum(len(shares[r]) for r in others)) // len(others))
            take = min(left, max(0, level - len(shares[rank])))
            shares[rank].extend(tasks[position : position + take])
            position += take
            left -= take

    def _place(self, rank: Rank, tasks: Sequence[Task]) -> Send:
        load = self.loads[rank]
        for task in tasks:
            self.entries[task.id].move(Event.ASSIGNED, rank)
            load.placed.add(task.id)
        self._assigned(rank)
        if tasks:
            self.hungry.pop(rank, None)
        return Send(rank, Place(self.serial, tuple(tasks)))

    def _assigned(self, rank: Rank) -> None:
        load = self.loads[rank]
        load.issued += 1
        load.dry = False
        load.silence = 0.0

    # What workers say

    def finish(self, rank: Rank, tasks: Sequence[int], seconds: float) -> None:
        """Tasks are done; their contributions are in the partial of `rank`."""
        load = self.loads[rank]
        for number in tasks:
            self.entries[number].move(Event.FINISHED, rank)
            if not self._sums:
                self.entries[number].move(Event.BANKED, rank)
            load.placed.discard(number)
        load.done += len(tasks)
        load.seconds += seconds
        load.silence = 0.0
        self.finished += len(tasks)

    def fail(self, rank: Rank, message: Failed) -> list[Send]:
        """A task raised: try it elsewhere, or give up and note the failure."""
        if message.task is None:
            self.failure = message
            return []
        entry = self.entries[message.task]
        entry.move(Event.FAILED, rank)
        entry.failed_on.append(rank)
        self.loads[rank].placed.discard(message.task)
        if len(entry.failed_on) >= self._tries:
            self.failure = message
            return []
        return self._assign_waiting([entry]) + self._feed()

    def claim(self, thief: Rank, message: Claim) -> list[Send]:
        """A thief asks for tasks: it gets those that its victim still owns."""
        load = self.loads[thief]
        granted: list[int] = []
        refused: list[int] = []
        for number in message.tasks:
            entry = self.entries[number]
            mine = entry.state is State.PLACED and entry.rank == message.victim
            (granted if mine else refused).append(number)
        if thief != message.victim:
            load.asking = None
            self._move(message.victim, thief, granted)
        sends = []
        if granted:
            self._assigned(thief)
            sends.append(Send(thief, Granted(self.serial, message.claim, tuple(granted))))
        if refused:
            sends.append(Send(thief, Refused(self.serial, message.claim, tuple(refused))))
        return sends + self._feed()

    def _move(self, victim: Rank, thief: Rank, tasks: list[int]) -> None:
        for number in tasks:
            self.entries[number].move(Event.MOVED, thief)
            self.loads[victim].placed.discard(number)
            self.loads[thief].placed.add(number)
        self.steals += bool(tasks)
        self.stolen += len(tasks)

    def idle(self, rank: Rank, message: Idle) -> list[Send]:
        """A worker has nothing to start."""
        load = self.loads[rank]
        load.asking = None
        if message.dry in self.loads:
            victim = self.loads[message.dry]
            victim.dry = victim.dry or message.seen == victim.issued
        self.hungry[rank] = None
        return self._feed()

    # Stealing

    def _feed(self) -> list[Send]:
        """Name a victim to every hungry worker for which there is a good one."""
        victims = [r for r, load in self.loads.items() if self._surplus(load) and not load.dry]
        sends = []
        for thief in list(self.hungry) if victims else ():
            victim = self._victim(thief, victims)
            if victim is not None:
                del self.hungry[thief]
                self.loads[thief].asking = victim
                share = self._share(thief, victim)
                sends.append(Send(thief, StealFrom(self.serial, victim, share)))
        return sends

    def _surplus(self, load: Load) -> int:
        return max(0, len(load.placed) - self._threads)

    def _victim(self, thief: Rank, victims: list[Rank]) -> Rank | None:
        """Return whom to rob: most work not started, by measured time, fewest other thieves."""
        mean = self._mean_seconds()
        if self._dice is not None:
            others = [rank for rank in victims if rank != thief]
            return self._dice.choice(others) if others else None
        own = self.pace(thief, mean)
        best, most = None, -1.0
        for rank in victims:
            load = self.loads[rank]
            surplus, pace = self._surplus(load), self.pace(rank, mean)
            if rank == thief or own > pace * (1 + surplus / self._threads):
                continue  # never from a victim that will be done sooner than this thief would be
            raids = sum(other.asking == rank for other in self.loads.values())
            weight = surplus * pace / (1 + raids)
            if weight > most:
                best, most = rank, weight
        return best

    def _mean_seconds(self) -> float:
        done = sum(load.done for load in self.loads.values())
        return sum(load.seconds for load in self.loads.values()) / done if done else 0.0

    def pace(self, rank: Rank, mean: float) -> float:
        """Return the seconds that a task takes here: measured, or at least the current silence."""
        load = self.loads[rank]
        measured = load.seconds / load.done if load.done else mean
        return max(measured, load.silence) if load.placed else measured

    def _share(self, thief: Rank, victim: Rank) -> float:
        """Return the thief's share, so that both would end together at their measured speeds."""
        mean = self._mean_seconds()
        own, its = self.pace(thief, mean), self.pace(victim, mean)
        return its / (own + its) if own + its > 0 else 0.5

    def tick(self, seconds: float) -> list[Send]:
        """Time has passed: a worker that is silent for long is a victim after all."""
        for load in self.loads.values():
            load.silence += seconds
        return self._feed()

    # Loss

    def rank_lost(self, rank: Rank) -> list[Send]:
        """Everything that was on a lost rank, contributions included, is to be done again."""
        del self.loads[rank]
        self.hungry.pop(rank, None)
        back = []
        for entry in self.entries.values():
            if entry.rank == rank and entry.state in {State.PLACED, State.HELD}:
                self.finished -= entry.state is State.HELD
                entry.move(Event.RANK_LOST, rank)
                back.append(entry)
        self.rerun += len(back)
        return self._assign_waiting(back) + self._feed()

    def _assign_waiting(self, entries: list[Entry]) -> list[Send]:
        """Deal tasks out to where they have not failed, the least loaded first."""
        shares: dict[Rank, list[Task]] = {}
        for entry in entries:
            ranks = [r for r in self.loads if r not in entry.failed_on] or list(self.loads)
            if not ranks:
                return []
            rank = min(ranks, key=lambda r: len(self.loads[r].placed) + len(shares.get(r, ())))
            shares.setdefault(rank, []).append(entry.task)
        return [self._place(rank, tasks) for rank, tasks in shares.items()]

    # The end

    @property
    def all_finished(self) -> bool:
        """Whether every task is HELD or DONE."""
        return self.finished == len(self.entries)

    def holders(self) -> set[Rank]:
        """Return the ranks whose partials contain something."""
        return {e.rank for e in self.entries.values() if e.state is State.HELD and e.rank}

    def bank(self) -> None:
        """The sum of all partials has arrived, or there is none to wait for."""
        for entry in self.entries.values():
            if entry.state is State.HELD:
                entry.move(Event.BANKED, entry.rank)
