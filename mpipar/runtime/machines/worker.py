"""A worker's machine: tasks in, results out, blocks fetched ahead, steals answered.

    messages --> Worker --Send--> master, workers
                 |  |  |
             Deque  |  Branch: its part in the reduction
             BlockCache, and the blocks on their way
                 |
                 +--Prepare, Compute, Gather--> Engine (compute threads) --events--> Worker

Pure: messages and events in, actions out. `runtime/serving.py` is the loop around it.
"""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from mpipar.runtime.machines.block_cache import BlockCache
from mpipar.runtime.machines.broadcast import children_of
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
    Gone,
    Granted,
    More,
    Partial,
    Place,
    Rank,
    Reduce,
    Refused,
    Send,
    Started,
    StealFrom,
    StealReply,
    StealRequest,
    Stop,
    TaskFailed,
    ToWorker,
    Welcome,
)
from mpipar.runtime.machines.orders import (
    Compute,
    Computed,
    Drop,
    EngineEvent,
    Gather,
    Gathered,
    Order,
    Prepare,
    Prepared,
)
from mpipar.runtime.machines.worker_run import WorkerRun

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from mpipar.runtime.machines.caught_error import CaughtError
    from mpipar.runtime.stage import Task

Action: TypeAlias = Send | Order

MOST_RESULTS = 1 << 14
AHEAD = 2
"""Tasks beyond the running ones whose blocks are fetched before they are needed."""


