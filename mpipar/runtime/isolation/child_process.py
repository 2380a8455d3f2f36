"""One child process as its parent holds it: its socket, its last words, its end.

Started by exec, never by fork alone, which an MPI that is at work in this process would not bear.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING

from mpipar.runtime.isolation.child_main import SHOW_STACKS, TaskInput
from mpipar.runtime.machines.caught_error import CaughtError
from mpipar.runtime.process.launcher_variables import without_launcher
from mpipar.runtime.wire.framing import FrameReader, pack

if TYPE_CHECKING:
    from mpipar.runtime.stage import Block, Task
    from mpipar.runtime.wire.framing import Buffer, Packet

SLOTS = 4  # blocks that a child keeps
BATCH = 64  # parts written by one call
PARTING_SECONDS = 1.0
STACKS_SECONDS = 0.1
STACKS_BYTES = 1 << 16
START = (
    "import sys; sys.path[:] = sys.argv[4:]; from mpipar.runtime.isolation.child_main import main; "
    "main(*map(int, sys.argv[1:4]))"
)


class ChildProcess:
    """One child process, and this end of the socket to it."""

    def __init__(self) -> None:
        self.ended = False  # the other end of the socket is closed
        self.backlog = 0  # bytes that wait to be written
        self._lock = threading.Lock()  # of killing and letting go
        self._let_go = False
        self._faults = tempfile.TemporaryFile()  # noqa: SIM115 - kept as long as the process
        self._link, other = socket.socketpair()
        self._link.setblocking(False)
        with other:
            numbers = [other.fileno(), self._faults.fileno()]
            words = [*map(str, numbers), str(os.getpid()), *sys.path]
            self._popen = subprocess.Popen(
                [sys.executable, "-c", START, *words],
                stdin=subprocess.DEVNULL,
                env=without_launcher(os.environ),
                pass_fds=numbers,
                start_new_session=True,
            )
        self._reader = FrameReader(self._link)
        self._outbox: deque[memoryview] = deque()
        self._blocks: OrderedDict[int, tuple[int, Block]] = OrderedDict()  # by identity; slots
        self._poll = select.poll()
        self._polled = 0

    # Talking

    def push(self, message: object) -> None:
        """Have a message written by and by. Raises what pickle raises."""
        for part in pack(message):
            self._push(part)

    def _push(self, part: Buffer) -> None:
        view = memoryview(part)
        self.backlog += len(view)
        self._outbox.append(view)

    def assign(self, task: Task, block: Block | None) -> None:
        """Send a task, with its block unless that is in a slot of the child already."""
        if block is None:
            self.push(TaskInput(task, None, None))
            return
        if id(block) in self._blocks:
            self._blocks.move_to_end(id(block))
            self.push(TaskInput(task, self._blocks[id(block)][0], None))
            return
        full = len(self._blocks) == SLOTS
        slot = next(iter(self._blocks.values()))[0] if full else len(self._blocks)
        self.push(TaskInput(task, slot, dict(block)))
        if full:
            self._blocks.popitem(last=False)
        self._blocks[id(block)] = slot, block

    def next(self) -> Packet | None:
        """Return a packet that has arrived."""
        return self._reader.next()

    def exchange(self, seconds: float | None) -> bool:
        """Write and read what can be, after waiting for that; return whether anything could."""
        wanted = select.POLLIN | (select.POLLOUT if self._outbox else 0)
        if wanted != self._polled:
            self._polled = wanted
            self._poll.register(self._link, wanted)
        ready = self._poll.poll(None if seconds is None else 1000 * seconds)
        for _, what in ready:
            if what & select.POLLOUT:
                self._write()
            if what & ~select.POLLOUT:
                self._read()
        return bool(ready)

    def _write(self) -> None:
        """Write once: small parts together, a large one from where it lies."""
        batch: list[memoryview] = []
        for view in self._outbox:
            batch.append(view)
            if len(batch) == BATCH:
                break
        try:
            count = self._link.sendmsg(batch)
        except BlockingIOError:
            return
        except OSError:
            self.ended = True
            return
        self.backlog -= count
        while count:
            view = self._outbox.popleft()
            if count < len(view):
                self._outbox.appendleft(view[count:])
                return
            count -= len(view)

    def _read(self) -> None:
        try:
            self.ended = not self._reader.receive()
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True

    def wait_for(self, bound: float | None) -> Packet | None:
        """Return the next packet; None if the process ends, or after that time."""
        until = None if bound is None else time.monotonic() + bound
        while (packet := self.next()) is None and not self.ended:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not self.exchange(left) and left is not None:
                return None
        return packet

    # Ending

    def is_idle(self) -> bool:
        """Whether it lives and waits for tasks."""
        if not self.ended:
            self.exchange(0.0)
        return not self.ended

    def trouble(self, when: str, bound: float | None) -> CaughtError:
        """Say what became of it. If it has not ended by itself, it has had its time."""
        if not self.ended:
            self._popen.send_signal(SHOW_STACKS)
            time.sleep(STACKS_SECONDS)
            text = f"no end after {bound:g} s {when}; the process was killed"
            self.kill()
            return CaughtError("Timeout", text, self._stacks())
        try:
            code: int | None = self._popen.wait(PARTING_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        return CaughtError("Died", f"the process {_fate(code)} {when}", self._stacks())

    def _stacks(self) -> str:
        """Return what the child's faulthandler has written."""
        text = os.pread(self._faults.fileno(), STACKS_BYTES, 0)
        return text.decode("utf-8", "replace")

    def kill(self) -> None:
        """Kill it and what it has started. From any thread."""
        with self._lock:
            if not self._let_go:
                self._kill_group()
                self._hang_up()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def _hang_up(self) -> None:
        """Close the link for both, which wakes the thread that waits here."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def part(self) -> None:
        """Let it end by itself, as it does when its link is closed; then `end`."""
        self._hang_up()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(PARTING_SECONDS)
        self.end()

    def end(self) -> None:
        """Kill it, with what it has started, and let go of everything."""
        with self._lock:
            self._let_go = True
            self._kill_group()
            with suppress(subprocess.TimeoutExpired):  # a file system that hangs may hold it
                self._popen.wait(PARTING_SECONDS)
            self._link.close()
            self._faults.close()


def _fate(code: int | None) -> str:
    if code is None:
        return "closed its link to the worker"
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL (out of memory?)"
    if code < 0:
        try:
            return f"ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"ended by signal {-code}"
    return f"ended with exit code {code}"
