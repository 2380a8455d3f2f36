"""The benchmark of refinements runs, and its numbers are those of the run."""

from __future__ import annotations

import json
import subprocess
import sys

import mrcfile
import numpy as np
import pytest

from jobs.scaling.simulated_set import SetOptions, write_set
from mpipar.cryoem.resolution import fourier_shell_correlation
from mpipar.cryoem.symmetry import operators
from mpipar.formats.mrc import read_volume
from mpipar.formats.star import read_particles
from tests.support import jobs
from tests.support.installed import MPIRUN


@pytest.mark.slow
@pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI")
def test_two_ranks_are_measured(tmp_path):
    program, found = jobs.ROOT / "jobs" / "scaling" / "refine.py", tmp_path / "found.json"
    words = ["--box", "32", "--particles", "120", "--snr", "0.3", "--ranks", "1", "2", "--options"]
    done = subprocess.run(
        [sys.executable, program, *words, "--iter 3", "--json", found],
        env=jobs.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(found.read_text())["runs"]
    assert runs["1"]["bits"] == runs["2"]["bits"]
    for ranks, run in runs.items():
        assert run["times"]["soft"] == 2
        assert run["times"]["search"] == 1
        assert len(run["peak"]) == len(run["processor"]["soft"]) == int(ranks)
        assert sum(map(sum, run["processor"].values())) == pytest.approx(run["processor in all"])
        assert 0 < run["search GFLOP/s"] < 2 * run["machine GFLOP/s"]
        assert run["median angle"] < 20
        assert 8 < run["FSC 0.5 to truth"] < 30


def test_set_has_the_symmetry_and_the_noise_that_were_asked_for(tmp_path):
    options = SetOptions(32, 30, "D2", signal_to_noise=1.0)
    true = write_set(tmp_path, options, cores=1)
    particles = read_particles(tmp_path / "particles.star")
    assert particles.count == len(true.rotations) == 30
    truth = read_volume(tmp_path / "truth.mrc").data
    turned = truth[:, ::-1, ::-1]  # about z, which for even boxes moves the centre by a voxel
    half_turn = np.roll(turned, (1, 1), axis=(1, 2))
    np.testing.assert_allclose(half_turn, truth, atol=1e-4 * truth.max())
    assert len(operators("D2")) == 4
    start = fourier_shell_correlation(read_volume(tmp_path / "init.mrc").data, truth)
    assert start[:3].min() > 0.99
    stack = mrcfile.read(tmp_path / "particles.mrcs")
    assert stack.shape == (30, 32, 32)
    assert stack.var() == pytest.approx(1.0 + options.signal_to_noise, rel=0.05)
