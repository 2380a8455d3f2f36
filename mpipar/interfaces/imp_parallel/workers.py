"""IMP.parallel's workers: each is a command that is started somewhere and connects back.

A new kind of worker is a subclass with its own `_start(command, unique_id, output)`, which has the
shell command `<command> <unique_id>` run where the worker is to be, with its output in `output`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.interfaces.imp_parallel.imp_errors import Error, NetworkError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "LocalWorker",
    "SGEPEWorkerArray",
    "SGEQsubWorkerArray",
    "Worker",
    "WorkerArray",
    "WorkerState",
]

QSUB_SECONDS: Final = 120.0  # for a qsub or qdel
TAIL_CHARACTERS: Final = 500  # of a worker's output, quoted when it did not start


class WorkerState(Enum):
    """What is known of a worker."""

    INIT = "not started"
    STARTED = "started, but has not connected"
    CONNECTED = "connected"
    DEAD = "ended, or out of reach"


class Worker:
    """One worker, which runs one task at a time. Abstract."""

    def __init__(self) -> None:
        self._state = WorkerState.INIT
        self._output = ""
        self.update_contact_time()

    def _start(self, command: str, unique_id: str, output: str) -> None:
        """Have `command unique_id` run, with its output in a file. Extended by subclasses."""
        del command, unique_id
        self._state = WorkerState.STARTED
        self._output = output
        self.update_contact_time()

    def update_contact_time(self) -> None:
        """Note that a message of the worker has come now."""
        self.last_contact_time = time.time()

    def get_contact_timed_out(self, timeout: float) -> bool:
        """Whether no message of the worker has come for so many seconds."""
        return time.time() - self.last_contact_time > timeout

    def _ready_to_start(self) -> bool:
        return self._state is WorkerState.INIT

    def _why_ended(self) -> str:
        """Say how the command ended, if it is known to have."""
        return ""

    def _is_running(self) -> bool:
        """Whether the command is known to be running."""
        return False

    def _stop(self, patience: float) -> None:
        """End the command if it does not end by itself within so many seconds."""

    def _end_of_output(self) -> str:
        """Return a text that quotes the end of the worker's output; empty if there is none."""
        with suppress(OSError):
            text = Path(self._output).read_text(errors="replace").strip()
            if text:
                return f"; {self._output} ends: {text[-TAIL_CHARACTERS:]}"
        return ""


class WorkerArray:
    """Several workers that are started together. Abstract."""

    def _get_workers(self) -> Sequence[Worker]:
        """Return the workers of this array, which are then started one by one."""
        raise NotImplementedError

    def _start(self, command: str) -> None:
        """Start what belongs to all workers together. Called after `_start` of each worker."""

    def _stop(self) -> None:
        """End what was started for all workers together."""


