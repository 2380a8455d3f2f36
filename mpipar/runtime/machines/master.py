"""Rank 0's machine: it gives the messages of workers to scheduler, file server and reduction.

      loop --begin, handle, tick--> MasterMachine --Send--> workers
                                    |   |   |   +--LostWorker--> loop: a worker to cut off
             who owns each task: Scheduler  |  RootReduction: adds up the partials
                                        FileServer: which block to read for whom

    A run:  PLACING --all HELD--> COLLECTING --all layouts known--> REDUCING --sum here--> OVER
               ^                       |                                |
               +------- rank lost -----+--------------------------------+

Pure: messages and the passing of time come in; what to send and which worker to cut off goes out.
Without sums a run goes from PLACING to OVER directly.
"""

from __future__ import annotations

import math
import random
from bisect import insort
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias

from mpipar.errors import MpiparError, ProtocolError, RequeueError, TaskFailedError
from mpipar.runtime.machines.broadcast import BroadcastRoutes
from mpipar.runtime.machines.file_server import FileServer
from mpipar.runtime.machines.liveness import (
    LONGEST_STEP,
    LostWorker,
    WorkerLiveness,
    who_leaves,
)
from mpipar.runtime.machines.messages import (
    POLICY,
    Beat,
    Begin,
    BlockRequest,
    Bye,
    Claim,
    Collect,
    Collected,
    Crashed,
    Finished,
    Forget,
    Hello,
    Idle,
    Knobs,
    Layout,
    NeedArrays,
    Partial,
    Rank,
    RankLost,
    Send,
    TaskFailed,
    TaskOverdue,
    TaskStarted,
    ToMaster,
    Unreachable,
)
from mpipar.runtime.machines.peer_timeouts import LONG
from mpipar.runtime.machines.reduction import RootReduction, WholeSums, tree_of_hosts
from mpipar.runtime.machines.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mpipar.runtime.stage import Policy, Stage, Sums, Task, Totals

MasterAction: TypeAlias = Send | LostWorker


class RunPhase(Enum):
    """How far a run is; see the diagram above."""

    PLACING = auto()
    COLLECTING = auto()
    REDUCING = auto()
    OVER = auto()


class MasterRun:
    """The run under way, as rank 0 sees it."""

    def __init__(self, begin: Begin, scheduler: Scheduler, *, sealed: bool) -> None:
        self.begin = begin
        self.scheduler = scheduler
        self.is_stream = not sealed
        self.sealed = sealed  # whether no more tasks will come
        self.phase = RunPhase.PLACING
        self.results: dict[int, Any] = {}  # of a stream: those not taken yet
        self.forgotten = 0  # of a stream: tasks whose results have been taken
        self.number = 0  # of the attempt at a reduction
        self.asked: set[Rank] = set()  # COLLECTING: the workers that have not answered
        self.layouts: dict[Rank, Layout] = {}
        self.root: RootReduction | None = None
        self.totals: Totals | None = None
        self.waited = 0.0  # REDUCING: seconds in which no part of the sum has come
        self.error: BaseException | None = None
        self.done: dict[Rank, int] = {}
        self.seconds: dict[Rank, float] = {}
        self.peer_blocks = 0

    def totals_of(self, layout: Layout) -> Totals:
        """Return what takes the sums."""
        return self.begin.stage.totals(dict(layout)) or WholeSums(layout)

    @property
    def sums(self) -> Sums | None:
        """The sums of a stage that does not make totals of its own."""
        return self.totals.sums if isinstance(self.totals, WholeSums) else None

    @property
    def over(self) -> bool:
        """Whether the result, or the error, is there."""
        return self.error is not None or self.phase is RunPhase.OVER

    @property
    def total(self) -> int:
        """How many tasks it has had so far."""
        return self.forgotten + len(self.scheduler.tasks)

    @property
    def finished(self) -> int:
        """How many of its tasks have ended, well or not."""
        return self.forgotten + self.scheduler.finished

    @property
    def mean_seconds(self) -> float:
        """The seconds of an average task, as far as is known; 0 at first."""
        return self.scheduler.loads.mean_seconds()


