"""A cluster in one process, without threads or clocks: the real machines, delivery by choice.

Master and workers are the pure machines of the runtime. Messages wait on a wire for each pair of
ranks, in order; compute threads and the I/O thread are lists of orders. Whoever drives the cluster
chooses what happens next, so any order of events can be had, and had again. Time passes when it is
told to; a Beat arrives at once, so that a cluster in which only time can pass has no busy wire.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.runtime.machines.broadcast import is_neighbour
from mpipar.runtime.machines.caught_error import (
    CaughtError,
)
from mpipar.runtime.machines.liveness import LONGEST_STEP, Leave, LostWorker
from mpipar.runtime.machines.master import MasterMachine
from mpipar.runtime.machines.messages import (
    MASTER,
    Beat,
    Begin,
    Finished,
    Hello,
    Knobs,
    Message,
    NeedArrays,
    RankLost,
    Send,
    Stop,
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
from mpipar.runtime.machines.reduction import check_sums
from mpipar.runtime.machines.worker import WorkerMachine
from mpipar.runtime.stage import Policy, Stage, Task

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from mpipar.runtime.machines.master import MasterAction, MasterRun

FORGIVING = Policy(deaths=1000)
"""However many ranks die, it is no task's fault."""
PATIENT_TICKS = 20
"""In so many, all patience ends."""
STEPS = 100_000
"""More than any run of a test needs; a run that takes more has hung in a circle."""


