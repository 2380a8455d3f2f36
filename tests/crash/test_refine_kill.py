"""Refinements killed at any moment, and what `--resume` makes of what they leave.

Promises: one writer, durable, same bits.

A whole job is killed: mpirun and all ranks at once. The default run does so at a few moments, in
and around a commit too; `slow` before each sync of rank 0 and at many random moments.
"""

from __future__ import annotations

import random
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from mpipar import store
from mpipar.store.project import Project
from tests.support import instruments, jobs, refine_runs
from tests.support.installed import MPIRUN

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI"),
]


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> refine_runs.Reference:
    return refine_runs.reference(tmp_path_factory.getbasetemp())


def commits(path: Path) -> list[int]:
    return [info.number for info in Project.open(path, writer=False).commits()]


def killed_at_sync(
    reference: refine_runs.Reference, folder: Path, target: str, number: int, ranks: int | None = 3
) -> Path:
    """Start a run and kill it before a sync of rank 0; its path."""
    path = folder / "run"
    pause = instruments.Pause(folder, target, number)
    words = reference.input.words("--path", path)
    with jobs.Job(words, ranks=ranks, env=pause.environment) as job:
        pause.wait(job)
        assert job.kill() >= (1 if ranks is None else ranks + 1), "mpirun and all ranks"
    return path


def killed_later(
    reference: refine_runs.Reference, folder: Path, seconds: float, ranks: int
) -> Path:
    """Start a run and kill it so many seconds after its folder is there; its path."""
    path = folder / "run"
    with jobs.Job(reference.input.words("--path", path), ranks=ranks) as job:
        jobs.wait_until(path.exists, job)
        time.sleep(seconds)
        job.kill()
    return path


def goes_on(
    reference: refine_runs.Reference, path: Path, *, ranks: int | None = None, parallel: str = ""
) -> str:
    """Check what a killed run left, go on with it, compare; what the second run said."""
    words = [f"--parallel={parallel}"] if parallel else []
    if any((path / "epoch").glob("*.claim")):
        assert store.check(path) == []
        words.append("--resume")
    else:  # killed while it made the folder: that is no run yet
        path = path.with_name("anew")
    done = jobs.run(reference.input.words("--path", path, *words), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert refine_runs.digests(path) == reference.digests
    assert store.check(path) == []
    return done.stdout


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_a_random_moment(
    reference: refine_runs.Reference, tmp_path: Path, seed: int
) -> None:
    seconds = random.Random(seed).uniform(0, 0.6) * reference.seconds
    goes_on(reference, killed_later(reference, tmp_path, seconds, ranks=3), ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_killed_at_many_random_moments(
    reference: refine_runs.Reference, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    path = killed_later(
        reference, tmp_path, draw.uniform(0, 0.8) * reference.seconds, ranks=draw.choice([2, 3, 4])
    )
    goes_on(reference, path, ranks=draw.choice([None, 2, 3, 4]))


MOMENTS: dict[str, tuple[str, int, set[tuple[int, ...]], dict[str, Any]]] = {
    "the segment of iteration 1 is not whole": ("commit-0001", 1, {(0,)}, {"ranks": 4}),
    "its record is written, not synced": ("1.log", 6, {(0,), (0, 1)}, {"parallel": "thread:2"}),
    "its record is durable, project.h5 not yet": ("/run$", 6, {(0, 1)}, {"ranks": 2}),
    "some of its maps are written": ("half2.mrc", 1, {(0, 1)}, {}),
    "all is committed, some results are written": ("half2.mrc", 3, {(0, 1, 2)}, {}),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_within_a_commit(
    reference: refine_runs.Reference, tmp_path: Path, moment: str
) -> None:
    target, number, left, how = MOMENTS[moment]
    path = killed_at_sync(reference, tmp_path, target, number)
    done = tuple(commits(path))
    assert done in left
    said = goes_on(reference, path, **how)
    computed = [int(n) for n in re.findall(r"^ +(\d+) +(?:soft|all) ", said, re.MULTILINE)]
    assert computed == [n for n in (1, 2) if n not in done], "only what was not kept"


@pytest.mark.slow
def test_killed_before_each_sync(reference: refine_runs.Reference, tmp_path: Path) -> None:
    moments = 0
    for number in range(1, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            path = killed_at_sync(reference, folder, str(folder), number, ranks=None)
        except AssertionError:  # the run ended before it came to this sync
            assert refine_runs.digests(folder / "run") == reference.digests
            break
        goes_on(reference, path)
        moments += 1
    assert moments > 30, "commits and results need more syncs than that"


def test_killed_twice_and_resumed_from_the_command_line_only(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    """As a job script does it: newest refine_NN, no other word; the saved settings are taken."""
    pause = instruments.Pause(tmp_path, "commit-0001", 1)
    words = reference.input.words()
    with jobs.Job(words, ranks=2, cwd=tmp_path, env=pause.environment) as job:
        pause.wait(job)
        job.kill()
    (tmp_path / "again").mkdir()
    pause = instruments.Pause(tmp_path / "again", "commit-0002", 1)
    again = ["mpipar", "refine", "--resume"]
    with jobs.Job(again, ranks=3, cwd=tmp_path, env=pause.environment) as job:
        pause.wait(job)
        job.kill()
    path = tmp_path / "refine_01"
    assert jobs.run(["mpipar", "check", path]).stdout == f"{path}: sound\n"
    done = jobs.run(again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert refine_runs.digests(path) == reference.digests
    assert jobs.run(["mpipar", "check", path]).returncode == 0
    assert [entry.name for entry in tmp_path.glob("refine_*")] == ["refine_01"]


def test_a_second_writer_is_refused_and_told_of_the_first(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    pause = instruments.Pause(tmp_path, "commit-0001", 1)
    words = reference.input.words("--path", path)
    with jobs.Job(words, ranks=3, env=pause.environment) as job:
        pause.wait(job)
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        refused = [
            (jobs.run([*words, "--resume"], ranks=2), 75),
            (jobs.run([*words, "--resume"]), 75),
            (jobs.run(words), 73),  # a new run, not a second writer
        ]
        assert store.check(path) == [], "reading is always allowed"
        after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        first = job.pids()
        pause.let_go()
        done = job.finish()
    for second, code in refused:
        assert second.returncode == code, second.stderr
        (said,) = jobs.complaints(second)
        assert str(path) in said
    for second, _ in refused[:2]:
        (process,) = re.findall(rf"process (\d+) on {socket.gethostname()}", second.stderr)
        assert int(process) in first
    changed = {file.name for file in before | after if before.get(file) != after.get(file)}
    assert changed <= {"status.json"}, "the first one's heart-beat"
    assert done.returncode == 0, done.stderr
    assert refine_runs.digests(path) == reference.digests
