"""The program of a child process, which runs the tasks of one compute thread.

    parent --ChildSetup, TaskBatch, TaskInput--> child
    parent <--ChildReady, TaskRan, TasksSkipped-- child

The child runs one task after the other and sends each result at once. So if it dies, the task that
it died of is the first one without a result. The child loads neither MPI nor anything else that it
does not need: a node may start hundreds of children at once.
"""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mpipar.runtime.machines.caught_error import CaughtError
from mpipar.runtime.node_memory.shared_arrays import SharedArrays, has_handles
from mpipar.runtime.process.environment import single_threaded_blas
from mpipar.runtime.process.signals import ignore_interrupts
from mpipar.runtime.stage import frozen
from mpipar.runtime.wire.framing import FrameReader, pack, unpack
from mpipar.system import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.runtime.stage import Block, Stage, Task
    from mpipar.runtime.wire.framing import Packet

SHOW_STACKS = signal.SIGUSR2
"""The signal by which the parent asks for the stacks of a task that hangs."""
ORPHAN_EXIT = 75

# Parent -> child


@dataclass(frozen=True, slots=True)
class ChildSetup:
    """The first message: the stage to start, and what it shares."""

    stage: Stage
    shared: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """The tasks that follow are a batch; those that begin late, after `longest` s, are skipped."""

    longest: float | None


@dataclass(frozen=True, slots=True)
class TaskInput:
    """Run a task, with the block in this slot. A block comes once and stays in its slot."""

    task: Task
    slot: int | None
    block: Block | None

    def __reduce__(self) -> tuple[type[TaskInput], tuple[Task, int | None, Block | None]]:
        return TaskInput, (self.task, self.slot, self.block)  # faster, as for Task


# Child -> parent


@dataclass(frozen=True, slots=True)
class ChildReady:
    """The interpreter has started (`started` is False), or the stage has, perhaps with an error."""

    started: bool
    error: CaughtError | None = None


@dataclass(frozen=True, slots=True)
class TaskRan:
    """A task has ended, with a result or with an error."""

    task: int
    result: Any
    seconds: float
    error: CaughtError | None = None

    def __reduce__(self) -> tuple[type[TaskRan], tuple[int, Any, float, CaughtError | None]]:
        return TaskRan, (self.task, self.result, self.seconds, self.error)  # faster, as for Task


@dataclass(frozen=True, slots=True)
class TasksSkipped:
    """A task was not begun, because its batch has lasted too long."""

    task: int


Reply: TypeAlias = ChildReady | TaskRan | TasksSkipped


def main(link: int, faults: int, parent: int) -> None:
    """Serve the parent at the other end of the socket `link` until it closes that."""
    if not end_with_parent(parent):
        os._exit(ORPHAN_EXIT)
    ignore_interrupts()
    for stream in (link, faults):
        os.set_inheritable(stream, False)  # what a task starts must not keep them open
    faulthandler.enable(faults)
    faulthandler.register(SHOW_STACKS, faults)
    sys.argv[1:] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a task may not come to an end
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent has gone
        _Server(socket.socket(fileno=link)).serve()


class _Server:
    """The loop of the child."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._reader = FrameReader(link)
        self._blocks: dict[int, Block] = {}  # by slot
        self._longest: float | None = None  # of the batch
        self._until: float | None = None  # when no further task of the batch begins
        self._stage: Stage
        self._state: Any

    def serve(self) -> None:
        """Start the stage, then run tasks until the parent closes the link."""
        self._send(ChildReady(started=False))
        packet = self._receive()
        if packet is None or not self._start(packet):
            return
        while (packet := self._receive()) is not None:
            try:
                message = unpack(packet)
            except BaseException as error:  # of the task's payload, so the task has failed
                self._reply(TaskRan(-1, None, 0.0, CaughtError.of(error)))
                continue
            if isinstance(message, TaskBatch):
                self._longest, self._until = message.longest, None
            else:
                self._reply(self._run(message))
            del message, packet  # a block must not outlive its slot here

    def _receive(self) -> Packet | None:
        """Wait for a packet; None if the parent has closed the link."""
        while (packet := self._reader.next()) is None:
            if not self._reader.receive():
                return None
        return packet

    def _send(self, reply: Reply) -> None:
        for part in pack(reply):
            self._link.sendall(part)

    def _start(self, packet: Packet) -> bool:
        error = None
        try:
            setup: ChildSetup = unpack(packet)
            self._stage = setup.stage
            shared = setup.shared
            if has_handles(shared):
                arrays = SharedArrays.attach(shared)
                shared = arrays.values
                arrays.close()  # the arrays themselves keep the memory
            self._state = setup.stage.start(frozen(shared))
            single_threaded_blas()  # `start` may have loaded a library
        except BaseException as caught:
            error = CaughtError.of(caught)
        self._flush()
        self._send(ChildReady(started=True, error=error))
        return error is None

    def _run(self, work: TaskInput) -> TaskRan | TasksSkipped:
        if work.slot is not None and work.block is not None:
            self._blocks[work.slot] = frozen(work.block)
        block = None if work.slot is None else self._blocks[work.slot]
        start = time.perf_counter()
        if self._longest is not None:
            self._until = self._until or start + self._longest
            if start > self._until:
                return TasksSkipped(work.task.id)
        result, error = None, None
        try:
            result = self._stage.run(work.task, block, self._state)
        except BaseException as caught:  # also SystemExit: then the task has failed
            error = CaughtError.of(caught)
        return TaskRan(work.task.id, result, time.perf_counter() - start, error)

    def _reply(self, reply: TaskRan | TasksSkipped) -> None:
        self._flush()
        try:
            parts = pack(reply)
        except Exception as caught:
            text = f"the result of task {reply.task} cannot be pickled: {caught}"
            error = CaughtError(type(caught).__name__, text, "")
            parts = pack(TaskRan(reply.task, None, 0.0, error))
        for part in parts:
            self._link.sendall(part)

    def _flush(self) -> None:
        """Flush what a task has printed, so that it is seen before the result."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):  # a task has closed or replaced them
            pass
