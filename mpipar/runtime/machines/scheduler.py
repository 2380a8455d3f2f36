"""Who owns each task: the only authority, on rank 0. Pure: no I/O, no clock.

The states of a task are in `runtime/entry.py`. Which of the tasks on a lost rank has killed it, if
one has, is not known. So all that it had not finished are suspects: from then on a worker gets one
of them at a time, and says when it begins; who is lost while it runs, is lost because of it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

from mpipar.errors import ProtocolError
from mpipar.runtime.machines.loads import WorkerLoads
from mpipar.runtime.machines.messages import (
    MASTER,
    POLICY,
    Claim,
    Granted,
    Idle,
    Place,
    Rank,
    Refused,
    Send,
    StealFrom,
    TaskFailed,
    TaskOverdue,
    TaskStarted,
)
from mpipar.runtime.machines.report_interval import report_seconds
from mpipar.runtime.machines.task_state import (
    FINISHED,
    ON_A_WORKER,
    TaskEvent,
    TaskState,
    TrackedTask,
)
from mpipar.runtime.machines.victims import Victims
from mpipar.runtime.stage import QUARANTINED, TIMEOUT, GivenUpTask

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence

    from mpipar.runtime.machines.loads import WorkerLoad
    from mpipar.runtime.stage import Policy, Task


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
        self.entries: dict[int, TrackedTask] = {}
        ranks = list(ranks)
        delay = report_seconds(len(ranks) + 1)
        self.loads = WorkerLoads(ranks, threads=threads, delay=delay)
        self.market = Victims(self.loads, threads=threads, dice=dice)
        self.failures: list[
            GivenUpTask
        ] = []  # of tasks given up, and not yet taken by `take_failures`
        self.stage_failure: TaskFailed | None = None
        self.steals = 0
        self.stolen = 0
        self.finished = 0  # tasks HELD, DONE or ASIDE
        self.rerun = 0  # tasks that a lost rank had
        self._policy = policy
        self._sums = sums
        self._dice = dice
        self._suspects: deque[TrackedTask] = deque()  # WAITING for a worker that has none of them

    # Placement

    def add(self, tasks: Sequence[Task], home: dict[int, Rank]) -> list[Send]:
        """Place the first tasks: where `home` says that a block is cached, the others evenly.

        Every worker gets a Place, even an empty one: it opens the run for its thieves.
        """
        shares: dict[Rank, list[Task]] = {rank: [] for rank in self.loads}
        rest = []
        for task in tasks:
            self.entries[task.id] = TrackedTask(task)
            rank = home.get(task.block) if task.block is not None else None
            if rank in shares and self._dice is None:
                shares[rank].append(task)
            else:
                rest.append(task)
        self._spread(rest, shares)
        return [self._place(rank, share) for rank, share in shares.items()]

    def add_more(self, tasks: Sequence[Task]) -> list[Send]:
        """Place tasks that come later, each on the worker that has least to do."""
        entries = [TrackedTask(task) for task in tasks]
        self.entries.update((entry.task.id, entry) for entry in entries)
        return self._assign_waiting(entries)

    def forget(self, tasks: Iterable[int]) -> None:
        """Drop what is known of tasks that are over; they are counted no more."""
        for number in tasks:
            del self.entries[number]
            self.finished -= 1

    def _spread(self, tasks: list[Task], shares: dict[Rank, list[Task]]) -> None:
        """Cut tasks into runs of neighbours that level the shares."""
        if self._dice is not None and shares:
            for task in tasks:
                shares[self._dice.choice(list(shares))].append(task)
            return
        position, left = 0, len(tasks) + sum(len(share) for share in shares.values())
        by_load = sorted(shares, key=lambda rank: -len(shares[rank]))
        for index, rank in enumerate(by_load):
            level = -(-left // (len(by_load) - index))  # of this rank and those after it
            take = min(len(tasks) - position, max(0, level - len(shares[rank])))
            shares[rank].extend(tasks[position : position + take])
            position += take
            left -= len(shares[rank])

    def _place(self, rank: Rank, tasks: Sequence[Task], *, apart: bool = False) -> Send:
        self._book(TaskEvent.ASSIGNED, rank, [task.id for task in tasks])
        return Send(rank, Place(self.serial, tuple(tasks), apart))

    # Booking

    def _book(
        self, event: TaskEvent, rank: Rank, tasks: Sequence[int], victim: Rank = MASTER
    ) -> None:
        """Enter one event of some tasks in all books: nothing else changes the state of a task.

        The books are the tasks' own states, the loads, the victims and the count of finished tasks.

        rank    the worker on which the tasks are, or come to
        victim  of MOVED: the worker that had the tasks
        """
        for number in tasks:
            self.entries[number].move(event, rank)
        match event:
            case TaskEvent.FINISHED:
                self.loads.finish(rank, tasks)
                self.market.note(rank, heard=True)
                self.finished += len(tasks)
            case TaskEvent.BANKED:
                self.loads[rank].held.difference_update(tasks)
            case TaskEvent.ASSIGNED:
                self.loads.book(rank, tasks)
                self._assigned(rank)
                if tasks:
                    self.market.feed(rank)
            case TaskEvent.MOVED:
                self.loads.unbook(victim, tasks)
                self.loads.book(rank, tasks)
                self.market.note(victim)
                self._assigned(rank)
            case TaskEvent.FAILED:
                self.loads.unbook(rank, tasks)
                self.market.note(rank)
            case TaskEvent.RANK_LOST:
                self.finished -= len(self.loads[rank].held)
                self.market.lose(rank)
                self.loads.lose(rank)
            case TaskEvent.GIVEN_UP:
                self.finished += len(tasks)

    def _assigned(self, rank: Rank) -> None:
        """A worker is sent an assignment: some tasks, or none."""
        load = self.loads[rank]
        load.issued += 1
        load.dry = False
        load.since = self.loads.now
        self.market.note(rank, heard=True)

    def _acquit(self, load: WorkerLoad) -> None:
        """The suspect of a worker may have ended there; the next one can come."""
        if load.suspect is not None and load.suspect not in load.placed:
            load.suspect, load.started = None, False

    # What workers say

    def finish(self, rank: Rank, tasks: Sequence[int], seconds: float) -> list[Send]:
        """Tasks are done; their contributions are in the partial of `rank`."""
        self.loads.count(rank, len(tasks), seconds)
        self._book(TaskEvent.FINISHED, rank, tasks)
        if not self._sums:
            self._book(TaskEvent.BANKED, rank, tasks)
        self._acquit(self.loads[rank])
        return self._deal_suspects(rank)

    def fail(self, rank: Rank, message: TaskFailed) -> list[Send]:
        """A task raised: try it elsewhere, or give it up."""
        if message.task is None:
            self.stage_failure = message
            return []
        entry = self.entries[message.task]
        self._book(TaskEvent.FAILED, rank, [message.task])
        entry.failed_on += (rank,)
        self._acquit(self.loads[rank])
        if len(entry.failed_on) < self._policy.tries:
            again = self._assign_waiting([entry], apart=True)
            return again + self._deal_suspects(rank) + self._feed()
        self._give_up(entry, message.kind, message.text, message.traceback, entry.failed_on)
        return self._deal_suspects(rank) + self._feed()

    def note(self, rank: Rank, message: TaskStarted | TaskOverdue) -> None:
        """A worker begins with its suspect, or is about to be lost because of a task."""
        load = self.loads[rank]
        if isinstance(message, TaskStarted):
            load.started = load.suspect == message.task
        elif message.task in load.placed:
            load.overdue = message.task

    def _give_up(
        self, entry: TrackedTask, kind: str, text: str, traceback: str, ranks: tuple[Rank, ...]
    ) -> None:
        task = entry.task
        self._book(TaskEvent.GIVEN_UP, ranks[-1], [task.id])
        self.failures.append(GivenUpTask(task.id, kind, text, traceback, ranks, task.block))

    def take_failures(self) -> list[GivenUpTask]:
        """Return the tasks given up since the last call."""
        failures, self.failures = self.failures, []
        return failures

    def claim(self, thief: Rank, message: Claim) -> list[Send]:
        """A thief asks for tasks: it gets those that its victim still owns."""
        granted: list[int] = []
        refused: list[int] = []
        for number in message.tasks:
            entry = self.entries.get(number)  # None: it was over long ago
            mine = entry and entry.state is TaskState.PLACED and entry.rank == message.victim
            (granted if mine else refused).append(number)
        if thief != message.victim:
            self.market.raid(thief, None)
        sends = []
        if granted:
            self._grant(thief, message.victim, granted)
            sends.append(Send(thief, Granted(self.serial, message.claim, tuple(granted))))
        if refused:
            sends.append(Send(thief, Refused(self.serial, message.claim, tuple(refused))))
        return sends + self._feed()

    def _grant(self, thief: Rank, victim: Rank, tasks: list[int]) -> None:
        if thief == victim:  # it claims back what it gave to a lost thief: nothing moves
            self._assigned(thief)
            return
        self._book(TaskEvent.MOVED, thief, tasks, victim)
        self.steals += 1
        self.stolen += len(tasks)

    def idle(self, rank: Rank, message: Idle) -> list[Send]:
        """A worker has nothing to start."""
        self.market.raid(rank, None)
        if message.empty_victim is not None and message.empty_victim in self.loads:
            victim = self.loads[message.empty_victim]
            victim.dry = victim.dry or message.seen == victim.issued
            self.market.note(message.empty_victim)
        self.market.ask(rank)
        return self._feed()

    def _feed(self) -> list[Send]:
        """Name a victim to the hungry workers for which there is a good one."""
        return [
            Send(thief, StealFrom(self.serial, victim, self.market.share(thief, victim)))
            for thief, victim in self.market.match()
        ]

    def tick(self, seconds: float) -> list[Send]:
        """Time has passed: a worker that is silent for long is a victim after all."""
        self.loads.now += seconds
        return self._feed()

    # Gain and loss

    def rank_joined(self, rank: Rank) -> list[Send]:
        """A worker has come: it gets what had nowhere to go, and may steal the rest."""
        self.loads.join(rank)
        suspects = {entry.task.id for entry in self._suspects}
        idle = [e for e in self.entries.values() if e.state is TaskState.WAITING]
        waiting = [entry for entry in idle if entry.task.id not in suspects]
        opened = [self._place(rank, ())]
        return opened + self._assign_waiting(waiting) + self._deal_suspects() + self._feed()

    def rank_lost(self, rank: Rank) -> list[Send]:
        """Everything that was on a lost rank, contributions included, is to be done again."""
        load = self.loads[rank]
        held, placed = sorted(load.held), sorted(load.placed)
        self._book(TaskEvent.RANK_LOST, rank, [*held, *placed])
        back = [self.entries[number] for number in held]
        unfinished = [self.entries[number] for number in placed]
        waiting = len(self._suspects)
        for entry in unfinished:
            if load.overdue is None:
                self._suspect(entry, rank, load)
            elif entry.task.id != load.overdue or self._may_try_again(entry, rank):
                back.append(entry)
        self.rerun += len(back) + len(self._suspects) - waiting
        return self._assign_waiting(back) + self._deal_suspects() + self._feed()

    def _may_try_again(self, entry: TrackedTask, rank: Rank) -> bool:
        """A task took too long on a rank: whether it can be run again, else it is given up."""
        entry.failed_on += (rank,)
        if len(entry.failed_on) < self._policy.tries:
            return True
        text = f"it took longer than {self._policy.timeout:g} s"
        self._give_up(entry, TIMEOUT, text, "", entry.failed_on)
        return False

    def _suspect(self, entry: TrackedTask, rank: Rank, load: WorkerLoad) -> None:
        """A rank was lost with this task: set it aside, or let it wait for its next try."""
        if not entry.died_on or (load.suspect == entry.task.id and load.started):
            entry.died_on += (rank,)
        if len(entry.died_on) < self._policy.deaths:
            self._suspects.append(entry)
            return
        ranks = ", ".join(map(str, entry.died_on))
        text = f"ranks {ranks} were lost while it ran there"
        self._give_up(entry, QUARANTINED, text, "", entry.died_on)

    def _deal_suspects(self, rank: Rank | None = None) -> list[Send]:
        """Give each worker that has no suspect the next one; only one worker may have changed."""
        if not self._suspects:
            return []
        sends = []
        for other in list(self.loads.by_need()) if rank is None else [rank]:
            if self._suspects and self.loads[other].suspect is None:
                entry = self._suspects.popleft()
                self.loads[other].suspect = entry.task.id
                sends.append(self._place(other, [entry.task], apart=True))
        return sends

    def _assign_waiting(self, entries: list[TrackedTask], *, apart: bool = False) -> list[Send]:
        """Deal tasks out to where they have not failed, the least loaded first."""
        shares: dict[Rank, list[Task]] = {}
        for entry in entries if self.loads else ():
            others = (rank for rank in self.loads.by_need() if rank not in entry.failed_on)
            rank = next(others, next(self.loads.by_need()))
            self.loads.book(rank, [entry.task.id])  # so that the next choice counts this task
            shares.setdefault(rank, []).append(entry.task)
        return [self._place(rank, tasks, apart=apart) for rank, tasks in shares.items()]

    # The end

    @property
    def all_finished(self) -> bool:
        """Whether every task is HELD, DONE or ASIDE."""
        return self.finished == len(self.entries)

    def holders(self) -> set[Rank]:
        """Return the ranks whose partials contain something."""
        return {rank for rank, load in self.loads.items() if load.held}

    def bank(self) -> None:
        """The sum of all partials has arrived, or there is none to wait for."""
        for rank, load in self.loads.items():
            self._book(TaskEvent.BANKED, rank, list(load.held))

    # Self-check

    def sanity_check(self) -> None:
        """Raise ProtocolError if the books disagree: what is kept at hand is counted again.

        The time that this takes grows with the number of tasks; tests call it after each step.
        """
        faults = [*self._faults(), *self._waiting_faults()]
        faults += [*self.loads.faults(), *self.market.faults()]
        if faults:
            raise ProtocolError("the scheduler's books disagree: " + "; ".join(faults))

    def _faults(self) -> Iterator[str]:
        """Compare the loads and the count of finished tasks with the states of all tasks."""
        found: dict[tuple[TaskState, Rank | None], set[int]] = defaultdict(set)
        for number, entry in self.entries.items():
            found[entry.state, entry.rank].add(number)
        for rank, load in self.loads.items():
            if load.placed != found.pop((TaskState.PLACED, rank), set()):
                yield f"rank {rank} has other tasks than are placed there"
            if load.held != found.pop((TaskState.HELD, rank), set()):
                yield f"rank {rank} holds other tasks than its load says"
        for state, owner in found:
            if state in ON_A_WORKER or (state is not TaskState.DONE and owner is not None):
                yield f"a task is {state.name} on rank {owner}"
        count = sum(entry.state in FINISHED for entry in self.entries.values())
        if self.finished != count:
            yield f"{self.finished} tasks are counted as finished, not {count}"

    def _waiting_faults(self) -> Iterator[str]:
        """Compare the suspects, and the workers that could take one, with the waiting tasks."""
        waiting = {n for n, entry in self.entries.items() if entry.state is TaskState.WAITING}
        suspects = [entry.task.id for entry in self._suspects]
        if len(set(suspects)) < len(suspects) or not waiting.issuperset(suspects):
            yield "a suspect waits twice, or is not waiting"
        if self.loads and len(suspects) < len(waiting):
            yield "a task waits although there is a worker for it"
        if suspects and any(load.suspect is None for load in self.loads.values()):
            yield "a suspect waits although a worker has none"
