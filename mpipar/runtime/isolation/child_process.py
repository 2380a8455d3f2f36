"""One child process, as its parent sees it: the socket to it, why it ended, and how to end it.

The child is started by exec. A fork alone would be a copy of a process in which MPI is at work.
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
EXIT_SECONDS = 1.0
STACKS_SECONDS = 0.1
STACKS_BYTES = 1 << 16
START = (
    "import sys; sys.path[:] = sys.argv[4:]; from mpipar.runtime.isolation.child_main import main; "
    "main(*map(int, sys.argv[1:4]))"
)


class ChildProcess:
    """One child process, and the socket to it."""

    def __init__(self) -> None:
        self.ended = False  # the child has closed its side of the socket
        self.backlog = 0  # bytes that wait to be written
        self._lock = threading.Lock()  # of `kill` and `close_at_once`
        self._released = False
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

    # Messages

    def push(self, message: object) -> None:
        """Add a message to what `exchange` writes. Raises what pickle raises."""
        for part in pack(message):
            self._push(part)

    def _push(self, part: Buffer) -> None:
        view = memoryview(part)
        self.backlog += len(view)
        self._outbox.append(view)

    def assign(self, task: Task, block: Block | None) -> None:
        """Add a task, with its block unless the child has that in a slot already."""
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
        """Wait up to `seconds`, then write and read what is possible; return whether any was."""
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
        """Write once: small parts together, a large one from its own memory."""
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

    def wait_for(self, limit: float | None) -> Packet | None:
        """Return the next packet; None if the process ends, or after `limit` seconds."""
        until = None if limit is None else time.monotonic() + limit
        while (packet := self.next()) is None and not self.ended:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not self.exchange(left) and left is not None:
                return None
        return packet

    # The end

    def is_idle(self) -> bool:
        """Whether the process lives and waits for tasks."""
        if not self.ended:
            self.exchange(0.0)
        return not self.ended

    def end_error(self, when: str, limit: float | None) -> CaughtError:
        """Return why the process has ended; kill it if it has not, because its time is over.

        when    what the process was doing, for the message
        limit   seconds that it had for that
        """
        if not self.ended:
            self._popen.send_signal(SHOW_STACKS)
            time.sleep(STACKS_SECONDS)
            text = f"no end after {limit:g} s {when}; the process was killed"
            self.kill()
            return CaughtError("Timeout", text, self._stacks())
        try:
            code: int | None = self._popen.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        return CaughtError("Died", f"the process {_fate(code)} {when}", self._stacks())

    def _stacks(self) -> str:
        """Return what the child's faulthandler has written."""
        text = os.pread(self._faults.fileno(), STACKS_BYTES, 0)
        return text.decode("utf-8", "replace")

    def kill(self) -> None:
        """Kill the process and what it has started. Thread-safe."""
        with self._lock:
            if not self._released:
                self._kill_group()
                self._shut_link()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def _shut_link(self) -> None:
        """Shut the socket on both sides, which wakes the thread that waits in `exchange`."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the process end by itself, as it does when its link is shut; then `close_at_once`."""
        self._shut_link()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(EXIT_SECONDS)
        self.close_at_once()

    def close_at_once(self) -> None:
        """Kill the process and what it has started, and release the socket and the file."""
        with self._lock:
            self._released = True
            self._kill_group()
            with suppress(subprocess.TimeoutExpired):  # a file system that hangs may hold it
                self._popen.wait(EXIT_SECONDS)
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
