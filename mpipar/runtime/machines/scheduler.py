"""The scheduler on rank 0: it alone decides which worker owns each task. No I/O, no clock.

The states of a task are in `task_state.py`. When a rank is lost, one of its tasks may have killed
it, but which one is not known. So all tasks that the rank had not finished are suspects: from then
on a worker gets one suspect at a time, and reports when that begins. If the worker is lost while
the suspect runs, the suspect is to blame.
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
        self.tasks: dict[int, TrackedTask] = {}
        ranks = list(ranks)
        report_delay = report_seconds(len(ranks) + 1)
        self.loads = WorkerLoads(ranks, threads=threads, report_delay=report_delay)
        self.victims = Victims(self.loads, threads=threads, dice=dice)
        self.failures: list[GivenUpTask] = []  # those that `take_failures` has not returned yet
        self.stage_failure: TaskFailed | None = None
        self.steals = 0  # claims granted to a thief
        self.stolen = 0  # tasks that these moved
        self.finished = 0  # tasks HELD, DONE or ASIDE
        self.rerun = 0  # tasks that are run again because a rank was lost
        self._policy = policy
        self._sums = sums
        self._dice = dice
        self._suspects: deque[TrackedTask] = deque()  # WAITING for a worker without a suspect

    # Placement

    def add(self, tasks: Sequence[Task], cached_on: dict[int, Rank]) -> list[Send]:
        """Place the first tasks: on the rank that has their block, the others evenly.

        Every worker gets a Place, even without tasks: before it, a worker answers no thief.

        cached_on  the rank that has each block in its cache, by number of the block
        """
        shares: dict[Rank, list[Task]] = {rank: [] for rank in self.loads}
        rest = []
        for task in tasks:
            self.tasks[task.id] = TrackedTask(task)
            rank = cached_on.get(task.block) if task.block is not None else None
            if rank in shares and self._dice is None:
                shares[rank].append(task)
            else:
                rest.append(task)
        self._spread(rest, shares)
        return [self._place(rank, share) for rank, share in shares.items()]

    def add_more(self, tasks: Sequence[Task]) -> list[Send]:
        """Place tasks that come later, each on the worker with the fewest tasks."""
        new = [TrackedTask(task) for task in tasks]
        self.tasks.update((tracked.task.id, tracked) for tracked in new)
        return self._assign(new)

    def forget(self, tasks: Iterable[int]) -> None:
        """Drop tasks that are DONE or ASIDE; they are not counted any more."""
        for number in tasks:
            del self.tasks[number]
            self.finished -= 1

    def _spread(self, tasks: list[Task], shares: dict[Rank, list[Task]]) -> None:
        """Add tasks to the shares, neighbours together, so that all shares are equally long."""
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

    def _place(self, rank: Rank, tasks: Sequence[Task], *, alone: bool = False) -> Send:
        self._book(TaskEvent.ASSIGNED, rank, [task.id for task in tasks])
        return Send(rank, Place(self.serial, tuple(tasks), alone))

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
            self.tasks[number].move(event, rank)
        match event:
            case TaskEvent.FINISHED:
                self.loads.finish_tasks(rank, tasks)
                self.victims.update(rank, heard=True)
                self.finished += len(tasks)
            case TaskEvent.BANKED:
                self.loads[rank].held.difference_update(tasks)
            case TaskEvent.ASSIGNED:
                self.loads.add_tasks(rank, tasks)
                self._assigned(rank)
                if tasks:
                    self.victims.remove_request(rank)
            case TaskEvent.MOVED:
                self.loads.remove_tasks(victim, tasks)
                self.loads.add_tasks(rank, tasks)
                self.victims.update(victim)
                self._assigned(rank)
            case TaskEvent.FAILED:
                self.loads.remove_tasks(rank, tasks)
                self.victims.update(rank)
            case TaskEvent.RANK_LOST:
                self.finished -= len(self.loads[rank].held)
                self.victims.rank_lost(rank)
                self.loads.rank_lost(rank)
            case TaskEvent.GIVEN_UP:
                self.finished += len(tasks)

    def _assigned(self, rank: Rank) -> None:
        """A worker is sent an assignment: some tasks, or none."""
        load = self.loads[rank]
        load.assignments += 1
        load.is_empty = False
        load.last_active = self.loads.now
        self.victims.update(rank, heard=True)

    def _clear_suspect(self, load: WorkerLoad) -> None:
        """Tasks of a worker have ended: if its suspect is one of them, the worker has none now."""
        if load.suspect is not None and load.suspect not in load.placed:
            load.suspect, load.suspect_started = None, False

    # Messages of workers

    def finish(self, rank: Rank, tasks: Sequence[int], seconds: float) -> list[Send]:
        """Tasks are done, in so many seconds; their contributions are in the worker's partial."""
        self.loads.count_done(rank, len(tasks), seconds)
        self._book(TaskEvent.FINISHED, rank, tasks)
        if not self._sums:
            self._book(TaskEvent.BANKED, rank, tasks)
        self._clear_suspect(self.loads[rank])
        return self._place_suspects(rank)

    def fail(self, rank: Rank, message: TaskFailed) -> list[Send]:
        """A task raised an exception: try it elsewhere, or give it up."""
        if message.task is None:
            self.stage_failure = message
            return []
        tracked = self.tasks[message.task]
        self._book(TaskEvent.FAILED, rank, [message.task])
        tracked.failed_on += (rank,)
        self._clear_suspect(self.loads[rank])
        if len(tracked.failed_on) < self._policy.tries:
            again = self._assign([tracked], alone=True)
            return again + self._place_suspects(rank) + self._name_victims()
        self._give_up(tracked, message.kind, message.text, message.traceback, tracked.failed_on)
        return self._place_suspects(rank) + self._name_victims()

    def set_blame(self, rank: Rank, message: TaskStarted | TaskOverdue) -> None:
        """A worker says which task is to blame if it is lost now: its suspect, or one overdue."""
        load = self.loads[rank]
        if isinstance(message, TaskStarted):
            load.suspect_started = load.suspect == message.task
        elif message.task in load.placed:
            load.overdue = message.task

    def _give_up(
        self, tracked: TrackedTask, kind: str, text: str, traceback: str, ranks: tuple[Rank, ...]
    ) -> None:
        task = tracked.task
        self._book(TaskEvent.GIVEN_UP, ranks[-1], [task.id])
        self.failures.append(GivenUpTask(task.id, kind, text, traceback, ranks, task.block))

    def take_failures(self) -> list[GivenUpTask]:
        """Return the tasks given up since the last call."""
        failures, self.failures = self.failures, []
        return failures

    def claim(self, thief: Rank, message: Claim) -> list[Send]:
        """A thief claims tasks from a victim: those that the victim still owns are granted."""
        granted: list[int] = []
        refused: list[int] = []
        for number in message.tasks:
            tracked = self.tasks.get(number)  # None: forgotten
            owned = tracked and tracked.state is TaskState.PLACED and tracked.rank == message.victim
            (granted if owned else refused).append(number)
        if thief != message.victim:
            self.victims.end_steal(thief)
        sends = []
        if granted:
            self._grant(thief, message.victim, granted)
            sends.append(Send(thief, Granted(self.serial, message.claim, tuple(granted))))
        if refused:
            sends.append(Send(thief, Refused(self.serial, message.claim, tuple(refused))))
        return sends + self._name_victims()

    def _grant(self, thief: Rank, victim: Rank, tasks: list[int]) -> None:
        if thief == victim:  # a claim for tasks that a lost thief had in hand: nothing moves
            self._assigned(thief)
            return
        self._book(TaskEvent.MOVED, thief, tasks, victim)
        self.steals += 1
        self.stolen += len(tasks)

    def idle(self, rank: Rank, message: Idle) -> list[Send]:
        """A worker has no task to start: name a victim to it, now or later."""
        self.victims.end_steal(rank)
        if message.empty_victim is not None and message.empty_victim in self.loads:
            victim = self.loads[message.empty_victim]
            victim.is_empty = victim.is_empty or message.seen == victim.assignments
            self.victims.update(message.empty_victim)
        self.victims.add_request(rank)
        return self._name_victims()

    def _name_victims(self) -> list[Send]:
        """Name a victim to each idle worker for which there is a good one."""
        return [
            Send(thief, StealFrom(self.serial, victim, self.victims.share(thief, victim)))
            for thief, victim in self.victims.match()
        ]

    def tick(self, seconds: float) -> list[Send]:
        """Time has passed: workers that are silent are slower than measured, so better victims."""
        self.loads.now += seconds
        return self._name_victims()

    # Gain and loss

    def rank_joined(self, rank: Rank) -> list[Send]:
        """A worker has come: place the tasks for which there was no worker."""
        self.loads.rank_joined(rank)
        suspects = {tracked.task.id for tracked in self._suspects}
        idle = [e for e in self.tasks.values() if e.state is TaskState.WAITING]
        waiting = [tracked for tracked in idle if tracked.task.id not in suspects]
        opened = [self._place(rank, ())]
        return opened + self._assign(waiting) + self._place_suspects() + self._name_victims()

    def rank_lost(self, rank: Rank) -> list[Send]:
        """A rank is lost: do its tasks again, also those whose contributions only it held."""
        load = self.loads[rank]
        held, placed = sorted(load.held), sorted(load.placed)
        self._book(TaskEvent.RANK_LOST, rank, [*held, *placed])
        back = [self.tasks[number] for number in held]
        unfinished = [self.tasks[number] for number in placed]
        waiting = len(self._suspects)
        for tracked in unfinished:
            if load.overdue is None:
                self._add_suspect(tracked, rank, load)
            elif tracked.task.id != load.overdue or self._may_try_again(tracked, rank):
                back.append(tracked)
        self.rerun += len(back) + len(self._suspects) - waiting
        return self._assign(back) + self._place_suspects() + self._name_victims()

    def _may_try_again(self, tracked: TrackedTask, rank: Rank) -> bool:
        """Whether a task that took too long on a rank is tried again; if not, give it up."""
        tracked.failed_on += (rank,)
        if len(tracked.failed_on) < self._policy.tries:
            return True
        text = f"it took longer than {self._policy.timeout:g} s"
        self._give_up(tracked, TIMEOUT, text, "", tracked.failed_on)
        return False

    def _add_suspect(self, tracked: TrackedTask, rank: Rank, load: WorkerLoad) -> None:
        """A rank was lost with this task: let the task wait for its next try, or give it up."""
        if not tracked.died_on or (load.suspect == tracked.task.id and load.suspect_started):
            tracked.died_on += (rank,)
        if len(tracked.died_on) < self._policy.deaths:
            self._suspects.append(tracked)
            return
        ranks = ", ".join(map(str, tracked.died_on))
        text = f"ranks {ranks} were lost while it ran there"
        self._give_up(tracked, QUARANTINED, text, "", tracked.died_on)

    def _place_suspects(self, rank: Rank | None = None) -> list[Send]:
        """Place the next suspect on each worker without one; `rank`: on that worker only."""
        if not self._suspects:
            return []
        sends = []
        for other in list(self.loads.least_loaded_first()) if rank is None else [rank]:
            if self._suspects and self.loads[other].suspect is None:
                tracked = self._suspects.popleft()
                self.loads[other].suspect = tracked.task.id
                sends.append(self._place(other, [tracked.task], alone=True))
        return sends

    def _assign(self, waiting: list[TrackedTask], *, alone: bool = False) -> list[Send]:
        """Place tasks, each on the least loaded worker on which the task has not failed."""
        shares: dict[Rank, list[Task]] = {}
        for tracked in waiting if self.loads else ():
            ranks = self.loads.least_loaded_first()
            rank = next((rank for rank in ranks if rank not in tracked.failed_on), None)
            if rank is None:
                rank = next(self.loads.least_loaded_first())
            self.loads.add_tasks(rank, [tracked.task.id])  # the next choice must count this task
            shares.setdefault(rank, []).append(tracked.task)
        return [self._place(rank, tasks, alone=alone) for rank, tasks in shares.items()]

    # The end

    @property
    def all_finished(self) -> bool:
        """Whether every task is HELD, DONE or ASIDE."""
        return self.finished == len(self.tasks)

    def holders(self) -> set[Rank]:
        """Return the workers whose partials contain contributions of tasks."""
        return {rank for rank, load in self.loads.items() if load.held}

    def bank(self) -> None:
        """The sum of all partials has arrived at rank 0, or there is no sum."""
        for rank, load in self.loads.items():
            self._book(TaskEvent.BANKED, rank, list(load.held))

    # Self-check

    def sanity_check(self) -> None:
        """Raise ProtocolError if states, loads, victims and counts disagree.

        Everything is counted again, which takes a time that grows with the number of tasks: for
        tests, after each step.
        """
        faults = [*self._faults(), *self._waiting_faults()]
        faults += [*self.loads.faults(), *self.victims.faults()]
        if faults:
            raise ProtocolError("the scheduler's books disagree: " + "; ".join(faults))

    def _faults(self) -> Iterator[str]:
        """Compare the loads and the count of finished tasks with the states of all tasks."""
        found: dict[tuple[TaskState, Rank | None], set[int]] = defaultdict(set)
        for number, tracked in self.tasks.items():
            found[tracked.state, tracked.rank].add(number)
        for rank, load in self.loads.items():
            if load.placed != found.pop((TaskState.PLACED, rank), set()):
                yield f"rank {rank} has other tasks than are placed there"
            if load.held != found.pop((TaskState.HELD, rank), set()):
                yield f"rank {rank} holds other tasks than its load says"
        for state, owner in found:
            if state in ON_A_WORKER or (state is not TaskState.DONE and owner is not None):
                yield f"a task is {state.name} on rank {owner}"
        count = sum(tracked.state in FINISHED for tracked in self.tasks.values())
        if self.finished != count:
            yield f"{self.finished} tasks are counted as finished, not {count}"

    def _waiting_faults(self) -> Iterator[str]:
        """Compare the suspects, and the workers that could take one, with the waiting tasks."""
        waiting = {n for n, tracked in self.tasks.items() if tracked.state is TaskState.WAITING}
        suspects = [tracked.task.id for tracked in self._suspects]
        if len(set(suspects)) < len(suspects) or not waiting.issuperset(suspects):
            yield "a suspect waits twice, or is not waiting"
        if self.loads and len(suspects) < len(waiting):
            yield "a task waits although there is a worker for it"
        if suspects and any(load.suspect is None for load in self.loads.values()):
            yield "a suspect waits although a worker has none"