class MasterMachine:
    """All of rank 0's decisions."""

    def __init__(
        self,
        hellos: dict[Rank, Hello],
        *,
        threads: int,
        knobs: Knobs,
        memories: Mapping[Rank, str] | None = None,
        patience: float = math.inf,
    ) -> None:
        """Know the workers of the pool.

        hellos    of all workers; those of later ones are added, and those of lost ones are kept
        memories  ranks, the master included, with the same name can map each other's memory
        patience  seconds that a worker may be silent
        """
        self.hellos = hellos
        self.ranks = sorted(hellos)
        self.expected = 0  # workers that may still come; the loop keeps it up to date
        self._alive = set(self.ranks)
        self.files = FileServer()
        self.run: MasterRun | None = None
        self._threads = threads
        self._dice = None if knobs.shuffle is None else random.Random(knobs.shuffle)
        self._plain = not knobs.node_memory
        self._routes = BroadcastRoutes(memories or {})
        self._patience = patience
        self._liveness = WorkerLiveness(self.ranks, patience)
        self._within_hosts = False  # whether sums go over trees within hosts
        self._serial = 0

    # From the program

    def begin(
        self,
        stage: Stage,
        shared: Mapping[str, Any],
        tasks: Sequence[Task],
        policy: Policy = POLICY,
        *,
        sealed: bool = True,
    ) -> list[Send]:
        """Start a run; the one before must be over. If it is not sealed, tasks can be added."""
        self._serial += 1
        self._liveness.begin()
        tree = self._routes.plan(self.ranks)
        begin = Begin(self._serial, self.files.generation, stage, shared, tree, policy, self._plain)
        scheduler = Scheduler(
            self._serial,
            self.ranks,
            threads=self._threads,
            policy=policy,
            sums=stage.has_sums,
            dice=self._dice,
        )
        run = self.run = MasterRun(begin, scheduler, sealed=sealed)
        run.done = dict.fromkeys(self.ranks, 0)
        run.seconds = dict.fromkeys(self.ranks, 0.0)
        sends = self._routes.start(begin)
        return sends + scheduler.add(tasks, self.files.home) + self._advance(run)

    def add(self, tasks: Sequence[Task]) -> list[Send]:
        """More tasks for the run under way, which is not sealed."""
        assert self.run is not None
        return self.run.scheduler.add_more(tasks)

    def seal(self) -> list[Send]:
        """No more tasks will come."""
        assert self.run is not None
        self.run.sealed = True
        return self._advance(self.run)

    def take_results(self) -> list[tuple[int, Any]]:
        """Return what has come of tasks since the last call, and forget those tasks."""
        assert self.run is not None
        results, self.run.results = self.run.results, {}
        self.run.scheduler.forget(results)
        self.run.forgotten += len(results)
        return list(results.items())

    def end(self) -> list[Send]:
        """The run is over, well or not: workers drop it."""
        if self.run is None:
            return []
        serial, self.run = self.run.begin.serial, None
        self.files.drop_requests()
        return [Send(rank, Forget(serial)) for rank in self.ranks]

    def tick(self, seconds: float) -> list[MasterAction]:
        """Time has passed; a worker that has been silent for too long is cut off."""
        run = self.run
        if run is None:
            return []
        actions: list[MasterAction] = [*run.scheduler.tick(seconds)]
        actions += self._watch_sum(run, seconds)
        for rank, silence in self._liveness.tick(seconds).items():
            actions += self.rank_lost(rank, f"silent for {silence:.3g} s, so hung or cut off")
        if self._liveness.beat_is_due():
            actions += [Send(rank, Beat(run.begin.serial)) for rank in self.ranks]
        return actions

    def unreadable(self, generation: int, block: int, error: BaseException) -> None:
        """A block could not be read: the run ends with that very error."""
        if self.files.unreadable(generation, block) and self.run:
            self.run.error = self.run.error or error

    # From workers

    def handle(self, source: Rank, message: ToMaster) -> Sequence[MasterAction]:
        """Take one message; return what to do."""
        if source not in self._alive:
            return []  # a worker that was cut off has come back: the transport tells it to stop
        self._liveness.heard(source)
        match message:
            case BlockRequest():
                self.files.request(source, message)
            case Crashed():
                raise ProtocolError(f"worker rank {source} crashed\n{message.text}")
            case Hello() | Bye() | Beat():
                pass  # being heard at all is what counts
            case _:
                run = self.run
                if run is None or run.begin.serial != message.serial:
                    return []
                if isinstance(message, NeedArrays):
                    return [self._routes.answer(run.begin, source, message, self.ranks)]
                return self._in_run(run, source, message)
        return []

    def _in_run(
        self,
        run: MasterRun,
        source: Rank,
        message: TaskStarted
        | Finished
        | TaskFailed
        | TaskOverdue
        | Unreachable
        | Idle
        | Claim
        | Collected
        | Partial,
    ) -> Sequence[MasterAction]:
        actions: Sequence[MasterAction] = ()
        match message:
            case TaskStarted():
                run.scheduler.set_blame(source, message)
            case Finished():
                actions = self._on_finished(run, source, message)
            case TaskFailed():
                actions = run.scheduler.fail(source, message)
                self._note_failures(run, source)
                actions = [*actions, *self._advance(run)]
            case Idle():
                actions = run.scheduler.idle(source, message)
            case Claim():
                actions = run.scheduler.claim(source, message)
            case Collected():
                actions = self._on_collected(run, source, message)
            case Partial():
                actions = self._on_partial(run, message)
            case TaskOverdue():
                run.scheduler.set_blame(source, message)
                why = f"task {message.task} took longer than {run.begin.policy.timeout:g} s"
                actions = self.rank_lost(source, why)
            case Unreachable():
                actions = self._cut_off_one_of(source, message.rank)
        return actions

    def _on_finished(self, run: MasterRun, source: Rank, message: Finished) -> list[Send]:
        numbers = [task for task, _ in message.results]
        sends = run.scheduler.finish(source, numbers, message.seconds)
        run.done[source] += len(message.results)
        run.seconds[source] += message.seconds
        run.peer_blocks += message.peer_blocks
        run.results.update(message.results)
        if not run.is_stream:
            self._note_homes(run, source, numbers)
        return sends + self._advance(run)

    def _note_homes(self, run: MasterRun, source: Rank, tasks: Sequence[int]) -> None:
        for task in tasks:
            block = run.scheduler.tasks[task].task.block
            if block is not None:
                self.files.home[block] = source

    def _note_failures(self, run: MasterRun, source: Rank) -> None:
        """End the run with an error if a task was given up; in a stream that is a result."""
        broken = run.scheduler.stage_failure
        if broken is not None and run.error is None:
            what = f"{type(run.begin.stage).__name__} failed on rank {source}"
            text = f"{what}: {broken.kind}: {broken.text}\n{broken.traceback}".rstrip()
            run.error = TaskFailedError(text)
        for failure in run.scheduler.take_failures():
            if run.is_stream:
                run.results[failure.task] = failure
            elif run.error is None:
                run.error = failure.as_error()

    # The end of a run

    def _advance(self, run: MasterRun) -> list[Send]:
        """Go on to the reduction once every task is finished."""
        if run.phase is not RunPhase.PLACING or not run.scheduler.all_finished or not run.sealed:
            return []
        if not run.begin.stage.has_sums:
            run.phase = RunPhase.OVER
            return []
        if not self.ranks:
            return []  # the first worker that comes will be asked
        run.phase = RunPhase.COLLECTING
        run.number += 1
        run.layouts.clear()
        # With no task at all one worker still says what its sums look like.
        run.asked = run.scheduler.holders() or set(self.ranks[:1])
        return [Send(r, Collect(run.begin.serial, run.number)) for r in sorted(run.asked)]

    def _on_collected(self, run: MasterRun, source: Rank, message: Collected) -> list[Send]:
        if run.phase is not RunPhase.COLLECTING or message.number != run.number:
            return []
        run.asked.discard(source)
        if message.layout is not None:
            run.layouts[source] = message.layout
        if run.asked:
            return []
        if not run.layouts:
            return self._finish(run)
        run.phase, run.waited = RunPhase.REDUCING, 0.0
        tree = None
        if self._within_hosts:
            tree = tree_of_hosts(self._routes.groups(sorted(run.layouts)))
        try:
            run.root = RootReduction(run.begin.serial, run.number, run.layouts, tree, run.totals_of)
        except MpiparError as error:
            run.error = error
            return []
        return self._finish(run) if run.root.done else run.root.start()

    def _on_partial(self, run: MasterRun, message: Partial) -> list[Send]:
        if run.phase is not RunPhase.REDUCING or run.root is None or message.number != run.number:
            return []
        run.waited = 0.0
        try:
            sends = run.root.add(message)
        except MpiparError as error:  # the program refuses a sum
            run.error = error
            return []
        return sends + self._finish(run) if run.root.done else sends

    def _watch_sum(self, run: MasterRun, seconds: float) -> list[Send]:
        """Begin a reduction that has stopped again, with another tree; the second time, fail."""
        run.waited += min(seconds, LONGEST_STEP)
        if run.phase is not RunPhase.REDUCING or run.waited <= LONG * self._patience:
            return []
        if self._within_hosts:
            run.error = RequeueError(
                f"no part of the sum has come for {run.waited:.0f} s; resume the run to go on"
            )
            return []
        self._within_hosts = True
        run.phase, run.root = RunPhase.PLACING, None
        return self._advance(run)

    def _finish(self, run: MasterRun) -> list[Send]:
        run.totals = None if run.root is None else run.root.totals
        run.root = None
        run.scheduler.bank()
        run.phase = RunPhase.OVER
        return []

    # Gain and loss

    def rank_joined(self, rank: Rank, hello: Hello) -> list[Send]:
        """Take in a new worker: it takes part in the run under way, but not in the trees."""
        self.hellos[rank] = hello
        insort(self.ranks, rank)
        self._alive.add(rank)
        self._liveness.heard(rank)
        run = self.run
        if run is None or run.over:
            return []
        run.done[rank], run.seconds[rank] = 0, 0.0
        begin = self._routes.send_directly(run.begin, rank)
        return [begin, *run.scheduler.rank_joined(rank), *self._advance(run)]

    @property
    def late(self) -> int:
        """How many workers have been silent for long, though not for too long."""
        return self._liveness.late()

    @property
    def is_deserted(self) -> bool:
        """Whether there is no worker, and none can be expected."""
        return not (self.ranks or self.expected)

    def end_if_deserted(self, why: str = "the last worker is lost") -> None:
        """End the run with an error if there is no worker, and none can be expected."""
        if self.is_deserted and self.run is not None and not self.run.over:
            self.run.error = RequeueError(f"{why}; resume the run to go on")

    def rank_lost(self, rank: Rank, reason: str = "") -> list[MasterAction]:
        """Go on without a worker: others get its tasks, and a reduction under way starts again.

        If that was the last worker, the tasks wait for workers that are expected, if any.

        reason   why a worker that may still live is cut off; empty: it is dead
        """
        if rank not in self._alive:
            return []
        self.ranks.remove(rank)
        self._alive.remove(rank)
        self._liveness.lost(rank)
        self.files.rank_lost(rank)
        self._routes.rank_lost(rank)
        run = self.run
        before = run.scheduler.rerun if run else 0
        sends = [*(Send(r, RankLost(rank)) for r in self.ranks), *self._go_on_without(rank)]
        again = run.scheduler.rerun - before if run else 0
        loss = LostWorker(rank, self.hellos[rank], again, len(self.ranks), reason)
        self.end_if_deserted(str(loss) if reason else "the last worker is lost")
        return [loss, *sends]

    def _go_on_without(self, rank: Rank) -> list[Send]:
        """Let the run under way do again what a lost worker had."""
        run = self.run
        if run is None or run.over or self.is_deserted:
            return []
        # Its children in the broadcast tree may still be waiting for it to pass Begin on.
        sends = self._routes.replace_sender(run.begin, rank, self._alive)
        sends += run.scheduler.rank_lost(rank)
        self._note_failures(run, rank)
        run.phase = RunPhase.PLACING
        run.root = None
        return sends + self._advance(run)

    def _cut_off_one_of(self, rank: Rank, other: Rank) -> list[MasterAction]:
        """Go on without one of two workers that do not reach each other."""
        if other not in self._alive:
            return []
        hosts = {each: self.hellos[each].host for each in self.ranks}
        leaves = who_leaves(rank, other, hosts)
        stays = other if leaves == rank else rank
        return self.rank_lost(
            leaves, f"it and rank {stays} on {hosts[stays]} do not reach each other"
        )
