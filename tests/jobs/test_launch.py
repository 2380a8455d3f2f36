"""Whole jobs under a real mpirun: how they begin, how they end when rank 0 refuses."""

from __future__ import annotations

import sys

import pytest

from tests.support.installed import MPIRUN, mpirun
from tests.support.jobs import complaints, run

WORDS = ["refine", "--input", "none.star", "--model", "none.mrc"]
PARTS = [sys.executable, "-m", "tests.support.parts"]

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment brings no MPI")


def job(ranks, act, *words):
    return run(line=[*mpirun(), "-n", ranks, *PARTS, act, *WORDS, *words])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_form_one_pool(ranks):
    done = job(ranks, "compute", "--threads", "2")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if not line.startswith("note: ")]
    first, results, loaded = said
    workers = max(1, ranks - 1)
    assert results == f"results {[n * n for n in range(10)]} by {workers} workers"
    assert first.startswith(
        "1 process, 1 worker" if ranks == 1 else f"MPI, {ranks} ranks: 1 master"
    )
    assert loaded == f"mpi4py loaded: {ranks > 1}"


@pytest.mark.parametrize("parallel", ["serial", "thread:2"])
def test_without_mpirun_no_mpi_is_loaded(parallel):
    done = run(line=[*PARTS, "compute", *WORDS, f"--parallel={parallel}"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("mpi4py loaded: False\n")


@pytest.mark.parametrize(("act", "code"), [("refuse", 65), ("fail", 70), ("fail_late", 70)])
def test_all_ranks_end_when_rank_0_fails(act, code):
    done = job(3, act)
    assert done.returncode == code
    if act == "refuse":
        assert complaints(done) == ["mpipar: none.star: no particles"]
    else:
        assert done.stderr.count("ZeroDivisionError: a bug") == 1
        assert "this is a bug in mpipar" in done.stderr


def test_wrong_flag_is_said_once():
    done = job(3, "compute", "--simmetry", "c1")
    assert done.returncode == 64
    assert len(complaints(done)) == 1
    assert "did you mean --" in done.stderr or "unknown option --simmetry" in done.stderr


def test_wrong_value_in_a_settings_file_that_only_rank_0_reads(tmp_path):
    (tmp_path / "s.toml").write_text('parallel = "thread:2"\n')
    done = job(3, "compute", "--settings", tmp_path / "s.toml")
    assert done.returncode == 71
    assert complaints(done) == [
        "mpipar: --parallel=thread:2 does not fit the 3 ranks that were started; leave it out"
    ]


def test_help_is_printed_once():
    done = run(line=[*mpirun(), "-n", 3, sys.executable, "-m", "mpipar", "refine", "--help"])
    assert done.returncode == 0
    assert done.stdout.count("usage:") == 1


@pytest.mark.parametrize("launcher", ["OMPI_COMM_WORLD", "PMI"])
def test_processes_that_each_believe_they_are_alone_stop_with_one_message(launcher):
    line, size = [*PARTS, "compute", *WORDS], {f"{launcher}_SIZE": "3"}
    done = [run(line=line, env={**size, f"{launcher}_RANK": str(rank)}) for rank in range(3)]
    assert [d.returncode for d in done] == [71, 0, 0]
    said = [line for d in done for line in complaints(d)]
    assert len(said) == 1
    assert said[0].startswith("mpipar: 3 processes were started")
    assert f"({launcher}_SIZE=3)" in said[0]
    assert "alone" in said[0]
    assert all(d.stdout == "" for d in done)


def test_parallel_mpi_starts_mpirun_itself():
    done = run(line=[sys.executable, "-m", "mpipar", *WORDS, "--parallel=mpi:3"])
    assert done.stdout.startswith("MPI, 3 ranks: 1 master + 2 workers")
    assert done.returncode == 66
    assert len(complaints(done)) == 1
    assert "none.star" in complaints(done)[0]


LEAVES = """#!/bin/bash
mkdir -p "$TMPDIR/ompi.$$"
touch "$TMPDIR/ompi.$$/pmix.$(hostname).tool.$$"
exec {mpirun} "$@"
"""


@pytest.mark.skipif("--oversubscribe" not in mpirun(), reason="only of Open MPI's mpirun")
def test_what_a_killed_mpirun_left_stops_no_job(tmp_path):
    """Its files stop another mpirun that is given the same process number; not one of ours."""
    again = tmp_path / "mpirun"
    again.write_text(LEAVES.format(mpirun=MPIRUN))
    again.chmod(0o755)
    around = {"TMPDIR": str(tmp_path), "MPIPAR_LAUNCHER": str(again)}
    assert run(line=[again, "-n", "1", "true"], env=around).returncode != 0
    done = run(["mpipar", *WORDS, "--parallel=mpi:2"], env=around)
    assert complaints(done) == ["mpipar: none.star does not exist"]
    assert done.stdout.startswith("MPI, 2 ranks")
    assert not list(tmp_path.glob("mpipar-session-*"))
