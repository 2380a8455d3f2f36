"""`mpipar run` under kill -9: of everything, of one worker, of all workers, by its own commands."""

from __future__ import annotations

import csv
import functools
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mpipar.launch.mpirun import FAULT_TOLERANT
from mpipar.programs.commands.try_log import TryLog
from mpipar.store.project import Project
from mpipar.store.status import read_verdict
from tests.support import jobs
from tests.support.installed import mpirun, tolerates_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 60.0
LONG = f"1234.{os.getpid()}"  # seconds, and not those of another session of these tests
REQUEUE = 75


pytestmark = pytest.mark.crash
tolerant = pytest.mark.skipif(
    not tolerates_faults(), reason="no Open MPI with fault tolerance here"
)


class Here:
    """A folder with commands that leave a trace, and jobs that run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "run"
        self.trace = folder / "trace"

    def write(self, *lines: str) -> None:
        (self.folder / "commands.txt").write_text("\n".join([*lines, ""]))

    def job(self, ranks: int, *words: str, tolerant: bool = True) -> jobs.Job:
        launcher = [*mpirun(), *(FAULT_TOLERANT if tolerant else []), "-n", str(ranks)]
        program = ["mpipar", "run", "commands.txt", "--path", "run", *words]
        line = [*launcher, sys.executable, "-m", *program]
        return jobs.Job([], line=line, cwd=self.folder, env={"MPIPAR_PATIENCE": "20"})

    def traced(self) -> list[str]:
        return self.trace.read_text().split("\n") if self.trace.exists() else []

    def has_traced(self, count: int) -> bool:
        return len(self.traced()) >= count

    def acknowledged(self) -> set[int]:
        """Lines that the journal says are done."""
        project = Project.open(self.path, writer=False)
        return {outcome.line for outcome in TryLog(project).outcomes() if outcome.is_done}

    def table(self) -> dict[int, dict[str, str]]:
        rows = (self.path / "commands.tsv").read_text().splitlines()
        found = csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {int(row["line"]): row for row in found}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def ranks_of(job: jobs.Job) -> dict[int, int]:
    """Process of each rank; what it starts has the same environment, so its name must fit too."""
    found = {}
    for pid in job.pids():
        with suppress(OSError):
            if b"mpipar\0run" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue
            for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, value = item.partition(b"=")
                if name == b"OMPI_COMM_WORLD_RANK":
                    found[int(value)] = pid
    return found


def running(text: str) -> Iterator[int]:
    """Processes whose command line has this in it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes():
                    yield int(entry.name)


def wait_until_none_runs(text: str) -> None:
    until = time.monotonic() + LIMIT
    while left := list(running(text)):
        assert time.monotonic() < until, left
        time.sleep(0.02)


def test_after_a_kill_of_everything_only_the_unacknowledged_is_run_again(here: Here) -> None:
    kill_everything(here, seed=1, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_after_many_kills_of_everything(here: Here, seed: int) -> None:
    kill_everything(here, seed, kills=8)


def kill_everything(here: Here, seed: int, kills: int) -> None:
    """Kill -9 mpirun and all ranks, every other time supervisors and commands too; then resume."""
    dice = random.Random(seed)
    pauses = [dice.uniform(0, 0.2) for _ in range(60)]
    here.write(*(f"echo {i + 1} >>trace; sleep {pause:.3f}" for i, pause in enumerate(pauses)))
    done: set[int] = set()
    times_before: Counter[str] = Counter()
    for number in range(kills):
        with here.job(4, *(["--resume"] if here.path.exists() else [])) as job:
            enough = len(here.traced()) + dice.randint(1, 60 // kills)
            jobs.wait_until(functools.partial(here.has_traced, enough), job)
            time.sleep(dice.uniform(0, 0.3))
            if number % 2:
                job.kill()
            else:
                for pid in (job.process.pid, *ranks_of(job).values()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                until = time.monotonic() + LIMIT
                while job.pids():
                    assert time.monotonic() < until, "something outlives its worker"
                    time.sleep(0.01)
        now = Counter(here.traced())
        assert all(now[str(line)] == times_before[str(line)] for line in done)
        assert done <= here.acknowledged()
        done, times_before = here.acknowledged(), now
        assert all(now[str(line)] for line in done)
    with here.job(4, "--resume") as job:
        ended = job.finish(LIMIT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(done)} are done, {60 - len(done)} are to be run" in ended.stdout
    now = Counter(here.traced())
    assert all(now[str(line)] == times_before[str(line)] for line in done)
    assert here.acknowledged() == set(range(1, 61))
    assert all(now[str(line)] for line in range(1, 61))


@tolerant
def test_command_ends_with_its_worker_and_runs_again_on_another(here: Here) -> None:
    # The first time it waits for ever, and is deaf to all but SIGKILL.
    here.write(
        f"echo $MPIPAR_RANK >>trace; [ -e again ] || {{ trap '' TERM; exec sleep {LONG}; }}",
        *["sleep 0.1"] * 5,
    )
    with here.job(3) as job:
        jobs.wait_until(lambda: len(here.traced()) > 1, job)
        victim = int(here.traced()[0])
        jobs.wait_until(lambda: bool(list(running(LONG))), job)
        (here.folder / "again").touch()
        os.kill(ranks_of(job)[victim], signal.SIGKILL)
        wait_until_none_runs(LONG)
        ended = job.finish(LIMIT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"rank {victim} on " in ended.stdout
    assert here.traced()[:2] == [str(victim), str(3 - victim)]
    assert {row["result"] for row in here.table().values()} == {"done"}


@tolerant
def test_last_worker_lost_is_a_requeue(here: Here) -> None:
    here.write("echo x >>trace", f"echo x >>trace; sleep {LONG}")
    with here.job(2) as job:
        jobs.wait_until(lambda: len(here.traced()) > 2, job)
        os.kill(ranks_of(job)[1], signal.SIGKILL)
        ended = job.finish(LIMIT)
    wait_until_none_runs(LONG)
    assert ended.returncode == REQUEUE, ended.stdout + ended.stderr
    assert (read_verdict(here.path) or {})["verdict"] == "requeue"
    assert [row["result"] for row in here.table().values()] == ["not done", "done"]


@tolerant
def test_command_that_kills_its_workers_is_set_aside(here: Here) -> None:
    here.write("kill -9 $(ps -o ppid= -p $PPID)", *["sleep 0.05; echo x >>trace"] * 20)
    with here.job(5) as job:
        ended = job.finish(LIMIT)
    assert ended.returncode == 70, ended.stdout + ended.stderr
    assert here.table()[1]["result"].startswith("failed: Quarantined"), here.table()[1]
    assert here.acknowledged() == set(range(2, 22))
    assert ended.stdout.count("is lost") == 3


def test_workers_and_commands_end_with_rank_0(here: Here) -> None:
    here.write(*[f"echo x >>trace; trap '' TERM; sleep {LONG}"] * 3)
    with here.job(3, tolerant=False) as job:
        jobs.wait_until(lambda: len(here.traced()) > 2, job)
        os.kill(ranks_of(job)[0], signal.SIGKILL)
        job.finish(LIMIT)
        wait_until_none_runs(LONG)
        until = time.monotonic() + LIMIT
        while job.pids():
            assert time.monotonic() < until
            time.sleep(0.02)
