"""slurm/refine.sbatch as it is, on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.conftest import FIRST_ITERATION, ROOT, results
from tests.cluster.particles import SYMMETRY

if TYPE_CHECKING:
    from tests.cluster.conftest import Reference
    from tests.cluster.slurm import Job, Slurm

pytestmark = pytest.mark.cluster
SCRIPT = ROOT / "slurm" / "refine.sbatch"


def submit(slurm: Slurm, reference: Reference, run: str, *, nodes: int = 2, **settings: str) -> Job:
    """Submit the script with its settings lines overridden, one rank a node."""
    sizes = (f"--nodes={nodes}", "--ntasks-per-node=1", "--mem-per-cpu=100")
    files = {"INPUT": reference.files.star.name, "MODEL": reference.files.model.name}
    places = {"RUN": run, "VENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    settings = files | places | {"SYM": SYMMETRY} | settings
    return slurm.submit(SCRIPT, reference.folder, *sizes, **settings)


def verdict(reference: Reference, run: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((reference.folder / run / "verdict.json").read_text())
    return found


def table(log: str) -> list[list[str]]:
    """Iteration, search, resolution and moved; what was stolen and how long it took may differ."""
    rows = re.findall(r"^ +(\d+) +(soft|all|local) +([\d.]+) +([\d.]+) ", log, re.MULTILINE)
    return [list(row) for row in rows]


def facts(log: str) -> list[str]:
    """The lines that do not depend on how a run was started."""
    kept = (r"\d+ particles of", "particle diameter", "converged", "resolution", " iteration ")
    return [line for line in log.splitlines() if re.match("|".join(kept), line)]


def complaints(job: Job) -> list[str]:
    return [line for line in job.said().splitlines() if line.startswith("mpipar:")]


def assert_resumed_to_the_same(job: Job, reference: Reference, run: str) -> None:
    """It went on where it was, in the same log, and ended as if nothing had been."""
    assert job.wait(150) == "COMPLETED", job.story()
    assert job["Restarts"] == "1", job.story()
    log = job.said()
    assert "refine: job" in log.split("restart 1", maxsplit=1)[0]
    numbers = [row[0] for row in table(log)]
    assert len(numbers) == len(set(numbers)), f"an iteration was done twice\n{log}"
    end = verdict(reference, run)
    assert (end["verdict"], end["job"], end["restarts"]) == ("done", job.number, 1)
    assert results(reference.folder / run) == reference.results


@pytest.mark.parametrize("launch", ["", "srun --mpi=pmix"])
def test_job_gives_what_an_interactive_run_gives(
    slurm: Slurm, reference: Reference, launch: str, request: pytest.FixtureRequest
) -> None:
    if "pmix" in launch:
        request.getfixturevalue("pmix")
    run = launch.partition(" ")[0] or "found"
    job = submit(slurm, reference, run, nodes=3, LAUNCH=launch)
    job.wait_for_pattern(FIRST_ITERATION)
    assert job.nodes("--parallel=mpi:3") == {"n1", "n2", "n3"}, job.story()
    assert bool(job.processes("prted")) == (launch == "")
    assert job.wait() == "COMPLETED", job.story()
    log = job.said()
    assert table(log) == table(reference.log)
    assert facts(log) == facts(reference.log)
    assert "MPI, 3 ranks: 1 master + 2 workers" in log
    assert log.splitlines()[-1] == "refine: verdict done, exit code 0"
    assert "\r" not in log
    end = verdict(reference, run)
    assert (end["verdict"], end["job"], end["restarts"]) == ("done", job.number, 0)
    assert results(reference.folder / run) == reference.results


@pytest.mark.usefixtures("pmix")
def test_requeued_job_resumes(slurm: Slurm, reference: Reference) -> None:
    job = submit(slurm, reference, "requeued", LAUNCH="srun --mpi=pmix")
    job.wait_for_pattern(FIRST_ITERATION)
    slurm.run("scontrol", "requeue", job.number)
    assert_resumed_to_the_same(job, reference, "requeued")


def test_job_that_nears_its_time_limit_queues_itself_again(
    slurm: Slurm, reference: Reference
) -> None:
    job = submit(slurm, reference, "limit")
    job.wait_for_pattern(FIRST_ITERATION)
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)  # as --signal=B:USR1@120 does
    assert_resumed_to_the_same(job, reference, "limit")
    assert "refine: verdict requeue, exit code 75, stopped by USR1\n" in job.said()


def test_job_that_lost_a_node_queues_itself_again(slurm: Slurm, reference: Reference) -> None:
    """Open MPI's mpirun ends with 0 when it loses its daemon on a node."""
    job = submit(slurm, reference, "lost")
    job.wait_for_pattern(FIRST_ITERATION)
    daemons = job.processes("prted")
    assert daemons, job.story()
    os.kill(daemons[-1], signal.SIGKILL)
    assert_resumed_to_the_same(job, reference, "lost")
    assert "refine: verdict requeue, exit code 75\n" in job.said()


