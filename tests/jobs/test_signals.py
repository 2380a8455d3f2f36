"""Whole jobs that are told to end, or lose a rank they cannot do without: soon over, and resumable.

Run under both MPIs. What mpirun does with a signal is its own affair; what must hold is said here.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import jobs, refine_runs
from tests.support.installed import MPIRUN

SOON = 15.0  # seconds, on a crowded machine; a fraction of one on a quiet one
SLOW = {"MPIPAR_SLOW": "1:15,2:15"}  # a search that is not over when the signal comes
REQUEUE, CANCELLED = 75, 130

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment brings no MPI")


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> refine_runs.Reference:
    return refine_runs.reference(tmp_path_factory.getbasetemp())


def ready(path: Path) -> bool:
    """Whether the first look is kept, and the first search has begun."""
    try:
        status = json.loads((path / "status.json").read_text())
    except OSError:
        return False
    return "iteration" in str(status.get("phase"))


def end(job: jobs.Job) -> tuple[int, str]:
    """Exit code and output of a job that should end now, and leave no process."""
    start = time.monotonic()
    done = job.finish(60)
    while job.pids() and time.monotonic() < start + SOON:
        time.sleep(0.05)
    assert not job.pids()
    assert time.monotonic() - start < SOON, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def verdict(path: Path) -> tuple[str, str]:
    found = json.loads((path / "verdict.json").read_text())
    return found["verdict"], found["reason"]


def resumes_to_the_same(reference: refine_runs.Reference, path: Path) -> bool:
    words = ["mpipar", "refine", "--resume", "--path", path, "--parallel=thread:2"]
    done = refine_runs.run_here(words, path.parent)
    assert done.returncode == 0, done.stderr
    return refine_runs.digests(path) == reference.digests


@pytest.mark.parametrize(
    ("parallel", "number", "code"),
    [
        ("thread:2", signal.SIGTERM, REQUEUE),
        ("mpi:3", signal.SIGTERM, REQUEUE),
        ("mpi:3", signal.SIGINT, CANCELLED),
    ],
)
def test_a_signal_ends_the_job_in_good_order(
    reference: refine_runs.Reference, tmp_path: Path, parallel: str, number: int, code: int
) -> None:
    path, name = tmp_path / "run", signal.Signals(number).name
    words = reference.input.words("--path", path, f"--parallel={parallel}")
    with jobs.Job(words, env=SLOW) as job:
        jobs.wait_until(lambda: ready(path), job)
        job.process.send_signal(number)
        found, said = end(job)
    assert (found, verdict(path)[0]) == (code, "requeue"), said
    assert verdict(path)[1].endswith(f"stopped by {name}")
    assert f"mpipar: stopped by {name}\n" in said
    assert f"go on with --resume --path {path}" in said
    if (parallel, number) == ("mpi:3", signal.SIGTERM):
        assert resumes_to_the_same(reference, path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_plain_mpirun_that_is_told_to_end_leaves_a_run_to_resume(
    reference: refine_runs.Reference, tmp_path: Path, number: int
) -> None:
    """Open MPI's kills the ranks half a second after SIGTERM; Hydra's code is anybody's."""
    path = tmp_path / "run"
    with jobs.Job(reference.input.words("--path", path), ranks=3, env=SLOW) as job:
        jobs.wait_until(lambda: ready(path), job)
        job.process.send_signal(number)
        code, said = end(job)
    assert verdict(path)[0] == "requeue", said
    if number == signal.SIGUSR1 and "Open MPI" in said:
        assert code == REQUEUE, said


def test_where_mpi_does_not_tolerate_it_a_killed_worker_ends_the_job_at_once(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    """Rank 0 is killed too, without a word: what its verdict is then, it has said before."""
    path = tmp_path / "run"
    with jobs.Job(reference.input.words("--path", path), ranks=3, env=SLOW) as job:
        jobs.wait_until(lambda: ready(path), job)
        status = json.loads((path / "status.json").read_text())
        workers = [pid for pid in job.pids() if is_rank(pid) and pid != status["process"]]
        os.kill(workers[-1], signal.SIGKILL)
        code, said = end(job)
    assert code != 0, said
    assert verdict(path)[0] == "requeue", said
    assert resumes_to_the_same(reference, path)


def is_rank(pid: int) -> bool:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0] for entry in environment}
    return bool(names & {b"OMPI_COMM_WORLD_RANK", b"PMI_RANK"})


def test_a_scratch_folder_is_used_by_every_rank(tmp_path: Path) -> None:
    scratch = tmp_path / "Scratch"
    words = ["mpipar", "refine", "--input", "none.star", "--model", "none.mrc"]
    done = jobs.run([*words, f"--parallel=mpi:3:{scratch}"])
    assert done.returncode == 66, done.stderr
    (mine,) = scratch.iterdir()
    assert any(entry.name.startswith("numba-") for entry in mine.iterdir())
    (tmp_path / "file").touch()
    done = jobs.run([*words, f"--parallel=mpi:3:{tmp_path}/file"])
    assert done.returncode == 73
    assert jobs.complaints(done)[0].startswith("mpipar: --parallel: the scratch folder")
