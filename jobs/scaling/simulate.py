"""How far does one rank 0 go? The real machines of rank 0 and of all workers, in simulated time.

    python jobs/scaling/simulate.py                            what docs/scaling.md is made of
    python jobs/scaling/simulate.py --ranks 64 1024 --tasks 20 --durations 0.3:0.5

Nothing of the scheduler is modelled: `MasterMachine` and `WorkerMachine` are those that run
under MPI, beats and the watch for silent workers included, and what rank 0 takes to handle a
message is the processor time that its Python code takes here, measured at each message (and
corrected for a busy machine, see Clock). Modelled are the tasks (log-normal durations), the network
(one latency), when a worker's loop looks for messages (`transport.Backoff`), and what MPI and
pickle cost rank 0 for each message (see RECEIVE, SEND).
"""

from __future__ import annotations

import argparse
import csv
import gc
import random
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, fields
from heapq import heappop, heappush, heapreplace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpipar.runtime.loops.master_loop import TICK_SECONDS
from mpipar.runtime.machines.liveness import Leave, LostWorker
from mpipar.runtime.machines.master import MasterMachine
from mpipar.runtime.machines.messages import MASTER, Beat, Hello, Knobs, Send, Welcome
from mpipar.runtime.machines.orders import (
    Compute,
    Computed,
    Drop,
    Prepare,
    Prepared,
)
from mpipar.runtime.machines.worker import WorkerMachine
from mpipar.runtime.stage import Stage, Task
from mpipar.runtime.transports.transport import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mpipar.runtime.machines.master import MasterAction
    from mpipar.runtime.stage import Block

LATENCY = 30e-6
"""Seconds from one rank's MPI to another's: 1 KB over TCP; InfiniBand and shared memory take 2."""
RECEIVE = 10e-6
SEND = 11e-6
"""Seconds of rank 0 for receiving and decoding, for encoding and sending a small message: half as
much again as `MpiTransport` takes when it talks to itself (Open MPI 5.0.11 and MPICH 5.0.2)."""
HANDLE = 40e-6
"""Seconds of a worker for a message."""
INFINITY = float("inf")
PATIENCE = 120.0
"""Seconds that a worker may be silent, as by default."""

ARRIVAL, TURN, DONE, TIMER, TICK = range(5)


@dataclass(frozen=True)
class Case:
    """What to simulate."""

    ranks: int  # workers
    tasks: int = 20  # per rank
    mean: float = 0.3  # seconds of a task
    sigma: float = 0.5  # of the logarithm of that
    steal: bool = True
    seed: int = 1


@dataclass(frozen=True)
class Verdict:
    """What came of it."""

    ranks: int
    tasks: int
    mean: float
    sigma: float
    seconds: float  # of the run
    efficiency: float  # computing time of all ranks / (ranks * seconds)
    free: float  # the same, if all took from one queue and that cost nothing
    static: float  # the same, without stealing
    load: float  # share of the run for which rank 0 is busy
    wait: float  # longest time for which a message waited for rank 0, in seconds
    messages: float  # to rank 0, per task, without beats
    handling: float  # microseconds of the scheduler per message that is no beat
    steals: int


class Sleeps(Stage):
    """Never run: a task's duration is in the simulation."""

    def run(self, task: Task, block: Block | None, state: Any) -> None:
        raise AssertionError


class Clock:
    """Processor time of rank 0's code, less what it loses to others on this machine.

    Others take caches and half of a core. How much, a fixed piece of Python tells now and then,
    compared with the fastest that it ever was.
    """

    EVERY = 500  # measurements

    def __init__(self) -> None:
        self._fastest = float("inf")
        self._slower = 1.0
        self._left = 0

    def measure(self, act: Callable[[], Iterable[MasterAction]]) -> tuple[list[Send], float]:
        """Return what `act` returns, and the seconds that it takes."""
        if self._left == 0:
            self._left = self.EVERY
            now = min(self._probe() for _ in range(3))
            self._fastest = min(self._fastest, now)
            self._slower = now / self._fastest
        self._left -= 1
        start = time.thread_time()
        actions = act()
        seconds = (time.thread_time() - start) / self._slower
        return [self._as_send(action) for action in actions], seconds

    def _as_send(self, action: MasterAction) -> Send:
        assert not isinstance(action, LostWorker), "no worker is silent here"
        return action

    def _probe(self) -> float:
        start = time.thread_time()
        table: dict[int, tuple[int, int]] = {}
        for number in range(300):
            table[number] = number, number + 1
        sum(pair[1] for pair in table.values())
        return time.thread_time() - start