def test_second_writer_is_refused_with_the_name_of_the_first(
    slurm: Slurm, reference: Reference
) -> None:
    first = submit(slurm, reference, "shared")
    first.wait_for_pattern(FIRST_ITERATION)
    second = submit(slurm, reference, "shared")
    assert second.wait() == "FAILED", second.story()
    assert (second["ExitCode"], second["Restarts"]) == ("75:0", "0"), second.story()
    (complaint,) = complaints(second)
    assert f"slurm job {first.number}" in complaint
    assert first.wait() == "COMPLETED", first.story()
    assert results(reference.folder / "shared") == reference.results


def test_ranks_that_each_believe_they_are_alone_stop_with_one_message(
    slurm: Slurm, reference: Reference
) -> None:
    job = submit(slurm, reference, "alone", nodes=3, LAUNCH="srun --mpi=none")
    assert job.wait() == "FAILED", job.story()
    (complaint,) = complaints(job)
    assert complaint.startswith("mpipar: 3 processes were started")
    assert job["Restarts"] == "0"
    assert not (reference.folder / "alone").exists()


def test_job_with_wrong_input_is_not_queued_again(slurm: Slurm, reference: Reference) -> None:
    job = submit(slurm, reference, "wrong", INPUT="none.star")
    assert job.wait() == "FAILED", job.story()
    assert len(complaints(job)) == 1
    assert job["ExitCode"] == "66:0"
    assert job["Restarts"] == "0"
    assert not (reference.folder / "wrong").exists()


@pytest.mark.usefixtures("pmix")
def test_srun_is_found_where_the_environment_brings_no_mpirun(slurm: Slurm, tmp_path: Path) -> None:
    """As with a site's MPI: the same Python and library, but not beside an mpirun of its own."""
    own, packages = Path(sys.prefix), Path(sysconfig.get_path("purelib"))
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True)
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(f"{packages}\n{ROOT}\n")
    script = tmp_path / "job.sh"
    words = "refine --input none.star --model none.mrc --parallel=mpi:3"
    script.write_text(f"#!/bin/bash\nPATH=/usr/bin:/bin exec {python} -m mpipar {words}\n")
    (library,) = own.glob("lib/libmpi.so.40")
    job = slurm.submit(
        script,
        tmp_path,
        *("--nodes=3", "--ntasks-per-node=1", "--mem-per-cpu=100", "--output=job-%j.log"),
        MPI4PY_LIBMPI=str(library),
        OPAL_PREFIX=str(own),
    )
    assert job.wait() == "FAILED", job.story()
    log = job.said()
    assert log.startswith("MPI, 3 ranks: 1 master + 2 workers (Open MPI"), job.story()
    assert len(complaints(job)) == 1
    assert job["ExitCode"] == "66:0"
