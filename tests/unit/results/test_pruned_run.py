"""A refinement that keeps few iterations: same bits, and it is looked at and resumed as before."""

from __future__ import annotations

import subprocess

from mpipar.results.opening import open_run
from mpipar.results.refinement import Refinement
from mpipar.store import check
from tests.support.refine_runs import digests, run_here


def test_a_pruned_copy_of_a_run(finished, tmp_path):
    copy = tmp_path / "refine_01"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    before = digests(copy)
    done = run_here(["mpipar", "prune", str(copy), "--keep", "2"], tmp_path)
    assert done.stdout.startswith(f"{copy}: 2 iterations given up (1, 2), ")
    assert digests(copy) == before
    assert check(copy) == []
    run = open_run(copy)
    assert isinstance(run, Refinement)
    assert [iteration.number for iteration in run] == [3, 4]
    assert run[4].is_final
    assert run.latest is not None
    assert run.latest.mark == ""
    done = run_here(["mpipar", "refine", "--resume", "--path", str(copy)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert digests(copy) == before