class WorkerMachine:
    """All of one worker's decisions."""

    def __init__(self, rank: Rank, welcome: Welcome) -> None:
        self.rank = rank
        self.stopped = False
        self.run: WorkerRun | None = None
        self.cache = BlockCache(welcome.cache_bytes)
        self.generation = 0
        self.fetching: dict[int, Rank] = {}  # block -> whom it was asked of
        self.congested = False
        self.most_results = MOST_RESULTS  # that one message, so one burst of tasks, may have
        self._threads = welcome.threads
        seed = welcome.knobs.shuffle
        self._dice = None if seed is None else random.Random(f"{seed} {rank}")
        self._latest = 0
        self._gone: set[Rank] = set()

    @property
    def is_computing(self) -> bool:
        """Whether every thread has a task, and nothing is awaited from another rank."""
        run = self.run
        return run is not None and run.bursts >= self._threads and not self.fetching

    def congest(self, congested: bool) -> list[Action]:
        """Much waits to leave this rank, or no longer: begin no task meanwhile."""
        self.congested = congested
        return self._feed(self.run) if self.run is not None else []

    def handle(self, source: Rank, message: ToWorker) -> list[Action]:
        """Take one message; return what to do."""
        if source in self._gone:
            return []
        match message:
            case BlockRequest() | BlockReply() | BlockMiss():
                return self._on_block(source, message)
            case Gone() | Stop() | Beat() | Welcome() | Forget():
                return self._on_word(message)
            case _:
                return self._in_run(source, message)

    def _on_word(self, message: Gone | Stop | Beat | Welcome | Forget) -> list[Action]:
        """Take a word of the master that is not about one run's tasks."""
        match message:
            case Gone():
                return self._on_gone(message)
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
            if isinstance(message, StealRequest):  # of a thief that has not heard yet
                actions.append(Send(source, StealReply(message.serial, (), frozenset(), 0)))
            return actions
        match message:
            case Begin():
                actions += self._on_begin(run, message)
            case Place():
                actions += run.deque.place(
                    message.tasks, self.cache.__contains__, apart=message.apart
                )
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
        if message.generation != self.generation:
            self.generation = message.generation
            self.cache.clear()
            self.fetching.clear()
        children = children_of(self.rank, message.tree)
        forwards = [Send(child, message) for child in children if child not in self._gone]
        prepare = Prepare(message.serial, message.stage, message.shared, message.policy)
        return [*forwards, prepare]

    def _on_forget(self, serial: int) -> list[Action]:
        if self.run is None or self.run.serial != serial:
            self._latest = max(self._latest, serial)
            return []
        self.run = None
        self.fetching.clear()  # the master answers no request of an old run
        return [Drop(serial)]

    def _on_gone(self, message: Gone) -> list[Action]:
        self._gone.add(message.rank)
        actions: list[Action] = []
        for block, rank in list(self.fetching.items()):
            if rank == message.rank:
                actions += self._ask(block, MASTER)
        if self.run is not None:
            actions += self.run.deque.gone(self.rank, message.rank)
            actions += self._feed(self.run)
        return actions

    # Computing

    def _feed(self, run: WorkerRun) -> list[Action]:
        """Start what can start, fetch what comes next, and say so if a thread is left idle."""
        if not run.prepared or self.congested:
            return []
        actions: list[Action] = []
        length = min(run.burst(), self.most_results)
        # An order that waits behind a short one saves its thread the wait for us.
        ahead = self._threads if length > 1 else 0
        while run.bursts < self._threads and (task := self._pick(run.deque.apart)):
            actions.append(Send(MASTER, Started(run.serial, task.id)))
            actions.append(self._start(run, (task,)))
        while run.bursts < self._threads + ahead and (tasks := self._take(run, length)):
            actions.append(self._start(run, tasks))
        actions += self._fetch_ahead(run)
        if run.bursts < self._threads:
            actions += run.deque.want()
        return actions

    def _start(self, run: WorkerRun, tasks: Sequence[Task]) -> Compute:
        run.running.update(task.id for task in tasks)
        run.bursts += 1
        get = self.cache.get
        work = [(task, None if task.block is None else get(task.block)) for task in tasks]
        return Compute(run.serial, tuple(work))

    def _take(self, run: WorkerRun, length: int) -> list[Task]:
        """Take up to so many tasks for one order."""
        tasks: list[Task] = []
        share = -(-len(run.deque.tasks) // self._threads)  # for every thread of what there is
        while len(tasks) < min(length, share) and (task := self._pick(run.deque.tasks)):
            tasks.append(task)
        return tasks

    def _pick(self, tasks: deque[Task]) -> Task | None:
        """Take the next task whose block is here."""
        for position, task in enumerate(islice(tasks, self._threads + AHEAD)):
            if task.block is None or task.block in self.cache:
                del tasks[position]
                return task
        return None

    def _soon(self, run: WorkerRun) -> set[int]:
        """Return the blocks of the next tasks to run, those being claimed included."""
        claimed = [task for claim in run.deque.claims.values() for task in claim.values()]
        count = self._threads + AHEAD
        upcoming = [*run.deque.apart, *islice(run.deque.tasks, count)][:count]
        upcoming += claimed[: max(0, count - len(upcoming))]
        return {task.block for task in upcoming if task.block is not None}

    def _fetch_ahead(self, run: WorkerRun) -> list[Action]:
        actions: list[Action] = []
        for block in sorted(self._soon(run)):
            if block not in self.cache and block not in self.fetching:
                actions += self._ask(block, run.peers.pop(block, MASTER))
        return actions

    def _ask(self, block: int, rank: Rank) -> list[Action]:
        if rank in self._gone:
            rank = MASTER
        self.fetching[block] = rank
        return [Send(rank, BlockRequest(self.generation, block))]

    def react(self, event: EngineEvent) -> list[Action]:
        """Take an event of the compute threads; return what to do."""
        run = self.run
        if run is None or run.serial != event.serial:
            # A state made for a run that is over by now must go as well.
            return [Drop(event.serial)] if isinstance(event, Prepared) else []
        match event:
            case Prepared():
                run.prepared = event.trouble is None
                actions = self._on_trouble(run, None, event.trouble)
                actions += self._start_gather(run)
            case Computed():
                actions = self._on_computed(run, event)
            case Gathered():
                actions = self._on_gathered(run, event)
        return actions + self._feed(run)

    def _on_trouble(
        self, run: WorkerRun, task: int | None, trouble: CaughtError | None
    ) -> list[Action]:
        if trouble is None:
            return []
        kind, text = trouble.kind, trouble.text
        return [Send(MASTER, TaskFailed(run.serial, task, kind, text, trouble.traceback))]

    def _on_computed(self, run: WorkerRun, event: Computed) -> list[Action]:
        ended = [task for task, _ in (*event.results, *event.troubles)]
        run.bursts -= not event.more
        run.running.difference_update(ended, (task.id for task in event.left))
        run.deque.tasks.extendleft(reversed(event.left))
        run.done += len(ended)
        run.seconds += event.seconds
        run.finished += event.results
        run.unreported += event.seconds
        return [
            action
            for task, trouble in event.troubles
            for action in self._on_trouble(run, task, trouble)
        ]

    def report(self, *, due: bool = True) -> list[Finished]:
        """Return messages for all tasks finished since the last ones.

        Unless due, a few can wait for more while there are tasks to start. The loop sends them
        before the other messages of a turn: an Idle must not overtake the results that led to it.
        """
        run = self.run
        if run is None or (not due and run.deque.tasks and len(run.finished) < self.most_results):
            return []
        return run.report(self.most_results)

    # Blocks

    def _on_block(
        self, source: Rank, message: BlockRequest | BlockReply | BlockMiss
    ) -> list[Action]:
        match message:
            case BlockRequest():
                return self._on_block_request(source, message)
            case BlockReply():
                return self._on_block_reply(source, message)
            case BlockMiss():
                return self._on_block_miss(message)

    def _on_block_request(self, source: Rank, message: BlockRequest) -> list[Action]:
        arrays = self.cache.get(message.block) if message.generation == self.generation else None
        if arrays is None:
            return [Send(source, BlockMiss(message.generation, message.block))]
        return [Send(source, BlockReply(message.generation, message.block, arrays))]

    def _on_block_miss(self, message: BlockMiss) -> list[Action]:
        if message.generation != self.generation or message.block not in self.fetching:
            return []
        return self._ask(message.block, MASTER)

    def _on_block_reply(self, source: Rank, message: BlockReply) -> list[Action]:
        if message.generation != self.generation:
            return []
        self.fetching.pop(message.block, None)
        run = self.run
        if run is None:
            self.cache.put(message.block, message.arrays)
            return []
        run.peer_blocks += source != MASTER
        self.cache.put(message.block, message.arrays, keep=self._soon(run))
        return self._feed(run)

    # Stealing

    def _on_steal(
        self,
        run: WorkerRun,
        source: Rank,
        message: StealFrom | StealRequest | StealReply | Granted | Refused,
    ) -> list[Send]:
        match message:
            case StealFrom():
                return run.deque.steal_from(message)
            case StealRequest():
                return run.deque.give(source, message, self.cache.__contains__)
            case StealReply():
                run.peers.update(dict.fromkeys(message.cached, source))
                return run.deque.loot(source, message)
            case Granted():
                run.deque.granted(message)
            case Refused():
                run.deque.refused(message)
        return []

    # Sums

    def _on_sum(self, run: WorkerRun, message: Collect | Reduce | Partial | More) -> list[Action]:
        if isinstance(message, Collect):
            run.branch.collect(message)
            return self._start_gather(run)
        return [*run.branch.handle(message)]

    def _start_gather(self, run: WorkerRun) -> list[Action]:
        if run.branch.number is None or not run.prepared:
            return []
        return [Gather(run.serial, run.branch.number)]

    def _on_gathered(self, run: WorkerRun, event: Gathered) -> list[Action]:
        if run.branch.number != event.number:
            return []
        if event.trouble is not None:
            return self._on_trouble(run, None, event.trouble)
        layout = run.branch.gathered(event.sums)
        return [Send(MASTER, Collected(run.serial, event.number, layout))]
