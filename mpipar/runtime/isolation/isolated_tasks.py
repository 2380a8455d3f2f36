"""Tasks in a supervised child process, so that a crash costs one try of one task and no rank.

    compute thread --run--> TaskChild --starts, watches, kills--> ChildProcess ==socket== child_main

A task may end its process (a segmentation fault, os._exit, out of memory) or may hang. Then a new
child replaces the old one, and goes on with the task behind that one. All of this is called by one
compute thread, except `close`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mpipar.errors import ProtocolError
from mpipar.runtime.isolation.child_main import (
    ChildReady,
    ChildSetup,
    TaskBatch,
    TaskRan,
    TasksSkipped,
)
from mpipar.runtime.isolation.child_process import ChildProcess
from mpipar.runtime.machines.caught_error import CaughtError, StartFailedError
from mpipar.runtime.node_memory.shared_arrays import UnmappableError, values_for_child
from mpipar.runtime.process.environment import patience
from mpipar.runtime.wire.framing import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mpipar.runtime.stage import Block, Stage, Task
    from mpipar.runtime.wire.framing import Packet

__all__ = ["TaskChild"]

AHEAD_TASKS = 128
AHEAD_BYTES = 1 << 20
"""Limits of what is sent ahead to the child: tasks, and bytes that wait to be written."""
PROMPT_BYTES = 1 << 11  # so many bytes that wait are written before results are read
STARTS = 3
"""How often a process is started if it dies before its stage has started."""
UNMAPPABLE = UnmappableError.__name__
"""The error of a child that cannot map the shared arrays; the next child is sent copies."""


@dataclass(slots=True)
class _PendingTask:
    """A task of a batch, and the error if it cannot be sent."""

    task: Task
    block: Block | None
    error: CaughtError | None = None


class TaskChild:
    """A process that runs tasks of one stage, replaced whenever it dies.

    The kernel kills the process when the thread that has started it ends, so none outlives its
    worker.
    """

    def __init__(self, stage: Stage, shared: Mapping[str, Any], *, timeout: float | None) -> None:
        """Start nothing yet.

        timeout   seconds that one task may take; None: any time
        """
        self._stage = stage
        self._shared = shared
        self._send_copies = False
        self._timeout = timeout
        self._process: ChildProcess | None = None
        self._lock = threading.Lock()  # of `_busy` and `_process`
        self._busy = False
        self._closed = threading.Event()

    def run(
        self, tasks: Sequence[tuple[Task, Block | None]], *, longest: float | None = None
    ) -> Iterator[TaskRan]:
        """Run tasks in order; yield the result of each as soon as it is there.

        Nothing is yielded for tasks that have not begun within `longest` seconds after the first,
        and nothing after `close`. Raises StartFailedError.
        """
        until: float | None = None
        waiting = deque(_PendingTask(task, block) for task, block in tasks)
        sent: deque[_PendingTask] = deque()
        with self._occupied():
            try:
                while (waiting or sent) and (process := self._started()) is not None:
                    if longest is not None:
                        until = until or time.monotonic() + longest  # without its start
                    process.push(TaskBatch(None if until is None else until - time.monotonic()))
                    yield from self._drive(process, waiting, sent)
            finally:
                if sent or self._closed.is_set():
                    self._drop()

    def start(self) -> None:
        """Start the process and its stage, unless they run already. Raises StartFailedError."""
        with self._occupied():
            self._started()

    @contextmanager
    def _occupied(self) -> Iterator[None]:
        """Have `close` leave it to the thread that is in here to release the process."""
        with self._lock:
            self._busy = True
        try:
            yield
        finally:
            with self._lock:
                self._busy = False

    def close(self) -> None:
        """End the process, also in the middle of a task. Thread-safe."""
        with self._lock:
            self._closed.set()
            busy, process = self._busy, self._process
        if process is not None and busy:
            process.kill()  # the thread in `run` finds it dead and releases it
        elif process is not None:
            process.close()

    # Starting

    def _started(self) -> ChildProcess | None:
        """Return the living process, or a new one whose stage has started; None after `close`."""
        if self._process is not None and self._process.is_idle():
            return self._process
        for attempt in range(1, STARTS + 1):
            self._drop()
            with self._lock:
                if self._closed.is_set():
                    return None
                process = self._process = ChildProcess()
            error = self._start_stage(process)
            if error is None or self._closed.is_set():
                return None if self._closed.is_set() else process
            self._send_copies = self._send_copies or error.kind == UNMAPPABLE
            if error.kind not in {"Died", UNMAPPABLE} or attempt == STARTS:
                self._drop()
                raise StartFailedError(error)
        return None

    def _start_stage(self, process: ChildProcess) -> CaughtError | None:
        """Wait for the interpreter, then for the stage; return the error, if any."""
        start_limit = patience()
        if process.wait_for(start_limit) is None:
            return process.end_error("while it started", start_limit)
        try:
            shared = self._shared if self._send_copies else values_for_child(self._shared)
            process.push(ChildSetup(self._stage, shared))
        except Exception as error:
            text = f"the stage or what it shares cannot be pickled: {error}"
            return replace(CaughtError.of(error), text=text)
        limit = None if self._timeout is None else max(start_limit, self._timeout)
        packet = process.wait_for(limit)
        if packet is None:
            return process.end_error("while its stage started", limit)
        ready = unpack(packet)
        if not isinstance(ready, ChildReady):
            raise ProtocolError(f"a task process that starts has said {type(ready).__name__}")
        return ready.error

    def _drop(self) -> None:
        """End the process at once."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.close_at_once()

    # Running

    def _drive(
        self, process: ChildProcess, waiting: deque[_PendingTask], sent: deque[_PendingTask]
    ) -> Iterator[TaskRan]:
        """Run tasks until all are done or the process has died."""
        moved = time.monotonic()
        while waiting or sent:
            self._fill(process, waiting, sent)
            if process.backlog > PROMPT_BYTES:  # so that the child always has tasks
                process.exchange(0.0)
            while sent and (error := sent[0].error) is not None:
                yield TaskRan(sent.popleft().task.id, None, 0.0, error)
            if not sent:
                continue
            if (packet := process.next()) is not None:
                moved = time.monotonic()
                ran = self._read(packet, sent.popleft().task)
                if ran is not None:
                    yield ran
            elif process.ended:
                yield from self._on_death(process, waiting, sent)
                return
            elif process.exchange(self._left(moved)):
                moved = time.monotonic()
            elif self._left(moved) == 0:
                yield from self._on_death(process, waiting, sent)
                return

    def _fill(
        self, process: ChildProcess, waiting: deque[_PendingTask], sent: deque[_PendingTask]
    ) -> None:
        """Send tasks ahead to the child, up to the limits."""
        while waiting and len(sent) < AHEAD_TASKS and process.backlog < AHEAD_BYTES:
            work = waiting.popleft()
            try:
                process.assign(work.task, work.block)
            except Exception as error:
                text = f"task {work.task.id} cannot be pickled: {error}"
                work.error = replace(CaughtError.of(error), text=text)
            sent.append(work)

    def _left(self, since: float) -> float | None:
        """Return the seconds left to the task that has run since this time; None: any time."""
        if self._timeout is None:
            return None
        return max(0.0, since + self._timeout - time.monotonic())

    def _read(self, packet: Packet, task: Task) -> TaskRan | None:
        """Return the result of a task, or its error; None if it was not begun."""
        try:
            reply = unpack(packet)
        except Exception as error:
            text = f"the result of task {task.id} cannot be unpickled: {error}"
            return TaskRan(task.id, None, 0.0, replace(CaughtError.of(error), text=text))
        if isinstance(reply, TasksSkipped):
            return None
        if not isinstance(reply, TaskRan):
            raise ProtocolError(f"a process has said {type(reply).__name__} of task {task.id}")
        return reply if reply.task == task.id else replace(reply, task=task.id)

    def _on_death(
        self, process: ChildProcess, waiting: deque[_PendingTask], sent: deque[_PendingTask]
    ) -> Iterator[TaskRan]:
        """Yield the error of the task that killed the process or hangs; queue the tasks behind."""
        if self._closed.is_set():
            return
        failed = sent.popleft()
        waiting.extendleft(reversed(sent))
        sent.clear()
        error = process.end_error("while running it", self._timeout)
        self._drop()
        seconds = self._timeout if error.kind == "Timeout" and self._timeout else 0.0
        yield TaskRan(failed.task.id, None, seconds, error)
