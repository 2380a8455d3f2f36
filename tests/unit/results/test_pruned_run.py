"""A refinement that keeps few iterations: same bits, and it is looked at and resumed as before."""

from __future__ import annotations

import subprocess

import pytest

from mpipar.errors import InputError
from mpipar.results.opening import open_run
from mpipar.results.refinement import Refinement
from mpipar.store import check
from tests.support.refine_runs import digests, run_here


def test_a_run_that_prunes_itself_has_the_same_bits_also_when_resumed(made, finished, tmp_path):
    path = tmp_path / "refine_01"
    words = made.words("--path", path, "--keep", "1", iterations=3)
    assert run_here(words, tmp_path).returncode in {0, 79}
    done = run_here(["mpipar", "refine", "--resume", "--path", str(path), "--iter", "4"], tmp_path)
    assert done.returncode == 0, done.stderr
    run = open_run(path)
    assert isinstance(run, Refinement)
    assert [iteration.number for iteration in run] == [4]
    assert run.history["iteration"].tolist() == [1, 2, 3, 4]
    assert "4 iterations of 80 particles" in repr(run)
    with pytest.raises(InputError, match="no iteration 2, which was pruned; there are: 4"):
        run[2]
    assert check(path) == []


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