class _ProcessWorker(Worker):
    """A worker whose command is a child of this process."""

    _child: subprocess.Popen[bytes] | None = None

    def _run_background(self, line: str, output: str) -> None:
        try:
            stream = Path(output).open("wb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise Error(f"cannot write the output of a worker: {error}") from error
        with stream:
            # In a session of its own: ^C does not reach it, and all its processes can be ended.
            self._child = subprocess.Popen(
                line,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(),
            )

    def _why_ended(self) -> str:
        code = None if self._child is None else self._child.poll()
        if code is None:
            return ""
        return f"its command ended with {f'signal {-code}' if code < 0 else f'code {code}'}"

    def _is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def _stop(self, patience: float) -> None:
        child = self._child
        if child is None:
            return
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


class LocalWorker(_ProcessWorker):
    """A worker on this machine: a child process."""

    def _start(self, command: str, unique_id: str, output: str) -> None:
        super()._start(command, unique_id, output)
        self._run_background(f"{command} {unique_id}", output)

    def __repr__(self) -> str:
        return "<LocalWorker>"


class _SGEPEWorker(_ProcessWorker):
    """A worker in a slot of the parallel environment of this SGE job."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self._host = host

    def _start(self, command: str, unique_id: str, output: str) -> None:
        super()._start(command, unique_id, output)
        self._run_background(f"qrsh -inherit -V {self._host} {command} {unique_id}", output)

    def __repr__(self) -> str:
        return f"<SGE PE worker on {self._host}>"


class SGEPEWorkerArray(WorkerArray):
    """One worker for each slot of the parallel environment in which this SGE job runs."""

    def _get_workers(self) -> Sequence[Worker]:
        name = os.environ.get("PE_HOSTFILE")
        if name is None:
            raise Error(
                "SGEPEWorkerArray: PE_HOSTFILE is not set, so this is not a job in an SGE parallel "
                "environment; submit it with qsub -pe <environment> <slots>"
            )
        try:
            lines = Path(name).read_text().splitlines()
        except OSError as error:
            raise Error(f"SGEPEWorkerArray: cannot read the host file: {error}") from error
        rows = [line.split() for line in lines if line.strip()]
        hosts = [host for host, slots, *_ in rows for _ in range(int(slots))]
        # This process is in the first slot itself, so SGE would not start anything there.
        first: list[Worker] = [LocalWorker()] if hosts else []
        return first + [_SGEPEWorker(host) for host in hosts[1:]]


class _SGEQsubWorker(Worker):
    """A task of an SGE array job."""

    def __init__(self, array: SGEQsubWorkerArray) -> None:
        super().__init__()
        self._array = array
        self._jobid: str | None = None

    def _start(self, command: str, unique_id: str, output: str) -> None:
        super()._start(command, unique_id, output)
        self._array._worker_started(unique_id, output, self)

    def __repr__(self) -> str:
        return f"<SGE qsub worker, ID {self._jobid or '(unknown)'}>"


class SGEQsubWorkerArray(WorkerArray):
    """Workers that are the tasks of one SGE array job, submitted with qsub."""

    standard_options = "-j y -cwd -r n -o sge-errors"

    def __init__(self, numworker: int, options: str) -> None:
        """Make `numworker` workers; `options` are added to those of qsub: "-l mem_free=1G"."""
        self._options = options
        self._workers = [_SGEQsubWorker(self) for _ in range(numworker)]
        self._starting_workers: list[tuple[str, str, _SGEQsubWorker]] = []
        self._jobid: int | None = None

    def _get_workers(self) -> Sequence[Worker]:
        return self._workers

    def _worker_started(self, unique_id: str, output: str, worker: _SGEQsubWorker) -> None:
        self._starting_workers.append((unique_id, output, worker))

    def _start(self, command: str) -> None:
        starting, self._starting_workers = self._starting_workers, []
        if not starting:
            return
        line = f"qsub -S /bin/sh {self._options} {self.standard_options} -t 1-{len(starting)}"
        answer = _run_sge(line, self._script(command, starting))
        number = re.search(r"\d+", answer)
        if number is not None:
            self._jobid = int(number.group())
            for index, (_, _, worker) in enumerate(starting, 1):
                worker._jobid = f"{self._jobid}.{index}"

    @staticmethod
    def _script(command: str, starting: list[tuple[str, str, _SGEQsubWorker]]) -> str:
        """Return the script that each task of the array job runs; for any /bin/sh."""
        lines = ["#!/bin/sh"]
        if path := _environment().get("PYTHONPATH"):
            lines.append(f"PYTHONPATH={shlex.quote(path)}; export PYTHONPATH")
        lines.append('case "$SGE_TASK_ID" in')
        for index, (unique_id, output, _) in enumerate(starting, 1):
            lines.append(f"{index}) myuid={shlex.quote(unique_id)}; myout={shlex.quote(output)} ;;")
        lines += ["esac", f'{command} "$myuid" > "$myout" 2>&1', ""]
        return "\n".join(lines)

    def _stop(self) -> None:
        waiting = any(worker._state is not WorkerState.CONNECTED for worker in self._workers)
        if self._jobid is not None and waiting:  # the others have been told to stop
            with suppress(NetworkError):  # it may be over
                _run_sge(f"qdel {self._jobid}", "")


def _environment() -> dict[str, str]:
    """Return the environment of workers: they must import this same mpipar, installed or not."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    root = str(Path(__file__).parents[3])
    if "-packages" not in root and root not in paths:
        paths.append(root)
    return os.environ | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def _run_sge(line: str, text: str) -> str:
    """Run a command of SGE with this input; return what it prints. Raises NetworkError."""
    try:
        done = subprocess.run(
            line,
            shell=True,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=QSUB_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(f"{line}: no answer within {QSUB_SECONDS:.0f} s") from None
    if done.returncode:
        raise NetworkError(
            f"{line}: ended with code {done.returncode}: {done.stdout.strip()}; qsub must be in "
            "PATH, and this host a submit host"
        )
    return done.stdout