class Ledger(Stage):
    """Writes into its sums which tasks were counted, and how often."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks

    def start(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "counted": np.zeros(self.tasks, np.int64),
            "value": np.zeros((2, 3), np.int64),
        }

    def run(self, task: Task, block: Mapping[str, Any] | None, state: dict[str, Any]) -> int:
        value = 7 * task.id if block is None else int(block["x"][0])
        state["counted"][task.id] += 1
        state["value"] += value
        return value

    def partial(self, state: dict[str, Any]) -> dict[str, Any]:
        return state


@dataclass
class Threads:
    """The compute threads of one worker: orders wait here until they are carried out."""

    orders: deque[Prepare | Compute | Gather] = field(default_factory=deque)
    stages: dict[int, tuple[Stage, Any]] = field(default_factory=dict)
    stuck: tuple[int, float] | None = None  # a task that takes for ever, and when it began

    def perform(self, order: Order) -> None:
        if isinstance(order, Drop):
            self.stages.pop(order.serial, None)
        else:
            self.orders.append(order)

    def carry_out(self, position: int, *, fails: bool = False) -> ComputeEvent:
        """Carry out one order; `fails` makes a task raise instead."""
        order = self.orders[position]
        del self.orders[position]
        match order:
            case Prepare():
                self.stages[order.serial] = order.stage, order.stage.start(order.shared)
                return Prepared(order.serial)
            case Gather():
                stage, state = self.stages[order.serial]
                sums = check_sums(stage.partial(state))
                return Gathered(order.serial, order.number, sums)
            case Compute():
                ((task, block),) = order.work  # these tasks are not short
                if fails:
                    trouble = CaughtError("ValueError", "told to fail", "")
                    return Computed(order.serial, (), 0.1, ((task.id, trouble),))
                result = None
                if order.serial in self.stages:  # else the run is over, and nobody will ask
                    stage, state = self.stages[order.serial]
                    result = stage.run(task, block, state)
                return Computed(order.serial, ((task.id, result),), 0.1)


class Cluster:
    """One master, `workers` workers, and everything that is between them."""

    def __init__(  # noqa: PLR0913 - by name, each with a default
        self,
        workers: int,
        *,
        threads: int = 1,
        cache_bytes: int = 1 << 20,
        shuffle: int | None = None,
        hosts: int = 1,
        blind: Collection[int] = (),
        broken: Collection[tuple[int, int]] = (),
        patience: float = math.inf,
    ) -> None:
        """Ranks are dealt out to hosts; `blind` ones cannot map what others have published there.

        What one rank of a `broken` pair sends to the other does not arrive, either way; see
        `lose_what_is_sent` for one way.
        """
        knobs = Knobs(shuffle=shuffle)
        self.welcome = Welcome(threads, cache_bytes, knobs, 1.0)
        self.newest = workers
        self.expected = 0  # workers that rank 0 believes may still come
        ranks = range(1, workers + 1)
        self.patience = patience
        self.names = names = {rank: f"host {rank % hosts}" for rank in range(workers + 1)}
        self.master = MasterMachine(
            {rank: Hello(names[rank], rank, 1) for rank in ranks},
            threads=threads,
            knobs=knobs,
            memories=names,
            patience=patience,
        )
        self.broken = {*broken, *((b, a) for a, b in broken)}
        self.blind = blind
        self.workers = {rank: self._worker(rank) for rank in ranks}
        self.threads = {rank: Threads() for rank in ranks}
        self.wires: dict[tuple[int, int], deque[Message]] = {}
        self.reading: list[int] = []
        self.delivered = 0
        self.unnoticed: list[int] = []  # dead, but rank 0 does not know yet
        self.hung: set[int] = set()  # stopped processes: they do nothing, and may go on later
        self.losses: list[LostWorker] = []
        self.cut_off: dict[int, str] = {}  # workers cut off by rank 0, and why
        self.left: dict[int, str] = {}  # workers that have left by themselves, and why

    def _worker(self, rank: int) -> WorkerMachine:
        return WorkerMachine(rank, self.welcome, patience=self.patience)

    # What can happen

    def begin(
        self,
        stage: Stage,
        tasks: Sequence[Task],
        policy: Policy = FORGIVING,
        *,
        sealed: bool = True,
    ) -> MasterRun:
        sends = self.master.begin(stage, {}, tasks, policy, sealed=sealed)
        run = self.master.run
        assert run is not None
        self._perform(sends)
        return run

    def add(self, tasks: Sequence[Task]) -> None:
        self._perform(self.master.add(tasks))

    def seal(self) -> None:
        self._perform(self.master.seal())

    def busy_wires(self) -> list[tuple[int, int]]:
        busy = (wire for wire, waiting in self.wires.items() if waiting)
        return sorted(wire for wire in busy if wire[1] not in self.hung)

    def busy_threads(self) -> list[int]:
        return [
            rank
            for rank, threads in self.threads.items()
            if threads.orders and threads.stuck is None and rank not in self.hung
        ]

    def deliver(self, wire: tuple[int, int]) -> None:
        """Hand over the oldest message of a wire."""
        source, target = wire
        message: Any = self.wires[wire].popleft()
        self.delivered += 1
        self._hand_over(source, target, message)

    def deliver_all(self) -> None:
        """All that has been sent arrives, but at ranks that hang; nobody computes meanwhile."""
        while wires := self.busy_wires():
            self.deliver(wires[0])

    def _hand_over(self, source: int, target: int, message: Any) -> None:
        if target == MASTER:
            if source in self.cut_off:
                return
            self._perform(self.master.handle(source, message))
            while (block := self.master.files.next_read()) is not None:
                self.reading.append(block)
        elif target in self.workers and self._is_unreadable(source, target, message):
            self._post(target, [Send(MASTER, NeedArrays(message.serial, source))])
        elif target in self.workers:
            self._act(target, self.workers[target].handle(source, message))
            if isinstance(message, RankLost):
                self.wires.pop((message.rank, target), None)
            elif isinstance(message, Stop):
                self._leave(target, message.reason)

    def _is_unreadable(self, source: int, target: int, message: Message) -> bool:
        """Whether `sharing` would ask the master for the arrays."""
        if not isinstance(message, Begin) or message.plain or target not in self.blind:
            return False
        return is_neighbour(source, target, message.tree)

    def work(self, rank: int, position: int = 0, *, fails: bool = False) -> None:
        """Let a compute thread carry out one of the orders that the threads may be at."""
        worker = self.workers[rank]
        event = self.threads[rank].carry_out(position, fails=fails)
        actions = worker.react(event)
        reports = [Send(MASTER, message) for message in worker.report()]
        self._act(rank, [*reports, *actions])

    def read(self, position: int = 0) -> None:
        """Let the I/O thread finish a block."""
        block = self.reading.pop(position)
        arrays = {"x": np.full(4, 7 * block, np.int64)}
        self._perform(self.master.files.loaded(self.master.files.generation, block, arrays))
        while (block_now := self.master.files.next_read()) is not None:
            self.reading.append(block_now)

    def tick(self, seconds: float = 10.0) -> None:
        """Let time pass, in steps short enough for all to say in time that they live."""
        step = min(LONGEST_STEP, self.patience / 10)
        while seconds > 0:
            self._step_in_time(min(seconds, step))
            seconds -= step

    def _step_in_time(self, seconds: float) -> None:
        for rank in sorted(self.workers.keys() - self.hung):
            stuck = self.threads[rank].stuck
            running = () if stuck is None else (stuck,)
            for action in self.workers[rank].tick(seconds, running):
                if isinstance(action, Leave):
                    self._leave(rank, action.reason)
                else:
                    self._post(rank, [action])
        self._perform(self.master.tick(seconds))

    def stick(self, rank: int) -> int:
        """Let the task that a worker is to run next take for ever; return its number."""
        order = self.threads[rank].orders[0]
        assert isinstance(order, Compute)
        ((task, _),) = order.work
        self.threads[rank].stuck = task.id, 0.0
        return task.id

    def hang(self, rank: int) -> None:
        """A worker's process is stopped; what it has sent may still arrive."""
        self.hung.add(rank)

    def go_on(self, rank: int) -> None:
        """A worker that hung goes on."""
        self.hung.discard(rank)

    def lose_what_is_sent(self, source: int, target: int) -> None:
        """From now on nothing arrives of what one rank sends to another."""
        self.broken.add((source, target))
        self.wires.pop((source, target), None)

    def mend(self, source: int, target: int) -> None:
        """What one rank sends to another arrives again; what has been lost is lost."""
        self.broken.discard((source, target))
        if source == MASTER and target in self.cut_off:
            self._post(MASTER, [Send(target, Stop(self.cut_off[target]))])

    def _leave(self, rank: int, reason: str) -> None:
        """A worker ends by itself: it has nothing more to say that anybody listens to."""
        self.left[rank] = reason
        self._remove(rank)
        for wire in [wire for wire in self.wires if rank in wire]:
            del self.wires[wire]
        if rank in self.master.ranks:
            self.unnoticed.append(rank)

    def _remove(self, rank: int) -> None:
        del self.workers[rank], self.threads[rank]
        self.hung.discard(rank)

    def die(self, rank: int, dice: random.Random | None = None) -> None:
        """A worker dies. What it has sent may still arrive; with dice, only the first of it."""
        self._remove(rank)
        for (source, target), waiting in list(self.wires.items()):
            if target == rank:
                del self.wires[source, target]
            elif source == rank and dice is not None:
                for _ in range(dice.randint(0, len(waiting))):
                    waiting.pop()
        self.unnoticed.append(rank)

    def notice(self) -> None:
        """Rank 0 learns of the death that has been unknown longest."""
        self.master.expected = self.expected
        self._perform(self.master.rank_lost(self.unnoticed.pop(0)))

    def join(self) -> None:
        """A worker comes, with a number that no other had."""
        rank = self.newest = self.newest + 1
        self.workers[rank] = self._worker(rank)
        self.threads[rank] = Threads()
        self._perform(self.master.rank_joined(rank, Hello(f"new host {rank}", rank, 1)))

    def lose(self, rank: int) -> None:
        """A worker dies, and rank 0 knows at once."""
        self.die(rank)
        while self.unnoticed:
            self.notice()

    def end(self) -> None:
        self._perform(self.master.end())

    # Driving

    def step(self, dice: random.Random) -> bool:
        """Let one thing happen, chosen by dice; False if nothing can but the passing of time."""
        choices: list[tuple[str, Any]] = [("wire", wire) for wire in self.busy_wires()]
        choices += [("threads", rank) for rank in self.busy_threads()]
        choices += [("read", at) for at in range(len(self.reading))]
        if not choices:
            return False
        kind, which = dice.choice(choices)
        if kind == "wire":
            self.deliver(which)
        elif kind == "threads":
            self.work(which)
        else:
            self.read(which)
        return True

    def finish(self, run: MasterRun, dice: random.Random) -> None:
        """Let things happen until the run is over; where a link is broken, they take time."""
        for number in range(STEPS):
            if run.over:
                return
            if self.is_disturbed and number % 10 == 0:
                self.tick(0.1)
            if not self.step(dice):
                if self.unnoticed:
                    self.notice()
                    continue
                for _ in range(PATIENT_TICKS if self.is_disturbed else 1):
                    self.tick()
                    if self.busy_wires() or self.reading or run.over:
                        break
                else:
                    raise AssertionError("the cluster has hung")
        raise AssertionError(f"no end after {STEPS} steps")

    @property
    def is_disturbed(self) -> bool:
        """Whether something may go on only when somebody has lost patience."""
        stuck = any(threads.stuck for threads in self.threads.values())
        return bool(self.broken or self.hung or stuck)

    # What must always be true

    def owners(self) -> dict[int, list[int]]:
        """Return for each task the live workers that have it, to run, running, or just run."""
        found: dict[int, list[int]] = {}
        for rank, worker in self.workers.items():
            if worker.run is None:
                continue
            deque = worker.run.deque
            mine = [task.id for task in (*deque.tasks, *deque.alone)]
            mine += [*worker.run.running, *(task for task, _ in worker.run.finished)]
            mine += self._reported(rank, worker.run.serial)
            for task in mine:
                found.setdefault(task, []).append(rank)
        return found

    def _reported(self, rank: int, serial: int) -> list[int]:
        wire = self.wires.get((rank, MASTER), ())
        reports = [m for m in wire if isinstance(m, Finished) and m.serial == serial]
        return [task for report in reports for task, _ in report.results]

    # Inside

    def _perform(self, actions: Iterable[MasterAction]) -> None:
        """Do what rank 0's machine wants done, as its loop and transport do; first check it."""
        if self.master.run is not None:
            self.master.run.scheduler.sanity_check()
        for action in actions:
            if isinstance(action, Send):
                if action.rank not in self.cut_off:
                    self._post(MASTER, [action])
                continue
            self.losses.append(action)
            if action.reason:
                rank = action.rank
                self.cut_off[rank] = action.reason
                self.wires.pop((MASTER, rank), None)
                self._post(MASTER, [Send(rank, Stop(action.reason))])

    def _post(self, source: int, sends: Iterable[Send]) -> None:
        for send in sends:
            if (source, send.rank) in self.broken:
                continue
            if isinstance(send.message, Beat):
                if send.rank not in self.hung:
                    self._hand_over(source, send.rank, send.message)
            elif send.rank == MASTER or send.rank in self.workers:
                self.wires.setdefault((source, send.rank), deque()).append(send.message)

    def _act(self, rank: int, actions: Iterable[Send | Order]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._post(rank, [action])
            else:
                self.threads[rank].perform(action)
