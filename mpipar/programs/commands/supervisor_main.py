"""The supervisor: a small process that runs a worker's commands, one at a time, each to its end.

    worker --order--> supervisor --fork, exec--> shell --> whatever the command starts
           <-- started, ended, output --         (a session of its own)

A worker does not start commands itself: it is large, has threads and has initialised MPI, and none
of that goes well with fork; and when the worker is killed, its command must be ended all the same.
The supervisor ends the command when the pipe of its orders is closed. It adopts all processes that
a command leaves behind (PR_SET_CHILD_SUBREAPER), so that none escapes; when the supervisor itself
is killed, the kernel kills the shell (PR_SET_PDEATHSIG).

This file is run as a script by `python -I -S`, so that it starts in some 20 ms: it must import
nothing but small modules of the standard library, and of mpipar the module `system`, by its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

if __name__ == "__main__":  # under -I a script does not find the package that it is in
    sys.path.append(str(Path(__file__).resolve().parents[3]))
from mpipar.system import adopt_orphans, end_with_parent

ORDERS: Final = 0
ANSWERS: Final = 1
LENGTH: Final = struct.Struct(">I")
CHUNK: Final = 1 << 16
KILL_EVERY: Final = 0.05  # seconds between two rounds of SIGKILL
KILL_PATIENCE: Final = 10.0  # seconds; what SIGKILL has not ended by then hangs in the kernel
ORPHAN_GRACE: Final = 1.0  # seconds, when the worker is gone: the job ends, there is no time
LONGEST_ARGUMENT: Final = (1 << 17) - 1  # bytes of one argument of a program, on Linux
CANNOT_RUN: Final = 126  # exit code, as shells use it
OOM_SCORE: Final = b"300"  # oom_score_adj: when memory is short, the kernel kills the command
IGNORED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class KeptOutput:
    """The beginning and the end of an output, at most `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self.head = bytearray()
        self.tail = bytearray()
        self.dropped = 0
        self._head_limit = limit // 2
        self._tail_limit = limit - limit // 2

    def add(self, data: bytes) -> None:
        """Add the next piece of output."""
        room = self._head_limit - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 2 * self._tail_limit + CHUNK:  # seldom: a cut moves the tail
            self.cut()

    def cut(self) -> None:
        """Drop what is beyond the limit."""
        beyond = max(0, len(self.tail) - self._tail_limit)
        self.dropped += beyond
        del self.tail[:beyond]


class RunningCommand:
    """One command from its start to the end of its last process.

    The shell waits for `start`: a command that kills its supervisor does so only after the worker
    has been told which process group it must then end.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.kept = KeptOutput(order["output_limit"])
        self.status: int | None = None  # of the shell, as waitpid gives it
        self.timed_out = False
        self.orphaned = False  # the worker is gone
        self.left_behind = 0  # processes that outlived the shell
        self.unkillable = False
        self._killing_since: float | None = None
        self._term_at: float | None = None
        self._began = time.monotonic()
        self.ended = self._began  # when the shell ended
        self._output, write_end = os.pipe()
        start, self._start = os.pipe()
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            execute(order, write_end, supervisor, start)
        os.close(write_end)
        os.close(start)
        os.set_blocking(self._output, False)

    def start(self) -> None:
        """Let the shell run the command."""
        with contextlib.suppress(BrokenPipeError):  # somebody has killed the shell
            os.write(self._start, b"!")
        os.close(self._start)

    def watch(self, woken: int) -> None:
        """Return when no process of the command is left, or none that can be ended.

        woken   readable after SIGCHLD
        """
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        poll.register(woken, select.POLLIN)
        poll.register(ORDERS, select.POLLIN)
        while not self._is_over():
            self._act()
            ready = {fd for fd, _ in poll.poll(self._pause() * 1000)}
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, CHUNK)
            if self._output in ready and not self._read():
                poll.unregister(self._output)
            if ORDERS in ready:  # no order can come meanwhile: the worker has closed the pipe
                poll.unregister(ORDERS)
                self.orphaned = True
        self._read_rest()
        os.close(self._output)
        self.kept.cut()

    def _is_over(self) -> bool:
        """Reap the processes that have ended; return whether none is left that can be ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                return self.unkillable
            if pid == self.pid:
                self.status, self.ended = status, time.monotonic()
        return self.unkillable or not group_exists(self.pid)

    def _pause(self) -> float:
        """Seconds until `_act` has something to do, whatever happens."""
        now = time.monotonic()
        if self._killing_since is not None:
            return KILL_EVERY
        if self._term_at is not None:
            return max(0.0, self._term_at + self._grace - now)
        timeout = self.order["timeout"]
        return 3600.0 if timeout is None else max(0.0, self._began + timeout - now)

    def _act(self) -> None:
        """End the command if the time has come: SIGTERM first, SIGKILL after the grace."""
        now = time.monotonic()
        timeout = self.order["timeout"]
        if self._killing_since is not None:
            self.unkillable = now > self._killing_since + KILL_PATIENCE
            signal_all(self.pid, signal.SIGKILL)
        elif self._term_at is not None:
            if now >= self._term_at + self._grace:
                self._killing_since = now
                signal_all(self.pid, signal.SIGKILL)
        elif self.status is None and timeout is not None and now >= self._began + timeout:
            self.timed_out = True
            self._terminate(now)
        elif self.orphaned:
            self._terminate(now)
        elif self.status is not None:
            self.left_behind = len(descendants(os.getpid()))
            self._terminate(now)

    @property
    def _grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL."""
        grace = float(self.order["grace"])
        return min(grace, ORPHAN_GRACE) if self.orphaned else grace

    def _terminate(self, now: float) -> None:
        self._term_at = now
        signal_all(self.pid, signal.SIGTERM)

    def _read(self) -> bool:
        """Read a piece of output; return False at the end of the output."""
        try:
            data = os.read(self._output, CHUNK)
        except BlockingIOError:
            return True
        self.kept.add(data)
        return bool(data)

    def _read_rest(self) -> None:
        """Read what is still in the pipe, which a process that cannot be ended may keep open."""
        while True:
            try:
                data = os.read(self._output, CHUNK)
            except BlockingIOError:
                return
            if not data:
                return
            self.kept.add(data)

    def answer(self) -> tuple[dict[str, Any], bytes]:
        """Return how the command ended, as CommandEnd's fields, and the output that is kept."""
        status = self.status
        facts = {
            "code": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status)
            if status is not None and os.WIFSIGNALED(status)
            else None,
            "timed_out": self.timed_out,
            "left_behind": self.left_behind,
            "unkillable": self.unkillable,
            "seconds": self.ended - self._began if status is not None else None,
            "dropped": self.kept.dropped,
            "head": len(self.kept.head),
            "tail": len(self.kept.tail),
        }
        return facts, bytes(self.kept.head + self.kept.tail)


def execute(order: dict[str, Any], output: int, supervisor: int, start: int) -> NoReturn:
    """Become the command's shell once a byte can be read from `start`.

    An error is written to the command's output.
    """
    try:
        os.setsid()
        if not end_with_parent(supervisor):
            os._exit(CANNOT_RUN)
        for number in (*IGNORED, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        raise_oom_score()
        os.read(start, 1)
        os.chdir(order["cwd"])
        shell, text = order["shell"], order["command"].encode("utf-8", "surrogateescape")
        if len(text) >= LONGEST_ARGUMENT:
            text = b". " + text_file(text)
        os.execve(shell, [shell, "-c", text], order["environment"])
    except BaseException as error:  # nothing may return from here to the supervisor's code
        os.write(2, f"mpipar: the command cannot be started: {error}\n".encode(errors="replace"))
    os._exit(CANNOT_RUN)


def text_file(text: bytes) -> bytes:
    """Return the name of a file in memory that holds a command: of its descriptor, left open."""
    file = os.memfd_create("command", 0)
    view = memoryview(text + b"\n")
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    return b"/dev/fd/%d" % file


def raise_oom_score() -> None:
    """Make the kernel kill this process before the worker when memory is short."""
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, OOM_SCORE)
        os.close(fd)


def signal_all(group: int, number: int) -> None:
    """Send a signal to the command's group, and to descendants that have left it."""
    with contextlib.suppress(OSError):
        os.killpg(group, number)
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if os.getpgid(pid) != group:
                os.kill(pid, number)


def group_exists(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of the group runs as another user (setuid)
        return True
    return True


def descendants(ancestor: int) -> list[int]:
    """Return the process ids of all children of `ancestor`, their children, and so on."""
    children: dict[int, list[int]] = {}
    entries: list[Path] = []
    with contextlib.suppress(OSError):  # without /proc there is only the group
        entries = list(Path("/proc").iterdir())
    for entry in entries:
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # "pid (name) state parent ...": the name may hold anything, so search from the end
                rest = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                if rest[0] != b"Z":
                    children.setdefault(int(rest[1]), []).append(int(entry.name))
    found = list(children.get(ancestor, []))
    for pid in found:  # the list grows meanwhile
        found += children.get(pid, [])
    return found


def read_exactly(count: int) -> bytes:
    """Read so many bytes of an order; fewer if the worker has closed the pipe."""
    data = b""
    while len(data) < count:
        piece = os.read(ORDERS, count - len(data))
        if not piece:
            break
        data += piece
    return data


def read_order() -> dict[str, Any] | None:
    """Read the next order; None if no more will come."""
    head = read_exactly(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = read_exactly(length)
    if len(body) < length:
        return None
    order: dict[str, Any] = json.loads(body)
    return order


def answer(facts: dict[str, Any], output: bytes = b"") -> None:
    """Send the worker an answer: facts as JSON behind their length, then the output."""
    body = json.dumps(facts).encode()
    view = memoryview(LENGTH.pack(len(body)) + body + output)
    while view:
        view = view[os.write(ANSWERS, view) :]


def main() -> None:
    """Run one command per order until the worker closes the pipe."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in IGNORED:  # signals for a whole job: the worker decides what follows from them
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, waker = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    adopt_orphans()
    while (order := read_order()) is not None:
        run = RunningCommand(order)
        with contextlib.suppress(BrokenPipeError):
            answer({"pid": run.pid})
        run.start()
        run.watch(woken)
        if run.orphaned:
            return
        answer(*run.answer())


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the worker has closed the pipe
        sys.exit(0)
