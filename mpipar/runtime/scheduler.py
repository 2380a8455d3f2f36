"""Who owns each task: the only authority, on rank 0. Pure: no I/O, no clock.

The states of a task are in `runtime/entry.py`. Which of the tasks on a lost rank has killed it, if
one has, is not known. So all that it had not finished are suspects: from then on a worker gets one
of them at a time, and says when it begins; who is lost while it runs, is lost because of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING

from mpipar.runtime.entry import Entry, Event, State
from mpipar.runtime.messages import (
    POLICY,
    Claim,
    Failed,
    Granted,
    Idle,
    Overdue,
    Place,
    Rank,
    Refused,
    Send,
    Started,
    StealFrom,
)
from mpipar.runtime.stage import QUARANTINED, TIMEOUT, Failure

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from mpipar.runtime.stage import Policy, Task


@dataclass(slots=True)
class Load:
    """One worker as the scheduler sees it."""

    placed: set[int] = field(default_factory=set)
    suspect: int | None = None  # of those placed: another rank was lost with it
    started: bool = False  # whether the suspect has begun
    overdue: int | None = None  # the task because of which the worker is about to be lost
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
        policy: Policy = POLICY,
        sums: bool = True,
        dice: random.Random | None = None,
    ) -> None:
        self.serial = serial
        self.entries: dict[int, Entry] = {}
        self.loads: dict[Rank, Load] = {rank: Load() for rank in ranks}
        self.hungry: dict[Rank, None] = {}  # in the order in which they asked
        self.failures: list[Failure] = []  # of tasks given up, and not yet taken by `take_failures`
        self.stage_failure: Failed | None = None
        self.steals = 0
        self.stolen = 0
        self.finished = 0  # tasks HELD, DONE or ASIDE
        self.rerun = 0  # tasks that a lost rank had
        self._done = 0  # by workers that are lost, too
        self._seconds = 0.0
        self._threads = threads
        self._policy = policy
        self._sums = sums
        self._dice = dice
        self._suspects: deque[Entry] = deque()  # WAITING for a worker that has none of them

    # Placement

    def add(self, tasks: Sequence[Task], home: dict[int, Rank]) -> list[Send]:
        """Place the first tasks: where `home` says that a block is cached, the others evenly.

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

    def add_more(self, tasks: Sequence[Task]) -> list[Send]:
        """Place tasks that come later, each on the worker that has least to do."""
        entries = [Entry(task) for task in tasks]
        self.entries.update((entry.task.id, entry) for entry in entries)
        return self._assign_waiting(entries)

    def forget(self, tasks: Iterable[int]) -> None:
        """Drop what is known of tasks that are over; they are counted no more."""
        for number in tasks:
            del self.entries[number]
            self.finished -= 1

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

    def _place(self, rank: Rank, tasks: Sequence[Task], *, apart: bool = False) -> Send:
        load = self.loads[rank]
        for task in tasks:
            self.entries[task.id].move(Event.ASSIGNED, rank)
            load.placed.add(task.id)
        self._assigned(rank)
        if tasks:
            self.hungry.pop(rank, None)
        return Send(rank, Place(self.serial, tuple(tasks), apart))

    def _assigned(self, rank: Rank) -> None:
        load = self.loads[rank]
        load.issued += 1
        load.dry = False
        load.silence = 0.0

    def _acquit(self, load: Load) -> None:
        """The suspect of a worker may have ended there; the next one can come."""
        if load.suspect is not None and load.suspect not in load.placed:
            load.suspect, load.started = None, False

    # What workers say

    def finish(self, rank: Rank, tasks: Sequence[int], seconds: float) -> list[Send]:
        """Tasks are done; their contributions are in the partial of `rank`."""
        load = self.loads[rank]
        for number in tasks:
            self.entries[number].move(Event.FINISHED, rank)
            if not self._sums:
                self.entries[number].move(Event.BANKED, rank)
        load.placed.difference_update(tasks)
        load.done += len(tasks)
        load.seconds += seconds
        load.silence = 0.0
        self._done += len(tasks)
        self._seconds += seconds
        self.finished += len(tasks)
        self._acquit(load)
        return self._deal_suspects()

    def fail(self, rank: Rank, message: Failed) -> list[Send]:
        """A task raised: try it elsewhere, or give it up."""
        if message.task is None:
            self.stage_failure = message
            return []
        entry = self.entries[message.task]
        entry.move(Event.FAILED, rank)
        entry.failed_on += (rank,)
        self.loads[rank].placed.discard(message.task)
        self._acquit(self.loads[rank])
        if len(entry.failed_on) < self._policy.tries:
            again = self._assign_waiting([entry], apart=True)
            return again + self._deal_suspects() + self._feed()
        self._give_up(entry, message.kind, message.text, message.traceback, entry.failed_on)
        return self._deal_suspects() + self._feed()

    def note(self, rank: Rank, message: Started | Overdue) -> None:
        """A worker begins with its suspect, or is about to be lost because of a task."""
        load = self.loads[rank]
        if isinstance(message, Started):
            load.started = load.suspect == message.task
        elif message.task in load.placed:
            load.overdue = message.task

    def _give_up(
        self, entry: Entry, kind: str, text: str, traceback: str, ranks: tuple[Rank, ...]
    ) -> None:
        entry.move(Event.GIVEN_UP, None)
        self.finished += 1
        task = entry.task
        self.failures.append(Failure(task.id, kind, text, traceback, ranks, task.block))

    def take_failures(self) -> list[Failure]:
        """Return the tasks given up since the last call."""
        failures, self.failures = self.failures, []
        return failures

    def claim(self, thief: Rank, message: Claim) -> list[Send]:
        """A thief asks for tasks: it gets those that its victim still owns."""
        load = self.loads[thief]
        granted: list[int] = []
        refused: list[int] = []
        for number in message.tasks:
            entry = self.entries.get(number)  # None: it was over long ago
            mine = entry and entry.state is State.PLACED and entry.rank == message.victim
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
        mean = self.mean_seconds()
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

    def mean_seconds(self) -> float:
        """Return the seconds of an average task, as far as is known; 0 at first."""
        return self._seconds / self._done if self._done else 0.0

    def pace(self, rank: Rank, mean: float) -> float:
        """Return the seconds that a task takes here: measured, or at least the current silence."""
        load = self.loads[rank]
        measured = load.seconds / load.done if load.done else mean
        return max(measured, load.silence) if load.placed else measured

    def _share(self, thief: Rank, victim: Rank) -> float:
        """Return the thief's share, so that both would end together at their measured speeds."""
        mean = self.mean_seconds()
        own, its = self.pace(thief, mean), self.pace(victim, mean)
        return its / (own + its) if own + its > 0 else 0.5

    def tick(self, seconds: float) -> list[Send]:
        """Time has passed: a worker that is silent for long is a victim after all."""
        for load in self.loads.values():
            load.silence += seconds
        return self._feed()

    def rank_joined(self, rank: Rank) -> list[Send]:
        """A worker is new; it will steal."""
        self.loads[rank] = Load()
        return [self._place(rank, [])]

    def rank_lost(self, rank: Rank) -> list[Send]:
        """Everything that was on a lost rank, contributions included, is to be done again."""
        load = self.loads.pop(rank)
        self.hungry.pop(rank, None)
        back: list[Entry] = []
        waiting = len(self._suspects)
        for entry in self.entries.values():
            if entry.rank != rank or entry.state not in {State.PLACED, State.HELD}:
                continue
            held = entry.state is State.HELD
            entry.move(Event.RANK_LOST, rank)
            self.finished -= held
            if not held and load.overdue is None:
                self._suspect(entry, rank, load)
            elif entry.task.id != load.overdue or self._may_try_again(entry, rank):
                back.append(entry)
        self.rerun += len(back) + len(self._suspects) - waiting
        return self._assign_waiting(back) + self._deal_suspects() + self._feed()

    def _may_try_again(self, entry: Entry, rank: Rank) -> bool:
        """A task took too long on a rank: whether it can be run again, else it is given up."""
        entry.failed_on += (rank,)
        if len(entry.failed_on) < self._policy.tries:
            return True
        text = f"it took longer than {self._policy.timeout:g} s"
        self._give_up(entry, TIMEOUT, text, "", entry.failed_on)
        return False

    def _suspect(self, entry: Entry, rank: Rank, load: Load) -> None:
        """A rank was lost with this task: set it aside, or let it wait for its next try."""
        if not entry.died_on or (load.suspect == entry.task.id and load.started):
            entry.died_on += (rank,)
        if len(entry.died_on) < self._policy.deaths:
            self._suspects.append(entry)
            return
        ranks = ", ".join(map(str, entry.died_on))
        text = f"ranks {ranks} were lost while it ran there"
        self._give_up(entry, QUARANTINED, text, "", entry.died_on)

    def _deal_suspects(self) -> list[Send]:
        """Give each worker that has no suspect the next one."""
        if not self._suspects:
            return []
        sends = []
        for rank in sorted(self.loads, key=lambda rank: len(self.loads[rank].placed)):
            if self._suspects and self.loads[rank].suspect is None:
                entry = self._suspects.popleft()
                self.loads[rank].suspect = entry.task.id
                sends.append(self._place(rank, [entry.task], apart=True))
        return sends

    def _assign_waiting(self, entries: list[Entry], *, apart: bool = False) -> list[Send]:
        """Deal tasks out to where they have not failed, the least loaded first."""
        shares: dict[Rank, list[Task]] = {}
        heap = [(len(load.placed), rank) for rank, load in self.loads.items()]
        heapify(heap)
        for entry in entries:
            if not heap:
                break
            rank = heap[0][1]
            if rank in entry.failed_on:
                rank = self._elsewhere(entry, heap)
            shares.setdefault(rank, []).append(entry.task)
            if rank == heap[0][1]:
                heapreplace(heap, (heap[0][0] + 1, rank))
        return [self._place(rank, tasks, apart=apart) for rank, tasks in shares.items()]

    def _elsewhere(self, entry: Entry, heap: list[tuple[int, Rank]]) -> Rank:
        """The least loaded rank on which this task has not failed, or just the least loaded."""
        others = [item for item in heap if item[1] not in entry.failed_on]
        return min(others or heap)[1]

    # The end

    @property
    def all_finished(self) -> bool:
        """Whether every task is HELD, DONE or ASIDE."""
        return self.finished == len(self.entries)

    def holders(self) -> set[Rank]:
        """Return the ranks whose partials contain something."""
        return {e.rank for e in self.entries.values() if e.state is State.HELD and e.rank}

    def bank(self) -> None:
        """The sum of all partials has arrived, or there is none to wait for."""
        for entry in self.entries.values():
            if entry.state is State.HELD:
                entry.move(Event.BANKED, entry.rank)
