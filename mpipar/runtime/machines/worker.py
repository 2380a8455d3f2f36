"""A worker's machine: it decides which tasks to start, which blocks to fetch, what to send.

    messages --> WorkerMachine --Send--> master, workers
                   |  |  |  |
            TaskDeque |  |  WorkerReduction: its part in the reduction
            WorkerBlocks |
                         +--Prepare, Compute, Gather--> ComputeThreads --events--> WorkerMachine

Pure: messages, events and the passing of time in, actions out. `loops/worker_loop.py` is the loop
around it.
"""

from __future__ import annotations

import math
import random
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from mpipar.runtime.machines.broadcast import children_of
from mpipar.runtime.machines.liveness import LONGEST_STEP, Leave, MasterLiveness
from mpipar.runtime.machines.messages import (
    MASTER,
    Beat,
    Begin,
    BlockMiss,
    BlockReply,
    BlockRequest,
    Bye,
    Collect,
    Collected,
    Finished,
    Forget,
    Granted,
    More,
    NeedArrays,
    Partial,
    Place,
    Rank,
    RankLost,
    Reduce,
    Refused,
    Send,
    StealFrom,
    StealReply,
    StealRequest,
    Stop,
    TaskFailed,
    TaskStarted,
    ToWorker,
    Unreachable,
    Welcome,
)
from mpipar.runtime.machines.orders import (
    Compute,
    Computed,
    ComputeEvent,
    Drop,
    Gather,
    Gathered,
    Order,
    Prepare,
    Prepared,
)
from mpipar.runtime.machines.peer_timeouts import PeerTimeouts, PeerWait
from mpipar.runtime.machines.report_interval import first_report, report_seconds
from mpipar.runtime.machines.task_deque import StealState
from mpipar.runtime.machines.worker_blocks import WorkerBlocks
from mpipar.runtime.machines.worker_run import WorkerRun

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Iterator, Sequence

    from mpipar.runtime.machines.caught_error import CaughtError
    from mpipar.runtime.machines.orders import RunningTask
    from mpipar.runtime.stage import Task

Action: TypeAlias = Send | Order

MOST_RESULTS = 1 << 14
AHEAD = 2
"""Tasks beyond the running ones whose blocks are fetched before they are needed."""


