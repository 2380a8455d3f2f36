"""A worker's loop: it brings messages, events and time to the machine, and does what that wants."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from mpipar.errors import UnavailableError
from mpipar.runtime.loops.compute_threads import ComputeThreads
from mpipar.runtime.machines.liveness import Leave
from mpipar.runtime.machines.messages import (
    MASTER,
    Bye,
    Crashed,
    Finished,
    Hello,
    RankLost,
    Send,
    Stop,
    TaskFailed,
    Welcome,
)
from mpipar.runtime.machines.worker import MOST_RESULTS, WorkerMachine
from mpipar.runtime.node_memory.shared_arrays import memory_name
from mpipar.runtime.process.environment import patience
from mpipar.runtime.process.exits import kill_processes
from mpipar.runtime.process.launcher_variables import wants_fault_tolerance
from mpipar.runtime.transports.transport import UnsendableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpipar.runtime.machines.messages import Message, Rank, ToWorker
    from mpipar.runtime.machines.worker import Action
    from mpipar.runtime.transports.transport import WorkerTransport

REPORT_BYTES = 1 << 17
"""Results are sent in messages of about this size, which fit into the processors' caches."""
CONGESTED_BYTES = 1 << 22
"""No task begins while so many bytes wait to leave: to allocate more memory would take longer than
to wait for memory that becomes free."""
LAST_TASK_SECONDS = 1.0
FLUSH_SECONDS = 5.0
CRASH_EXIT = 70
ORPHAN_EXIT = 75
GREETING_PATIENCES = 30
"""How long a worker waits for Welcome: rank 0 may read a large input before it opens the pool."""


@dataclass(frozen=True)
class Departure:
    """How a worker ended: its exit code, and why."""

    code: int
    threads_ended: bool  # False: a task was still running, so its thread may outlive the loop
    reason: str = ""  # why the job goes on without this worker, if it does


class _OrphanedError(Exception):
    """Rank 0 is dead, or this worker is cut off from it."""


def serve(transport: WorkerTransport) -> Departure:
    """Work for rank 0 until it says Stop. An error of the runtime is reported to rank 0 first."""
    loop = _WorkerLoop(transport)
    try:
        return loop.run()
    except _OrphanedError:
        return Departure(ORPHAN_EXIT, threads_ended=False)
    except Exception:
        return loop.crash(traceback.format_exc())


