"""Tasks in a supervised child process, so that what kills a task costs one try and no rank.

    Engine --run--> Child --starts, watches, kills--> process.py ==socket== child.py, elsewhere

A task may end its process by a segmentation fault, os._exit or running out of memory, or may
hang: the child is then replaced by a new one, which goes on with the task after it. Everything
here is called by one compute thread, except `close`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mpipar.runtime.isolation.child_main import (
    ChildReady,
    ChildSetup,
    TaskBatch,
    TaskRan,
    TasksSkipped,
)
from mpipar.runtime.isolation.child_process import ChildProcess
from mpipar.runtime.machines.caught_error import CaughtError, StartFailedError
from mpipar.runtime.node_memory.shared_arrays import UnmappableError, for_child
from mpipar.runtime.process.environment import patience
from mpipar.runtime.wire.framing import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mpipar.runtime.stage import Block, Stage, Task
    from mpipar.runtime.wire.framing import Packet

__all__ = ["TaskChild"]

AHEAD_TASKS = 128
AHEAD_BYTES = 1 << 20
"""So many tasks lie ready in the child, and no more once so many bytes wait to go there."""
HASTE_BYTES = 1 << 11
STARTS = 3
"""Times that a process is started which ends before its stage has started."""
UNREACHABLE = UnmappableError.__name__
"""What a child says that cannot map the shared arrays; the next one is sent them."""


@dataclass(slots=True)
class _BatchOnItsWay:
    """A task of a burst, and why it cannot be sent, if so."""

    task: Task
    block: Block | None
    trouble: CaughtError | None = None


class TaskChild:
    """A process that runs tasks of one stage, replaced whenever it dies.

    It ends with the thread that runs it, which is that thread's sign that its worker is dead.
    """

    def __init__(self, stage: Stage, shared: Mapping[str, Any], *, timeout: float | None) -> None:
        """`timeout`: seconds that one task may take. Nothing is started yet."""
        self._stage = stage
        self._shared = shared
        self._plain = False
        self._timeout = timeout
        self._process: ChildProcess | None = None
        self._lock = threading.Lock()  # of `_busy` and `_process`
        self._busy = False
        self._closed = threading.Event()

    def run(
        self, tasks: Sequence[tuple[Task, Block | None]], *, longest: float | None = None
    ) -> Iterator[TaskRan]:
        """Run tasks in order, and yield what comes of each as it comes.

        Of tasks that have not begun within `longest` seconds of the first nothing comes, and
        nothing after `close`. Raises StartFailedError.
        """
        until: float | None = None
        waiting = deque(_BatchOnItsWay(task, block) for task, block in tasks)
        sent: deque[_BatchOnItsWay] = deque()
        with self._occupied():
            try:
                while (waiting or sent) and (process := self._started()) is not None:
                    if longest is not None:
                        until = until or time.monotonic() + longest  # a start does not count
                    process.push(TaskBatch(None if until is None else until - time.monotonic()))
                    yield from self._drive(process, waiting, sent)
            finally:
                if sent or self._closed.is_set():
                    self._drop()

    def start(self) -> None:
        """Start the process and its stage, unless they are. Raises StartFailedError."""
        with self._occupied():
            self._started()

    @contextmanager
    def _occupied(self) -> Iterator[None]:
        """Have `close` leave the process to the thread that is in here."""
        with self._lock:
            self._busy = True
        try:
            yield
        finally:
            with self._lock:
                self._busy = False

    def close(self) -> None:
        """End the process, also in the middle of a task. From any thread."""
        with self._lock:
            self._closed.set()
            busy, process = self._busy, self._process
        if process is not None and busy:
            process.kill()  # the thread in `run` finds it dead and tidies up
        elif process is not None:
            process.part()

    # Starting

    def _started(self) -> ChildProcess | None:
        """Return a process whose stage has started, an old one if it lives; None if closed."""
        if self._process is not None and self._process.is_idle():
            return self._process
        for attempt in range(1, STARTS + 1):
            self._drop()
            with self._lock:
                if self._closed.is_set():
                    return None
                process = self._process = ChildProcess()
            trouble = self._start_stage(process)
            if trouble is None or self._closed.is_set():
                return None if self._closed.is_set() else process
            self._plain = self._plain or trouble.kind == UNREACHABLE
            if trouble.kind not in {"Died", UNREACHABLE} or attempt == STARTS:
                self._drop()
                raise StartFailedError(trouble)
        return None

    def _start_stage(self, process: ChildProcess) -> CaughtError | None:
        """Wait for the interpreter, then for the stage; return what went wrong."""
        bound = patience()
        if process.wait_for(bound) is None:
            return process.trouble("while it started", bound)
        try:
            shared = self._shared if self._plain else for_child(self._shared)
            process.push(ChildSetup(self._stage, shared))
        except Exception as error:
            text = f"the stage or what it shares cannot be pickled: {error}"
            return replace(CaughtError.of(error), text=text)
        limit = None if self._timeout is None else max(bound, self._timeout)
        packet = process.wait_for(limit)
        if packet is None:
            return process.trouble("while its stage started", limit)
        ready = unpack(packet)
        assert isinstance(ready, ChildReady)
        return ready.trouble

    def _drop(self) -> None:
        """End the process at once."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()

    # Running

    def _drive(
        self, process: ChildProcess, waiting: deque[_BatchOnItsWay], sent: deque[_BatchOnItsWay]
    ) -> Iterator[TaskRan]:
        """Run tasks until all are done, or the process is."""
        moved = time.monotonic()
        while waiting or sent:
            self._fill(process, waiting, sent)
            if process.backlog > HASTE_BYTES:  # lest the child run dry while results are read here
                process.exchange(0.0)
            while sent and (trouble := sent[0].trouble) is not None:
                yield TaskRan(sent.popleft().task.id, None, 0.0, trouble)
            if not sent:
                continue
            if (packet := process.next()) is not None:
                moved = time.monotonic()
                ran = self._read(packet, sent.popleft().task)
                if ran is not None:
                    yield ran
            elif process.ended:
                yield from self._bury(process, waiting, sent)
                return
            elif process.exchange(self._left(moved)):
                moved = time.monotonic()
            elif self._left(moved) == 0:
                yield from self._bury(process, waiting, sent)
                return

    def _fill(
        self, process: ChildProcess, waiting: deque[_BatchOnItsWay], sent: deque[_BatchOnItsWay]
    ) -> None:
        """Send tasks ahead."""
        while waiting and len(sent) < AHEAD_TASKS and process.backlog < AHEAD_BYTES:
            work = waiting.popleft()
            try:
                process.assign(work.task, work.block)
            except Exception as error:
                text = f"task {work.task.id} cannot be pickled: {error}"
                work.trouble = replace(CaughtError.of(error), text=text)
            sent.append(work)

    def _left(self, since: float) -> float | None:
        """Return the seconds for which the task that runs since then may still go on."""
        if self._timeout is None:
            return None
        return max(0.0, since + self._timeout - time.monotonic())

    def _read(self, packet: Packet, task: Task) -> TaskRan | None:
        """Return what has come of a task; None if it was not begun."""
        try:
            reply = unpack(packet)
        except Exception as error:
            text = f"the result of task {task.id} cannot be unpickled: {error}"
            return TaskRan(task.id, None, 0.0, replace(CaughtError.of(error), text=text))
        if isinstance(reply, TasksSkipped):
            return None
        assert isinstance(reply, TaskRan)
        return reply if reply.task == task.id else replace(reply, task=task.id)

    def _bury(
        self, process: ChildProcess, waiting: deque[_BatchOnItsWay], sent: deque[_BatchOnItsWay]
    ) -> Iterator[TaskRan]:
        """The process has died of a task, or must: the tasks behind that one go on."""
        if self._closed.is_set():
            return
        culprit = sent.popleft()
        waiting.extendleft(reversed(sent))
        sent.clear()
        trouble = process.trouble("while running it", self._timeout)
        self._drop()
        seconds = self._timeout if trouble.kind == "Timeout" and self._timeout else 0.0
        yield TaskRan(culprit.task.id, None, seconds, trouble)