class Simulation:
    """Rank 0, its workers, and a list of what happens when."""

    def __init__(self, case: Case, durations: Sequence[float]) -> None:
        self.case = case
        self.durations = durations
        self.now = 0.0
        self.clock = Clock()
        knobs = Knobs()
        ranks = range(1, case.ranks + 1)
        hellos = {rank: Hello(f"host {rank}", rank, 1) for rank in ranks}
        self.master = MasterMachine(hellos, threads=1, knobs=knobs, patience=PATIENCE)
        welcome = Welcome(1, 1 << 20, knobs, 1.0)
        self.workers = [
            WorkerMachine(rank, welcome, size=case.ranks, patience=PATIENCE) for rank in ranks
        ]
        self.inboxes: list[deque[tuple[int, Any]]] = [deque() for _ in ranks]
        self.turning = [False] * case.ranks  # whether its next turn is in the list
        self.ticked = [0.0] * case.ranks  # until when its machine knows that time has passed
        self.timer = [INFINITY] * case.ranks  # when its loop wakes up if nothing happens
        self.active = [0.0] * case.ranks  # when it last had anything to do
        self.orders: list[deque[Compute]] = [deque() for _ in ranks]
        self.events: list[tuple[float, int, int, int, Any]] = []
        self.counter = 0
        self.dice = random.Random(case.seed)
        self.free = self.busy = self.handled = self.longest = 0.0  # rank 0
        self.received = 0

    def run(self) -> float:
        """Simulate the run; return its seconds."""
        tasks = [Task(number, None, None) for number in range(len(self.durations))]
        sends, spent = self.clock.measure(lambda: self.master.begin(Sleeps(), {}, tasks))
        run = self.master.run
        assert run is not None
        self._say(0.0, spent, sends)
        self._note(TICK_SECONDS, TICK, MASTER, None)
        while not run.over:
            self.now, _, kind, rank, item = heappop(self.events)
            if kind == TURN:
                self._turn(rank)
            elif kind == DONE:
                self._done(rank, item)
            elif kind == TIMER:
                self._wake(rank)
            elif kind == TICK:
                self._tick()
            elif rank == MASTER:
                self._hear(*item)
            else:
                self._arrive(rank, item)
        return self.free

    def _note(self, when: float, kind: int, rank: int, item: Any) -> None:
        self.counter += 1
        heappush(self.events, (when, self.counter, kind, rank, item))

    # Rank 0: one message after the other

    def _hear(self, source: int, message: Any) -> None:
        idle = self.now - self.free
        begin = self.now + self._unnoticed(idle, Backoff.CAP) if idle > 0 else self.free
        self.longest = max(self.longest, begin - self.now)
        sends, spent = self.clock.measure(lambda: self.master.handle(source, message))
        if not isinstance(message, Beat):
            self.received += 1
            self.handled += spent
        self._say(begin + RECEIVE, spent, sends)
        self.busy += RECEIVE

    def _tick(self) -> None:
        sends, spent = self.clock.measure(lambda: self.master.tick(TICK_SECONDS))
        self._say(max(self.now, self.free), spent, sends)
        self._note(max(self.now + TICK_SECONDS, self.free), TICK, MASTER, None)

    def _say(self, begin: float, spent: float, sends: list[Send]) -> None:
        """Rank 0 has computed for some seconds, and then sends."""
        when = begin + spent
        for send in sends:
            when += SEND
            self._note(when + LATENCY, ARRIVAL, send.rank, (MASTER, send.message))
        self.busy += when - begin
        self.free = when

    def _unnoticed(self, idle: float, cap: float) -> float:
        """How long a message lies there: a loop that has been idle sleeps a third as long."""
        return self.dice.random() * min(cap * (1 if idle < Backoff.LONG_IDLE else 2), idle / 3)

    # Workers

    def _arrive(self, rank: int, item: tuple[int, Any]) -> None:
        """A message arrives; the loop sees it at its next turn."""
        self.inboxes[rank - 1].append(item)
        if not self.turning[rank - 1]:
            self.turning[rank - 1] = True
            computing = self.workers[rank - 1].is_computing
            cap = Backoff.CAP * (Backoff.RELAXED if computing else 1)
            wait = self._unnoticed(self.now - self.active[rank - 1], cap)
            self._note(self.now + wait, TURN, rank, None)

    def _turn(self, rank: int) -> None:
        worker, inbox = self.workers[rank - 1], self.inboxes[rank - 1]
        self.turning[rank - 1] = False
        when = self.active[rank - 1] = self.now
        while inbox:
            source, message = inbox.popleft()
            when += HANDLE
            if self.case.steal or message.__class__.__name__ != "StealFrom":
                self._act(rank, when, worker.handle(source, message))
        self._end_turn(rank, when, [])

    def _end_turn(self, rank: int, when: float, actions: Sequence[Any]) -> None:
        """Report, act, let time pass for the machine, and note when it wants to be woken."""
        worker = self.workers[rank - 1]
        seconds, self.ticked[rank - 1] = self.now - self.ticked[rank - 1], self.now
        ticked = worker.tick(seconds)
        reports = [Send(MASTER, message) for message in worker.report()]
        self._act(rank, when, [*reports, *actions, *ticked])
        if worker.run is not None:
            timer = self.now + max(Backoff.LIMIT, worker.seconds_to_tick)
            if timer < self.timer[rank - 1]:
                self.timer[rank - 1] = timer
                self._note(timer, TIMER, rank, None)

    def _wake(self, rank: int) -> None:
        if self.now >= self.timer[rank - 1]:
            self.timer[rank - 1] = INFINITY
            self._end_turn(rank, self.now + HANDLE, [])

    def _done(self, rank: int, event: Computed | Prepared) -> None:
        worker = self.workers[rank - 1]
        if isinstance(event, Computed):
            self.orders[rank - 1].popleft()
            self._start(rank)
        self.active[rank - 1] = self.now
        self._end_turn(rank, self.now + HANDLE, worker.react(event))

    def _act(self, rank: int, when: float, actions: Sequence[Any]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._note(when + LATENCY, ARRIVAL, action.rank, (rank, action.message))
            elif isinstance(action, Prepare):
                self._note(when, DONE, rank, Prepared(action.serial))
            elif isinstance(action, Compute):
                self.orders[rank - 1].append(action)
                if len(self.orders[rank - 1]) == 1:
                    self._start(rank)
            else:
                assert not isinstance(action, Leave), "rank 0 is not silent here"
                assert isinstance(action, Drop)

    def _start(self, rank: int) -> None:
        """The compute thread takes its next order."""
        if self.orders[rank - 1]:
            order = self.orders[rank - 1][0]
            numbers = [task.id for task, _ in order.work]
            seconds = sum(self.durations[number] for number in numbers)
            results = tuple((number, None) for number in numbers)
            self._note(self.now + seconds, DONE, rank, Computed(order.serial, results, seconds))


def durations_of(case: Case) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Draw the durations of all tasks."""
    dice = np.random.default_rng(case.seed)
    location = np.log(case.mean) - case.sigma**2 / 2
    return dice.lognormal(location, case.sigma, case.ranks * case.tasks)


def one_queue(ranks: int, durations: Sequence[float]) -> float:
    """Return the time of a run in which whoever is free takes the next task, at no cost."""
    until = [0.0] * ranks
    for seconds in durations:
        heapreplace(until, until[0] + seconds)
    return max(until)


def simulate(case: Case) -> Verdict:
    """Simulate one case."""
    durations = durations_of(case)
    simulation = Simulation(case, durations.tolist())
    gc.collect()
    gc.disable()  # of the millions of objects most are not rank 0's
    try:
        seconds = simulation.run()
    finally:
        gc.enable()
    work = float(durations.sum())
    assert simulation.master.run is not None
    return Verdict(
        ranks=case.ranks,
        tasks=case.tasks,
        mean=case.mean,
        sigma=case.sigma,
        seconds=seconds,
        efficiency=work / case.ranks / seconds,
        free=work / case.ranks / one_queue(case.ranks, durations.tolist()),
        static=work / case.ranks / float(durations.reshape(case.ranks, -1).sum(1).max()),
        load=simulation.busy / seconds,
        wait=simulation.longest,
        messages=simulation.received / durations.size,
        handling=1e6 * simulation.handled / simulation.received,
        steals=simulation.master.run.scheduler.steals,
    )


def cases(args: argparse.Namespace) -> list[Case]:
    """Return what the command line asks for, the small ones first."""
    found = [
        Case(ranks, tasks, *durations)
        for durations in args.durations
        for tasks in args.tasks
        for ranks in args.ranks
        if ranks * tasks <= args.most
    ]
    return sorted(found, key=lambda case: case.ranks * case.tasks)


def plot(verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw efficiency and load against the number of ranks."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    colours = iter(["C0", "C1", "C2", "C3", "C4", "C5"])
    for mean, tasks in sorted({(v.mean, v.tasks) for v in verdicts}):
        line = sorted((v for v in verdicts if (v.mean, v.tasks) == (mean, tasks)), key=rank_of)
        ranks, colour = [v.ranks for v in line], next(colours, "C6")
        label = f"{tasks} tasks of {mean:g} s per rank"
        left.semilogx(ranks, [v.efficiency for v in line], "o-", color=colour, label=label)
        left.semilogx(ranks, [v.free for v in line], ":", color=colour)
        right.loglog(ranks, [v.load for v in line], "o-", color=colour)
    left.plot([], [], ":", color="grey", label="a queue without cost")
    left.set(xlabel="ranks", ylabel="efficiency", ylim=(0, 1.05))
    left.legend(fontsize="x-small")
    right.set(xlabel="ranks", ylabel="load of rank 0")
    right.axhline(1.0, color="grey", linewidth=0.8)
    figure.savefig(path, dpi=80)


def rank_of(verdict: Verdict) -> int:
    """Return what the lines of the plot are sorted by."""
    return verdict.ranks


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[64, 1024, 16384, 100_000])
    add("--tasks", type=int, nargs="+", default=[20, 100], help="per rank")
    add(
        "--durations",
        type=lambda word: tuple(map(float, word.split(":"))),
        nargs="+",
        default=[(0.1, 0.5), (1.0, 0.5), (30.0, 1.0)],
        metavar="MEAN:SIGMA",
        help="seconds of a task, and sigma of their logarithm",
    )
    add("--most", type=int, default=2_000_000, help="leave out what has more tasks than this")
    add("--csv", type=Path, help="keep the table here")
    add("--plot", type=Path, help="draw it here")
    return parser.parse_args(words)


def main() -> None:
    """Simulate what the command line says, and print a table."""
    args = parse()
    names = [field.name for field in fields(Verdict)]
    print(" ".join(f"{name:>10}" for name in names))
    verdicts = []
    for case in cases(args):
        verdicts.append(simulate(case))
        print(" ".join(f"{x:10.4g}" for x in asdict(verdicts[-1]).values()), flush=True)
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(names)
            table.writerows(asdict(verdict).values() for verdict in verdicts)
    if args.plot:
        plot(verdicts, args.plot)


if __name__ == "__main__":
    main()
