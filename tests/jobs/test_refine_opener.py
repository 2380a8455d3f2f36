"""Rank 0 alone opens input and project files: the promise of one opener."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import instruments, jobs, refine_runs
from tests.support.installed import MPIRUN, missing_programs, mpirun

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI")

BLIND = """
set -e
mount -t tmpfs -o ro none "$0"
test -z "$(ls -A "$0")"
exec "$@"
"""
"""Run "$@" where the folder "$0" is empty, and nothing can be put into it."""


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> refine_runs.Reference:
    return refine_runs.reference(tmp_path_factory.getbasetemp())


def may_mount(folder: Path) -> bool:
    if os.geteuid() != 0 or missing_programs("unshare", "mount"):
        return False
    tried = ["unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder)]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def test_workers_for_which_input_and_project_do_not_exist(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    if not may_mount(tmp_path):
        pytest.skip("mounting in a namespace of one's own needs root")
    hidden = tmp_path / "hidden"
    shutil.copytree(reference.input.folder, hidden / "input")
    made = reference.input.moved(hidden / "input")
    program = jobs.command(None, made.words("--path", hidden / "run"))
    blind = ["unshare", "-m", "sh", "-c", BLIND, str(hidden), *program]
    line = [*mpirun(), "-n", "1", *program, ":", "-n", "2", *blind]
    with jobs.Job((), line=line, cwd=tmp_path) as job:
        done = job.finish()
    assert done.returncode == 0, done.stderr
    expected = refine_runs.digests(reference.path, reference.input)
    assert refine_runs.digests(hidden / "run", made) == expected


def test_workers_open_nothing_in_the_folders_of_input_and_project(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    """Also while blocks are stolen, and where a mount is not allowed."""
    opened = tmp_path / "opened"
    opened.mkdir()
    path = tmp_path / "run"
    done = jobs.run(
        reference.input.words("--path", path),
        ranks=3,
        env={
            "MPIPAR_SLOW": "2:3",
            "PYTHONPATH": instruments.instrument(tmp_path / "instrument", instruments.OPENED),
            "MPIPAR_TEST_OPENED": str(opened),
        },
    )
    assert done.returncode == 0, done.stderr
    folders = (str(reference.input.folder), str(path))

    def noted(rank: int) -> set[str]:
        return {line.split(" ", 1)[1] for line in (opened / f"{rank}").read_text().splitlines()}

    def of(rank: int) -> set[str]:
        return {path for path in noted(rank) if path.startswith(folders)}

    assert {str(reference.input.star), str(reference.input.stack), str(path / "segments")} <= of(0)
    for rank in (1, 2):
        assert any("/mpipar/" in path for path in noted(rank)), "what it opens is noted"
        assert of(rank) == set()
