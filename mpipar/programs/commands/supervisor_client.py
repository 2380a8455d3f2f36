"""The worker's side of a supervisor process: one command after the other, each to its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from mpipar.programs.commands.supervisor_main import LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CommandEnd", "CommandOrder", "SupervisorClient"]

SCRIPT: Final = Path(__file__).with_name("supervisor_main.py")
EXIT_SECONDS: Final = 2.0
SHELLS: Final = ("/bin/bash", "/usr/bin/bash", "/bin/sh")


@dataclass(frozen=True)
class CommandOrder:
    """One command to run, and its limits."""

    command: str
    cwd: str
    environment: Mapping[str, str]
    timeout: float | None  # seconds; then its processes get SIGTERM
    grace: float  # seconds from SIGTERM to SIGKILL
    output_limit: int  # bytes of output that are kept: half from the start, half from the end


@dataclass(frozen=True)
class CommandEnd:
    """How a command ended."""

    code: int | None  # exit code of the shell; None if a signal ended it or its end was not seen
    signal: int | None
    timed_out: bool
    left_behind: int  # processes alive when the shell ended; they have been ended too
    unkillable: bool  # a process is left that SIGKILL does not end: it hangs in the kernel
    seconds: float | None
    dropped: int  # bytes of output between head and tail
    head: bytes
    tail: bytes
    supervisor_died: bool = False  # so nobody knows how the command ended


SUPERVISOR_DIED: Final = CommandEnd(
    code=None,
    signal=None,
    timed_out=False,
    left_behind=0,
    unkillable=False,
    seconds=None,
    dropped=0,
    head=b"",
    tail=b"",
    supervisor_died=True,
)


class SupervisorClient:
    """A supervisor process: started with the first command, and anew after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, order: CommandOrder) -> CommandEnd:
        """Run a command to its end. Raises OSError if no process can be started."""
        process = self._running_process()
        group: int | None = None
        try:
            _send(process, order)
            group = _read_facts(process)["pid"]
            facts = _read_facts(process)
            head = _read(process, facts.pop("head"))
            return CommandEnd(head=head, tail=_read(process, facts.pop("tail")), **facts)
        except (EOFError, BrokenPipeError):
            self._clean_up(group)
            return SUPERVISOR_DIED

    def close(self) -> None:
        """End the supervisor, and with it a command that still runs."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # -I -S: a quick start, and PYTHONPATH is ignored. A session of its own: what ends the
            # worker's group must not end the supervisor before the command has been ended.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            self._finalizer = weakref.finalize(self, _close_and_wait, self._process)
            # At exit the system closes the pipes: closing one ourselves could wait for a reader.
            self._finalizer.atexit = False
        return self._process

    def _clean_up(self, group: int | None) -> None:
        """End what is left of a command whose supervisor, and with it the shell, was killed."""
        self.close()
        if group is not None:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)


def _close_and_wait(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes, by which a supervisor knows that it has to end, and wait for its end."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:  # the supervisor ends by itself after its command
        process.returncode = 0  # so that Python does not warn of a process that still runs


def _send(process: subprocess.Popen[bytes], order: CommandOrder) -> None:
    shell = next((path for path in SHELLS if os.access(path, os.X_OK)), SHELLS[-1])
    body = json.dumps({**order.__dict__, "shell": shell}).encode()
    pipe = _pipe(process.stdin)
    pipe.write(LENGTH.pack(len(body)) + body)
    pipe.flush()


def _read_facts(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    (length,) = LENGTH.unpack(_read(process, LENGTH.size))
    facts: dict[str, Any] = json.loads(_read(process, length))
    return facts


def _read(process: subprocess.Popen[bytes], count: int) -> bytes:
    data = _pipe(process.stdout).read(count)
    if len(data) < count:
        raise EOFError
    return data


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
