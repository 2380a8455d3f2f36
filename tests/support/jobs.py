"""Jobs for tests: with and without mpirun; each is started, awaited, and never left over."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.runtime.process.launcher_variables import SESSION_BASE
from tests.support.installed import MPIRUN, mpirun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 150.0  # seconds; a job that takes longer hangs
TEST_LIMIT: Final = 60.0  # seconds, as pyproject.toml has it
NOTHING: Final[Mapping[str, str]] = {}
MARK: Final = "MPIPAR_TEST_JOB"  # in the environment of every process of a job


def environment(more: Mapping[str, str] = NOTHING) -> dict[str, str]:
    """This process's environment without launchers and knobs, and with more."""
    launchers = ("OMPI_COMM", "PMI", "SLURM", "NSLOTS", "MPIPAR", "PRTE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == SESSION_BASE or not name.startswith(launchers)
    }
    kept |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    kept |= {"MPIPAR_PATIENCE": "50", **more}
    paths = [more.get("PYTHONPATH", ""), str(ROOT)]
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def command(ranks: int | None, words: Sequence[object]) -> list[str]:
    """`python -m words`, alone (None) or as so many ranks."""
    program = [sys.executable, "-m", *map(str, words)]
    return program if ranks is None else [*mpirun(), "-n", str(ranks), *program]


def run(
    words: Sequence[object] = (),
    *,
    ranks: int | None = None,
    line: Sequence[object] | None = None,
    cwd: Path = ROOT,
    limit: float = PATIENCE,
    env: Mapping[str, str] = NOTHING,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m words`, or the command `line` as it is, to its end."""
    with Job(words, ranks=ranks, line=line, cwd=cwd, env=env) as job:
        return job.finish(limit)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was said to the user about an error."""
    return [line for line in done.stderr.splitlines() if line.startswith("mpipar:")]


class Job:
    """A job whose processes are all known, and none of which outlives it."""

    def __init__(
        self,
        words: Sequence[object] = (),
        *,
        ranks: int | None = None,
        line: Sequence[object] | None = None,
        cwd: Path = ROOT,
        log: Path | None = None,
        env: Mapping[str, str] = NOTHING,
    ) -> None:
        """Start `python -m words`, or the command `line` as it is; stdout may go to a file."""
        self._mark = uuid.uuid4().hex
        self._line = command(ranks, words) if line is None else list(map(str, line))
        self._cwd, self._log = cwd, log
        self._folder = tempfile.TemporaryDirectory(prefix="job-", ignore_cleanup_errors=True)
        # A killed mpirun leaves a folder that stops a later one which is given the same number.
        starts_ranks = {"mpirun", str(MPIRUN)} & set(self._line)
        own = {SESSION_BASE: self._folder.name} if starts_ranks else {}
        self._env = environment({**own, **env, MARK: self._mark})
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("wb") if self._log else nullcontext(subprocess.PIPE) as stdout:
            return subprocess.Popen(
                self._line,
                cwd=self._cwd,
                env=self._env,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
            )

    def finish(self, limit: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Wait for the end."""
        with patience(limit):
            out, err = self.process.communicate(timeout=limit)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def pids(self) -> list[int]:
        """All living processes of the job: the launcher first."""
        return sorted(_living(self._mark))

    def leaves_nothing(self, seconds: float = 20.0) -> bool:
        """Whether all processes of the job have ended within these seconds."""
        until = time.monotonic() + seconds
        while self.pids() and time.monotonic() < until:
            time.sleep(0.05)
        return not self.pids()

    def kill(self) -> int:
        """Kill -9 every process at once; how many there were."""
        killed = 0
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.01)
        self.process.communicate(timeout=PATIENCE)
        return killed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._folder.cleanup()


def _living(mark: str) -> Iterator[int]:
    """Processes that have the mark in their environment. A zombie's environment is empty."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:  # gone, or another user's
                continue


def wait_until(condition: Callable[[], bool], job: Job, limit: float = PATIENCE) -> None:
    """Wait for something that a running job does."""
    until = time.monotonic() + limit
    with patience(limit):
        while not condition():
            assert job.process.poll() is None, job.process.communicate()
            assert time.monotonic() < until, "the job does not do what the test waits for"
            time.sleep(0.002)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """While a job has its own time limit, the test that waits for it is no hang.

    Pytest's limit for a test begins again afterwards.
    """
    if "PYTEST_CURRENT_TEST" not in os.environ:
        yield
        return
    faulthandler.dump_traceback_later(seconds + 10, exit=True, file=2)
    yield
    faulthandler.dump_traceback_later(TEST_LIMIT, exit=True, file=2)
