"""A disk that fails in the middle of a refinement: tried again, then named, and nothing is lost."""

from __future__ import annotations

import functools
import json
import shutil
from typing import TYPE_CHECKING, Final

import pytest

from tests.support import instruments, jobs, refine_runs
from tests.support.installed import MPIRUN
from tests.support.refine_input import ITERATIONS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI")

FAILING: Final = """
import os
kind, first, last = os.environ["MPIPAR_TEST_READS"].split()
really, count = os.preadv, 0
def preadv(descriptor, views, offset):
    global count
    if count == 0:
        from mpipar.formats import steady_file
        steady_file.WAITS = (0.05, 0.05, 0.1)
    count += 1
    failing = int(first) <= count <= int(last)
    if failing and kind == "short":
        return 0
    if failing and kind == "spoilt":
        done = really(descriptor, views, offset)
        views[0][:] = bytes(len(views[0]))
        return done
    if failing:
        raise OSError(int(kind), os.strerror(int(kind)))
    return really(descriptor, views, offset)
os.preadv = preadv
"""
"""Lets the n-th to m-th read of stacks fail: with an error number, as if at the end, with zeros."""
EIO, ESTALE = 5, 116
FOREVER: Final = 10**9


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> refine_runs.Reference:
    return refine_runs.reference(tmp_path_factory.getbasetemp())


def longer(path: Path) -> list[str]:
    """Words that give a run one iteration more."""
    words = ["mpipar", "refine", "--resume", "--path", path, "--iter", ITERATIONS + 1]
    return [str(word) for word in words]


@functools.cache
def longer_digests(finished: Path) -> dict[str, str]:
    """The results of the reference after one iteration more, undisturbed."""
    path = finished.with_name("longer")
    shutil.copytree(finished, path)
    done = refine_runs.run_here(longer(path), path.parent)
    assert done.returncode == 0, done.stderr
    return refine_runs.digests(path)


def failing(folder: Path, kind: object, first: int, last: int) -> dict[str, str]:
    """Environment of a job whose reads fail."""
    return {
        "PYTHONPATH": instruments.instrument(folder / "instrument", FAILING),
        "MPIPAR_TEST_READS": f"{kind} {first} {last}",
    }


@pytest.mark.parametrize("kind", [EIO, ESTALE, "short"])
def test_reads_that_fail_for_a_moment_change_nothing(
    reference: refine_runs.Reference, tmp_path: Path, kind: object
) -> None:
    path = tmp_path / "run"
    words = reference.input.words("--path", path)
    done = jobs.run(words, ranks=3, env=failing(tmp_path, kind, 7, 9))
    assert done.returncode == 0, done.stderr
    stack = reference.input.stack
    assert done.stdout.count(f"note: reads of {stack} failed 3 times and were tried again") == 1
    assert refine_runs.digests(path) == reference.digests


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        (EIO, 66, "can no longer be read at byte {at} (tried 4 times in 0.2 s): Input/output"),
        (ESTALE, 66, "can no longer be read at byte {at} (tried 4 times in 0.2 s): Stale file"),
        ("short", 65, "became shorter while it was read: byte {at} is gone (tried 4 times in 0"),
        ("spoilt", 65, "has the same value in all pixels; it was sound when all images were"),
    ],
)
def test_reads_that_go_on_failing_are_named_and_the_run_is_resumed(
    reference: refine_runs.Reference, tmp_path: Path, kind: object, code: int, says: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(reference.path, path)
    words = longer(path)
    done = jobs.run(words, ranks=3, env=failing(tmp_path, kind, 6, FOREVER))
    assert done.returncode == code, done.stderr
    (said,) = jobs.complaints(done)
    for part in says.split("{at}"):
        assert part in said
    assert kind == "spoilt" or str(reference.input.stack) in said
    assert "Traceback" not in done.stderr
    kept = f"iteration {ITERATIONS} is kept: with sound input, go on with --resume --path {path}"
    assert kept in done.stdout
    assert json.loads((path / "verdict.json").read_text())["verdict"] == "failed"
    again = jobs.run(words, ranks=3)
    assert again.returncode == 0, again.stderr
    assert refine_runs.digests(path) == longer_digests(reference.path)
