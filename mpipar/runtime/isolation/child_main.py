"""The supervised process in which the tasks of one compute thread run; see `isolation.py`.

    parent --Setup, Burst, Work--> child --Ready, Ran, Skipped--> parent

It runs one task after the other and sends each result as soon as it is there, so that the culprit
of its death is the first task without one. It loads neither MPI nor anything else that it does
not need: a node may start hundreds at once.
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
from mpipar.runtime.node_memory.shared_arrays import SharedArrays, has_tickets
from mpipar.runtime.process.environment import single_threaded_blas
from mpipar.runtime.stage import frozen
from mpipar.runtime.wire.framing import FrameReader, pack, unpack
from mpipar.system import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.runtime.stage import Block, Stage, Task
    from mpipar.runtime.wire.framing import Packet

SHOW_STACKS = signal.SIGUSR2
"""The parent asks with it where a task hangs."""
ORPHAN_EXIT = 75

# Parent -> child


@dataclass(frozen=True, slots=True)
class ChildSetup:
    """The first message: what to start."""

    stage: Stage
    shared: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """The tasks that follow belong together: none begins so many seconds after the first."""

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
    """The interpreter is up (`started` is False), then the stage, or it is in trouble."""

    started: bool
    trouble: CaughtError | None = None


@dataclass(frozen=True, slots=True)
class TaskRan:
    """A task has ended, well or not."""

    task: int
    result: Any
    seconds: float
    trouble: CaughtError | None = None

    def __reduce__(self) -> tuple[type[TaskRan], tuple[int, Any, float, CaughtError | None]]:
        return TaskRan, (self.task, self.result, self.seconds, self.trouble)  # faster, as for Task


@dataclass(frozen=True, slots=True)
class TasksSkipped:
    """A task was not begun, because its burst has lasted too long."""

    task: int


Reply: TypeAlias = ChildReady | TaskRan | TasksSkipped


def main(link: int, faults: int, parent: int) -> None:
    """Serve the parent at the other end of the socket `link` until it closes that."""
    if not end_with_parent(parent):
        os._exit(ORPHAN_EXIT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what ^C means
    for stream in (link, faults):
        os.set_inheritable(stream, False)  # what a task starts must not keep them open
    faulthandler.enable(faults)
    faulthandler.register(SHOW_STACKS, faults)
    sys.argv[1:] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a task may not come to an end
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone, or wants no more
        _Server(socket.socket(fileno=link)).serve()


class _Server:
    """The child's loop."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._reader = FrameReader(link)
        self._blocks: dict[int, Block] = {}  # by slot
        self._longest: float | None = None  # of the burst
        self._until: float | None = None  # when no further task of the burst begins
        self._stage: Stage
        self._state: Any

    def serve(self) -> None:
        """Start the stage, then run what comes."""
        self._send(ChildReady(started=False))
        packet = self._receive()
        if packet is None or not self._start(packet):
            return
        while (packet := self._receive()) is not None:
            try:
                message = unpack(packet)
            except BaseException as error:  # only a task's payload, so its failure
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
        trouble = None
        try:
            setup: ChildSetup = unpack(packet)
            self._stage = setup.stage
            shared = setup.shared
            if has_tickets(shared):
                depot = SharedArrays.find(shared)
                shared = depot.values
                depot.close()  # the arrays themselves keep the memory
            self._state = setup.stage.start(frozen(shared))
            single_threaded_blas()  # `start` may have loaded a library
        except BaseException as error:
            trouble = CaughtError.of(error)
        self._flush()
        self._send(ChildReady(started=True, trouble=trouble))
        return trouble is None

    def _run(self, work: TaskInput) -> TaskRan | TasksSkipped:
        if work.slot is not None and work.block is not None:
            self._blocks[work.slot] = frozen(work.block)
        block = None if work.slot is None else self._blocks[work.slot]
        start = time.perf_counter()
        if self._longest is not None:
            self._until = self._until or start + self._longest
            if start > self._until:
                return TasksSkipped(work.task.id)
        result, trouble = None, None
        try:
            result = self._stage.run(work.task, block, self._state)
        except BaseException as error:  # a task's SystemExit is that task's failure
            trouble = CaughtError.of(error)
        return TaskRan(work.task.id, result, time.perf_counter() - start, trouble)

    def _reply(self, reply: TaskRan | TasksSkipped) -> None:
        self._flush()
        try:
            parts = pack(reply)
        except Exception as error:
            text = f"the result of task {reply.task} cannot be pickled: {error}"
            trouble = CaughtError(type(error).__name__, text, "")
            parts = pack(TaskRan(reply.task, None, 0.0, trouble))
        for part in parts:
            self._link.sendall(part)

    def _flush(self) -> None:
        """Let what a task has printed be seen before its result is."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):  # a task has closed or replaced them
            pass