class WorkerMachine:
    """All of one worker's decisions."""

    def __init__(
        self, rank: Rank, welcome: Welcome, *, size: int = 1, patience: float = math.inf
    ) -> None:
        """`size`: the number of ranks; `patience`: that of rank 0, in seconds."""
        self.rank = rank
        self.stopped = False
        self.run: WorkerRun | None = None
        self.blocks = WorkerBlocks(welcome.cache_bytes)
        self.congested = False
        self.most_results = MOST_RESULTS  # limit for one message, and so for one batch of tasks
        self._threads = welcome.threads
        seed = welcome.knobs.shuffle
        self._dice = None if seed is None else random.Random(f"{seed} {rank}")
        self._latest = 0
        self._gone: set[Rank] = set()
        self._liveness = MasterLiveness(size, patience)
        self._peer_timeouts = PeerTimeouts(patience)
        self._report_seconds = report_seconds(size)
        self._since_report = first_report(rank, size)  # seconds since the last report

    @property
    def is_computing(self) -> bool:
        """Whether every thread has a task, and nothing is awaited from another rank."""
        run = self.run
        return run is not None and run.batches >= self._threads and not self.blocks.fetching

    def congest(self, congested: bool) -> list[Action]:
        """Begin no task while `congested`: much waits to leave this rank."""
        self.congested = congested
        return self._feed(self.run) if self.run is not None else []

    def handle(self, source: Rank, message: ToWorker) -> list[Action]:
        """Take one message; return what to do."""
        if source in self._gone:
            return []
        if source == MASTER:
            self._liveness.heard()
        match message:
            case BlockRequest() | BlockReply() | BlockMiss():
                return self._note_sent(self._on_block(source, message))
            case RankLost() | Stop() | Beat() | Welcome() | Forget():
                return self._note_sent(self._on_control(message))
            case _:
                return self._note_sent(self._in_run(source, message))

    def _note_sent(self, actions: list[Action]) -> list[Action]:
        """Return the actions; note whether one of them is a message to rank 0."""
        for action in actions:
            if isinstance(action, Send) and action.rank == MASTER:
                self._liveness.sent()
                break
        return actions

    def _on_control(self, message: RankLost | Stop | Beat | Welcome | Forget) -> list[Action]:
        """Handle a message of the master that is not about the tasks or sums of a run."""
        match message:
            case RankLost():
                return self._on_rank_lost(message)
            case Stop():
                self.stopped = True
                return [Send(MASTER, Bye())]
            case Forget():
                return self._on_forget(message.serial)
            case Welcome() | Beat():
                return []

    def _open(self, serial: int) -> tuple[WorkerRun | None, list[Action]]:
        """Return the run of that serial, begun now if it is new, or None if it is over."""
        actions: list[Action] = []
        if serial > self._latest:
            if self.run is not None:
                actions = self._on_forget(self.run.serial)
            self._latest = serial
            self.run = WorkerRun(serial, self._dice)
        return (self.run if serial == self._latest else None), actions

    def _in_run(
        self,
        source: Rank,
        message: Begin
        | Place
        | StealFrom
        | StealRequest
        | StealReply
        | Granted
        | Refused
        | Collect
        | Reduce
        | Partial
        | More,
    ) -> list[Action]:
        run, actions = self._open(message.serial)
        if run is None:
            if isinstance(message, StealRequest):  # the thief does not know that the run is over
                actions.append(Send(source, StealReply(message.serial, (), frozenset(), 0)))
            return actions
        match message:
            case Begin():
                actions += self._on_begin(run, message)
            case Place():
                is_cached = self.blocks.cache.__contains__
                actions += run.deque.place(message.tasks, is_cached, alone=message.alone)
            case Collect() | Reduce() | Partial() | More():
                actions += self._on_sum(run, message)
            case _:
                actions += self._on_steal(run, source, message)
        return actions + self._feed(run)

    # A run

    def _on_begin(self, run: WorkerRun, message: Begin) -> list[Action]:
        if run.begun:
            return []
        run.timeout = message.policy.timeout
        run.begun = True  # the message itself is not kept: its arrays may be large
        self.blocks.renew(message.generation)
        children = children_of(self.rank, message.tree)
        forwards = [Send(child, message) for child in children if child not in self._gone]
        prepare = Prepare(message.serial, message.stage, message.shared, message.policy)
        return [*forwards, prepare]

    def _on_forget(self, serial: int) -> list[Action]:
        if self.run is None or self.run.serial != serial:
            self._latest = max(self._latest, serial)
            return []
        self.run = None
        self.blocks.drop_requests()  # the master answers no request of an old run
        return [Drop(serial)]

    def _on_rank_lost(self, message: RankLost) -> list[Action]:
        self._gone.add(message.rank)
        actions: list[Action] = [*self.blocks.rank_lost(message.rank)]
        if self.run is not None:
            actions += self.run.deque.on_rank_lost(self.rank, message.rank)
            actions += self._feed(self.run)
        return actions

    # Computing

    def _feed(self, run: WorkerRun) -> list[Action]:
        """Start tasks, fetch the blocks of the next ones, and tell rank 0 if a thread is idle."""
        if not run.prepared or self.congested:
            return []
        actions: list[Action] = []
        length = min(run.batch_size(), self.most_results)
        # With an order that waits behind a short one a thread need not wait for this loop.
        ahead = self._threads if length > 1 else 0
        while run.batches < self._threads and (task := self._pick(run.deque.alone)):
            actions.append(Send(MASTER, TaskStarted(run.serial, task.id)))
            actions.append(self._start(run, (task,)))
        while run.batches < self._threads + ahead and (tasks := self._take(run, length)):
            actions.append(self._start(run, tasks))
        actions += self._fetch_ahead(run)
        if run.batches < self._threads:
            actions += run.deque.report_idle()
        return actions

    def _start(self, run: WorkerRun, tasks: Sequence[Task]) -> Compute:
        run.running.update(task.id for task in tasks)
        run.batches += 1
        get = self.blocks.cache.get
        work = [(task, None if task.block is None else get(task.block)) for task in tasks]
        return Compute(run.serial, tuple(work))

    def _take(self, run: WorkerRun, length: int) -> list[Task]:
        """Take up to `length` tasks for one order."""
        tasks: list[Task] = []
        share = -(-len(run.deque.tasks) // self._threads)  # of one thread
        while len(tasks) < min(length, share) and (task := self._pick(run.deque.tasks)):
            tasks.append(task)
        return tasks

    def _pick(self, tasks: deque[Task]) -> Task | None:
        """Take the next task whose block is here."""
        for position, task in enumerate(islice(tasks, self._threads + AHEAD)):
            if task.block is None or task.block in self.blocks.cache:
                del tasks[position]
                return task
        return None

    def _soon(self, run: WorkerRun) -> set[int]:
        """Return the blocks of the tasks to run next, including tasks that are being claimed."""
        claimed = [task for claim in run.deque.claims.values() for task in claim.values()]
        count = self._threads + AHEAD
        upcoming = [*run.deque.alone, *islice(run.deque.tasks, count)][:count]
        upcoming += claimed[: max(0, count - len(upcoming))]
        return {task.block for task in upcoming if task.block is not None}

    def _fetch_ahead(self, run: WorkerRun) -> list[Action]:
        blocks = self.blocks
        return [
            blocks.ask(block, run.peers.pop(block, MASTER))
            for block in sorted(self._soon(run))
            if block not in blocks.cache and block not in blocks.fetching
        ]

    def react(self, event: ComputeEvent) -> list[Action]:
        """Take an event of the compute threads; return what to do."""
        run = self.run
        if run is None or run.serial != event.serial:
            # The state of a run that is over by now is dropped as well.
            return [Drop(event.serial)] if isinstance(event, Prepared) else []
        match event:
            case Prepared():
                run.prepared = event.error is None
                actions = self._task_failed(run, None, event.error)
                actions += self._start_gather(run)
            case Computed():
                actions = self._on_computed(run, event)
            case Gathered():
                actions = self._on_gathered(run, event)
        return self._note_sent(actions + self._feed(run))

    def _task_failed(
        self, run: WorkerRun, task: int | None, error: CaughtError | None
    ) -> list[Action]:
        if error is None:
            return []
        kind, text = error.kind, error.text
        return [Send(MASTER, TaskFailed(run.serial, task, kind, text, error.traceback))]

    def _on_computed(self, run: WorkerRun, event: Computed) -> list[Action]:
        ended = [task for task, _ in (*event.results, *event.errors)]
        run.batches -= not event.more
        run.running.difference_update(ended, (task.id for task in event.left))
        run.deque.tasks.extendleft(reversed(event.left))
        run.done += len(ended)
        run.seconds += event.seconds
        run.finished += event.results
        run.unreported += event.seconds
        return [
            action for task, error in event.errors for action in self._task_failed(run, task, error)
        ]

    def report(self) -> list[Finished]:
        """Return messages with the results since the last report.

        A few results wait for more, not for long, while there are tasks to start. The loop sends
        the messages before the others of a turn: an Idle must not overtake the results before it.
        """
        run = self.run
        if run is None or not run.finished:
            return []
        is_due = self._since_report >= self._report_seconds
        if not is_due and run.deque.tasks and len(run.finished) < self.most_results:
            return []
        self._since_report = 0.0
        self._liveness.sent()
        return run.report(self.most_results)

    # Time

    def tick(self, seconds: float, running: Iterable[RunningTask] = ()) -> list[Send | Leave]:
        """Time has passed; return what to do, except for reports that have become due.

        running   the tasks that are being run, if the run has a time-out
        """
        self._since_report += seconds
        run = self.run
        if run is None:
            self._liveness.heard()
            return []
        if (leave := self._liveness.tick(seconds)) is not None:
            return [leave]
        seconds = min(seconds, LONGEST_STEP)
        late = self._peer_timeouts.tick(self._awaited(run), seconds)
        sends = [self._ask_elsewhere(run, wait) for wait in late]
        if (overdue := run.find_overdue(running, seconds)) is not None:
            sends.append(Send(MASTER, overdue))
        if sends:
            self._liveness.sent()
        elif self._liveness.seconds_to_beat == 0:
            sends.append(Send(MASTER, Beat(run.serial)))
            self._liveness.sent()
        return [*sends]

    @property
    def seconds_to_tick(self) -> float:
        """After how many seconds a Beat or a report becomes due, if nothing happens before."""
        left = self._liveness.seconds_to_beat
        if self.run is not None and self.run.finished:
            left = min(left, self._report_seconds - self._since_report)
        return max(0.0, left)

    def _awaited(self, run: WorkerRun) -> Iterator[PeerWait]:
        """Return what is awaited of other workers."""
        if not run.begun:
            yield PeerWait("begin", self.rank, ())  # the same in every run until one has begun
        if run.deque.steal_state is StealState.ASKING and run.deque.victim is not None:
            yield PeerWait("steal", run.deque.victim, (run.serial, run.deque.asked))
        yield from self.blocks.awaited_of_peers()

    def _ask_elsewhere(self, run: WorkerRun, wait: PeerWait) -> Send:
        """Return the message to rank 0 about something that a worker has not sent in time."""
        if wait.kind == "begin":
            return Send(MASTER, NeedArrays(run.serial, self.rank))
        if wait.kind == "block":
            (block,) = wait.which
            return self.blocks.ask(block, MASTER)
        return Send(MASTER, Unreachable(run.serial, wait.rank))

    # Blocks

    def _on_block(
        self, source: Rank, message: BlockRequest | BlockReply | BlockMiss
    ) -> list[Action]:
        match message:
            case BlockRequest():
                return [*self.blocks.answer(source, message)]
            case BlockReply():
                return self._on_block_reply(source, message)
            case BlockMiss():
                return [*self.blocks.missed(message)]

    def _on_block_reply(self, source: Rank, message: BlockReply) -> list[Action]:
        blocks = self.blocks
        if message.generation != blocks.generation:
            return []
        actions: list[Action] = [*blocks.arrived(message)]
        run = self.run
        if run is None:
            blocks.cache.put(message.block, message.arrays)
            return actions
        run.peer_blocks += source != MASTER
        blocks.cache.put(message.block, message.arrays, keep=self._soon(run))
        return actions + self._feed(run)

    # Stealing

    def _on_steal(
        self,
        run: WorkerRun,
        source: Rank,
        message: StealFrom | StealRequest | StealReply | Granted | Refused,
    ) -> list[Send]:
        match message:
            case StealFrom():
                return run.deque.on_steal_from(message)
            case StealRequest():
                return run.deque.on_steal_request(source, message, self.blocks.has_or_awaits)
            case StealReply():
                run.peers.update(dict.fromkeys(message.cached, source))
                return run.deque.on_steal_reply(source, message)
            case Granted():
                run.deque.on_granted(message)
            case Refused():
                run.deque.on_refused(message)
        return []

    # Sums

    def _on_sum(self, run: WorkerRun, message: Collect | Reduce | Partial | More) -> list[Action]:
        if isinstance(message, Collect):
            run.reduction.collect(message)
            return self._start_gather(run)
        return [*run.reduction.handle(message)]

    def _start_gather(self, run: WorkerRun) -> list[Action]:
        if run.reduction.number is None or not run.prepared:
            return []
        return [Gather(run.serial, run.reduction.number)]

    def _on_gathered(self, run: WorkerRun, event: Gathered) -> list[Action]:
        if run.reduction.number != event.number:
            return []
        if event.error is not None:
            return self._task_failed(run, None, event.error)
        layout = run.reduction.gathered(event.sums)
        return [Send(MASTER, Collected(run.serial, event.number, layout))]
