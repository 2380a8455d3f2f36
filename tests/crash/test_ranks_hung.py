"""Workers that are stopped, not killed: they cost their tasks, not the job.

Promises: work survives, never silently serial (no wait without a bound).

With fault tolerance and without, under any MPI: a stopped rank is no dead rank.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from mpipar.launch.mpirun import FAULT_TOLERANT
from tests.support import jobs
from tests.support.installed import MPIRUN, mpirun, tolerates_faults
from tests.support.nodes import Nodes, unable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LIMIT = 60.0
PATIENCE = {"MPIPAR_PATIENCE": "2"}

pytestmark = pytest.mark.crash
kinds = pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="plain"),
        pytest.param(
            FAULT_TOLERANT,
            id="tolerant",
            marks=pytest.mark.skipif(not tolerates_faults(), reason="no fault tolerance here"),
        ),
    ],
)


def start(flags: Sequence[str], ranks: int, runs: int) -> tuple[jobs.Job, dict[int, int]]:
    """A job that sums, and the process of each of its workers."""
    program = [sys.executable, "-m", "tests.support.summing", str(runs)]
    line = [*mpirun(), *flags, "-n", str(ranks), *program]
    job = jobs.Job([], line=line, env=PATIENCE)
    assert job.process.stdout is not None
    processes = json.loads(job.process.stdout.readline())
    return job, {int(rank): process for rank, process in processes.items()}


def told(job: jobs.Job) -> str:
    """The next line that rank 0 writes."""
    assert job.process.stdout is not None
    with jobs.patience(LIMIT):
        return job.process.stdout.readline()


@kinds
def test_stopped_worker_costs_its_tasks_and_not_the_job(flags: list[str]) -> None:
    job, processes = start(flags, 4, runs=3)
    with job:
        os.kill(processes[2], signal.SIGSTOP)
        done = job.finish(LIMIT)
        assert job.leaves_nothing()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all right"), done
    assert f"rank 2 on {os.uname().nodename} (process {processes[2]}) is lost: silent for" in (
        done.stdout
    )
    by_force = "ranks 2 do not answer; they are ended by force" in done.stderr
    assert by_force is not bool(flags), "where that does not end the job, a worker kills it before"


@kinds
def test_worker_that_comes_back_is_told_and_leaves(flags: list[str]) -> None:
    job, processes = start(flags, 3, runs=6)
    with job:
        os.kill(processes[1], signal.SIGSTOP)
        assert "is lost: silent for" in told(job)
        os.kill(processes[1], signal.SIGCONT)
        done = job.finish(LIMIT)
        assert job.leaves_nothing()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all right"), done
    assert f"(process {processes[1]}) leaves, the job goes on without it: silent for" in done.stderr
    assert "by force" not in done.stderr


def test_all_workers_stopped_is_a_requeue() -> None:
    job, processes = start([], 3, runs=2)
    with job:
        for process in processes.values():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        done = job.finish(LIMIT)
        assert job.leaves_nothing()
    assert done.returncode == 75, done
    assert "and no worker is left; resume the run to go on" in done.stdout.splitlines()[-1]


def start_on_nodes(
    nodes: Nodes, *words: str, runs: int, **more: str
) -> tuple[jobs.Job, dict[int, int]]:
    """The same on three nodes, one rank on each."""
    program = [sys.executable, "-m", "tests.support.summing", *words, str(runs)]
    hosts = ["--hostfile", str(nodes.hostfile(1)), "--prtemca", "plm_ssh_agent", str(nodes.agent)]
    start = [*nodes.on("m0"), str(MPIRUN), *FAULT_TOLERANT, *hosts]
    line = [*start, "-n", "3", *program]
    job = jobs.Job([], line=line, env={"MPIPAR_PATIENCE": "3", **more})
    assert job.process.stdout is not None
    processes = json.loads(job.process.stdout.readline())
    return job, {int(rank): process for rank, process in processes.items()}


@pytest.mark.skipif(bool(unable()), reason=unable())
@pytest.mark.skipif(not tolerates_faults(), reason="no fault tolerance here")
def test_cut_link_costs_its_tasks_and_a_mended_one_brings_word(tmp_path: Path) -> None:
    with Nodes(tmp_path / "nodes", 3) as nodes:
        job, processes = start_on_nodes(nodes, runs=8)
        with job:
            nodes.cut("m2")
            assert f"rank 2 on m2 (process {processes[2]}) is lost: silent for" in told(job)
            nodes.mend("m2")
            done = job.finish(LIMIT)
            assert job.leaves_nothing()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all right"), done
    assert "rank 2 on m2" in done.stderr


@pytest.mark.skipif(bool(unable()), reason=unable())
@pytest.mark.skipif(not tolerates_faults(), reason="no fault tolerance here")
def test_job_ends_although_a_node_stays_cut_off(tmp_path: Path) -> None:
    with Nodes(tmp_path / "nodes", 3) as nodes:
        job, _ = start_on_nodes(nodes, runs=3)
        with job:
            nodes.cut("m2")
            assert "rank 2 on m2" in told(job)
            assert told(job) == "all right\n"
            with jobs.patience(LIMIT):
                job.process.wait(LIMIT)  # killed: the daemon on m2 never answers it


@pytest.mark.skipif(bool(unable()), reason=unable())
@pytest.mark.skipif(not tolerates_faults(), reason="no fault tolerance here")
def test_workers_that_do_not_reach_each_other_cost_one_of_them(tmp_path: Path) -> None:
    """Rank 1 steals from rank 2, which is slow, until the answers get lost."""
    with Nodes(tmp_path / "nodes", 3) as nodes:
        knobs = {"MPIPAR_SLOW": "2:6", "MPIPAR_SHUFFLE": "1"}
        job, processes = start_on_nodes(nodes, "count", runs=5, **knobs)
        with job:
            assert told(job) == "run 1 is right\n"
            nodes.lose_what_is_sent("m2", "m1")
            lost = (
                f"rank 2 on m2 (process {processes[2]}) is lost: it and rank 1 on m1 do not reach"
            )
            lines = iter(lambda: told(job), "")
            assert any(line.startswith(lost) for line in lines), "or the job is over without it"
            done = job.finish(LIMIT)
            assert job.leaves_nothing()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all right"), done