class _WorkerLoop:
    """A worker's loop; made once per worker."""

    def __init__(self, transport: WorkerTransport) -> None:
        self._transport = transport
        self._inbox: deque[tuple[Rank, ToWorker]] = deque()  # arrived, but not handled yet
        self._threads: ComputeThreads | None = None
        self._ticked = time.monotonic()
        self._patience = patience()
        self._said_bye = False
        self._reason = ""

    def run(self) -> Departure:
        """Say Hello, then loop until rank 0 says Stop."""
        welcome = self._greet()
        if welcome is None:
            self._send(MASTER, Bye())
            self._flush()
            return Departure(0, threads_ended=True, reason=self._reason)
        transport = self._transport
        transport.set_crowding(welcome.crowding)
        slowdown = welcome.knobs.slowdown(transport.rank)
        threads = self._threads = ComputeThreads(welcome.threads, slowdown, transport.wake)
        worker = WorkerMachine(
            transport.rank, welcome, size=transport.size, patience=self._patience
        )
        while not worker.stopped:
            moved = self._turn(worker, threads)
            transport.pause(moved=moved, relaxed=worker.is_computing)
        ended = threads.close(LAST_TASK_SECONDS)
        self._flush()
        return Departure(0, ended, self._reason)

    def crash(self, text: str) -> Departure:
        """Report an error of the runtime to rank 0, and wait for Stop if it has not come yet."""
        if self._threads is not None:
            self._threads.close(patience=0.0)
        self._send(MASTER, Crashed(text))
        until = time.monotonic() + self._patience
        while not self._said_bye and time.monotonic() < until:
            arrived = [*self._inbox, *self._transport.receive()]
            self._inbox.clear()
            if MASTER in self._transport.lost():
                break
            if any(isinstance(message, Stop) for _, message in arrived):
                self._send(MASTER, Bye())
            self._transport.pause(moved=bool(arrived))
        self._flush()
        return Departure(CRASH_EXIT, threads_ended=False)

    def _flush(self) -> None:
        until = time.monotonic() + FLUSH_SECONDS
        while self._transport.backlog() and time.monotonic() < until:
            self._transport.receive()
            self._transport.pause(moved=False)

    def _greet(self) -> Welcome | None:
        """Say Hello and return the answer; None if that was Stop."""
        transport = self._transport
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        hello = Hello(socket.gethostname(), os.getpid(), cores or 1, memory_name())
        transport.send(MASTER, hello)
        bound = GREETING_PATIENCES * self._patience
        until = time.monotonic() + bound
        while time.monotonic() < until:
            arrived = self._receive()
            self._inbox.extend(arrived)  # also from workers that were welcomed earlier
            for _, message in arrived:
                if isinstance(message, Stop):
                    self._on_stop(message)
                    return None
                if isinstance(message, Welcome):
                    return message
            transport.pause(moved=bool(arrived))
        raise UnavailableError(f"rank 0 has not answered rank {transport.rank} for {bound:.0f} s")

    def _turn(self, worker: WorkerMachine, threads: ComputeThreads) -> bool:
        """Handle all messages and events that there are; return whether there were any."""
        self._inbox.extend(self._receive())
        moved = bool(self._inbox)
        congested = self._transport.backlog() > CONGESTED_BYTES
        if congested is not worker.congested:
            self._perform(threads, worker.congest(congested))
        while self._inbox:
            source, message = self._inbox.popleft()
            if isinstance(message, Stop):
                self._on_stop(message)
            elif isinstance(message, RankLost):
                self._transport.cut_off(message.rank)
            self._perform(threads, worker.handle(source, message))
        events = threads.events()
        actions = [action for event in events for action in worker.react(event)]
        self._report(worker)
        self._perform(threads, actions)
        self._tick(worker, threads)
        return moved or bool(events)

    def _report(self, worker: WorkerMachine) -> None:
        """Send the results that are due, and learn how large a result is."""
        for message in worker.report():
            before = self._transport.backlog()
            self._send(MASTER, message)
            each = (self._transport.backlog() - before) / len(message.results)
            worker.most_results = max(1, min(MOST_RESULTS, int(REPORT_BYTES / max(each, 1.0))))

    def _tick(self, worker: WorkerMachine, threads: ComputeThreads) -> None:
        """Let time pass for the machine."""
        now = time.monotonic()
        seconds, self._ticked = now - self._ticked, now
        run = worker.run
        running = threads.running(run.serial) if run is not None and run.timeout else ()
        for action in worker.tick(seconds, running):
            if isinstance(action, Leave):
                self._leave(action)
            self._send(action.rank, action.message)

    def _leave(self, action: Leave) -> NoReturn:
        """End a worker that hears nothing of rank 0."""
        rank, host = self._transport.rank, socket.gethostname()
        sys.stderr.write(f"mpipar: rank {rank} on {host} leaves: {action.reason}\n")
        raise _OrphanedError

    def _on_stop(self, message: Stop) -> None:
        if wants_fault_tolerance():  # else MPI would end the job because of it
            kill_processes(message.kill)
        self._reason = message.reason
        if message.reason:
            rank, host = self._transport.rank, socket.gethostname()
            sys.stderr.write(
                f"mpipar: rank {rank} on {host} (process {os.getpid()}) leaves, the job goes on "
                f"without it: {message.reason}\n"
            )

    def _receive(self) -> list[tuple[Rank, ToWorker]]:
        arrived = self._transport.receive()
        # Losses of other workers are told by rank 0, so that all workers learn them in one order.
        if MASTER in self._transport.lost():
            raise _OrphanedError
        return arrived

    def _perform(self, threads: ComputeThreads, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action.rank, action.message)
            else:
                threads.perform(action)

    def _send(self, rank: Rank, message: Message) -> None:
        self._said_bye = self._said_bye or isinstance(message, Bye)
        try:
            self._transport.send(rank, message)
        except UnsendableError as error:
            if not isinstance(message, Finished):
                raise
            # Its contribution is in the sums of this worker, so the task must not be run again.
            tasks = ", ".join(str(task) for task, _ in message.results)
            text = f"the result of task {tasks} cannot be sent: {error}"
            self._transport.send(MASTER, TaskFailed(message.serial, None, "TypeError", text, ""))
