"""`mpipar submit` and `mpipar status` with a real SLURM, as a user types them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.cluster.conftest import ROOT, results
from tests.cluster.particles import SYMMETRY
from tests.cluster.slurm import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.conftest import Reference
    from tests.cluster.slurm import Slurm

pytestmark = pytest.mark.cluster
SIZES = ("--nodes", "2", "--ntasks", "2", "--memory", "100M")
LONG = "until [ -e over ]; do sleep 0.1; done\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "commands.txt").write_text("echo a >>trace\necho b >>trace\n")
    return tmp_path


def start(slurm: Slurm, folder: Path, *words: str) -> subprocess.Popen[str]:
    nowhere = {"XDG_CONFIG_HOME": str(folder / "none"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "mpipar", *words],
        cwd=folder,
        env=slurm.environment | nowhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def mpipar(slurm: Slurm, folder: Path, *words: str, code: int = 0) -> str:
    """Run a command of mpipar to its end; what it says."""
    process = start(slurm, folder, *words)
    said, _ = process.communicate(timeout=150)
    assert process.returncode == code, said + slurm.story() + logs(folder)
    return said


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.glob("*/job/*.txt"))


def state(slurm: Slurm, folder: Path, run: str) -> str:
    (found,) = json.loads(mpipar(slurm, folder, "status", run, "--json"))["runs"]
    return str(found["state"])


def test_refinement_that_is_submitted_gives_what_an_interactive_one_gives(
    slurm: Slurm, reference: Reference
) -> None:
    files = ("--input", reference.files.star.name, "--model", reference.files.model.name)
    words = ("refine", *files, "--sym", SYMMETRY, "--path", "submitted")
    said = mpipar(slurm, reference.folder, "submit", *SIZES, "--wait", "--", *words)
    assert re.match(r"slurm job \d+: submitted\n", said)
    assert results(reference.folder / "submitted") == reference.results
    assert "submitted  done " in mpipar(slurm, reference.folder, "status")


def test_submitted_run_that_nears_its_time_limit_goes_on(slurm: Slurm, folder: Path) -> None:
    (folder / "commands.txt").write_text(
        "echo a >>trace\n[ -e again ] && echo b >>trace || { touch again; sleep 100; }\n"
    )
    words = (*SIZES, "--time", "5m", "--wait", "--", "run", "commands.txt")
    process = start(slurm, folder, "submit", *words)
    wait_for((folder / "again").exists, 60, slurm.story)
    status = folder / "run_01" / "status.json"
    wait_for(lambda: json.loads(status.read_text()).get("done") == 1, 30, slurm.story)
    (job,) = (folder / "run_01" / "job" / "ids").read_text().split()
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    said, _ = process.communicate(timeout=150)
    assert process.returncode == 0, said + logs(folder)
    assert "run_01: queued: " in said
    assert "run_01: done: " in said
    assert "submit: verdict requeue, exit code 75, stopped: limit\n" in logs(folder)
    assert Counter((folder / "trace").read_text().split()) == {"a": 1, "b": 1}


def test_array_and_what_comes_after_it(slurm: Slurm, folder: Path) -> None:
    (folder / "runs.txt").write_text("--retries 0\n--path 'a run'\n")
    (folder / "after.txt").write_text("cat trace >seen\n")
    array = ("--array", "runs.txt", "--", "run", "commands.txt")
    mpipar(slurm, folder, "submit", *SIZES, *array)
    after = ("--after", "run_01", "--wait", "--", "run", "after.txt", "--path", "last")
    mpipar(slurm, folder, "submit", *SIZES, *after)
    assert Counter((folder / "trace").read_text().split()) == {"a": 2, "b": 2}
    assert "a" in (folder / "seen").read_text()
    mpipar(slurm, folder, "status", "--wait")
    table = mpipar(slurm, folder, "status")
    assert len(re.findall(r"^(a run|last|run_01) +done ", table, re.MULTILINE)) == 3, table


def test_cancelled_run_is_over_for_good_and_can_be_resumed(slurm: Slurm, folder: Path) -> None:
    (folder / "commands.txt").write_text("echo a >>trace\n" + LONG)
    mpipar(slurm, folder, "submit", *SIZES, "--", "run", "commands.txt")
    wait_for((folder / "trace").exists, 60, slurm.story)
    wait_for(lambda: state(slurm, folder, "run_01") == "running", 30, slurm.story)
    again = ("submit", *SIZES, "--", "run", "commands.txt", "--path", "run_01")
    assert "is running already" in mpipar(slurm, folder, *again, code=64)
    mpipar(slurm, folder, "submit", "--cancel", "run_01")
    mpipar(slurm, folder, "status", "run_01", "--wait", code=75)
    assert state(slurm, folder, "run_01") in {"cut off", "dead"}
    (folder / "over").touch()
    mpipar(slurm, folder, "submit", *SIZES, "--wait", "--", "run", "--resume", "--path", "run_01")
    assert (folder / "trace").read_text() == "a\n"


def test_job_that_slurm_refuses_leaves_nothing(slurm: Slurm, folder: Path) -> None:
    words = ("--partition", "none", "--", "run", "commands.txt")
    said = mpipar(slurm, folder, "submit", *SIZES, *words, code=69)
    assert "invalid partition specified: none" in said
    assert [path.name for path in folder.iterdir()] == ["commands.txt"]


def test_cancelled_in_the_queue(slurm: Slurm, folder: Path) -> None:
    (folder / "commands.txt").write_text(LONG)
    mpipar(slurm, folder, "submit", *SIZES, "--", "run", "commands.txt")
    mpipar(slurm, folder, "submit", *SIZES, "--after", "run_01", "--", "run", "commands.txt")
    assert state(slurm, folder, "run_02") == "queued"
    mpipar(slurm, folder, "submit", "--cancel", "run_02")
    said = mpipar(slurm, folder, "status", "run_02", "--wait", code=70)
    assert "ended before the run began" in said
    mpipar(slurm, folder, "submit", "--cancel", "run_01")
