"""What is done with the results of refinements, beside running ones and in further ones."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpipar.errors import InputError, MissingInputError
from mpipar.programs.particle_import import import_particles
from mpipar.results.packing import pack, unpack
from mpipar.store import check
from tests.support import jobs
from tests.support.finished_run import ITERATIONS, PARTICLES, finished_run, look
from tests.support.refine_runs import digests, run_here

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.results.refinement import Refinement
    from tests.support.refine_input import Input


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Input:
    return finished_run(tmp_path_factory.getbasetemp())[0]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.getbasetemp())[1]


def start(made: Input, path: Path, *more: str) -> subprocess.Popen[bytes]:
    words = made.words("--path", path, *more, iterations=ITERATIONS)
    null = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=jobs.environment(), stdout=null, stderr=null
    )


def wait_for_iteration(path: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            latest = look(path).latest
        except MissingInputError:
            latest = None
        if latest is not None and latest.number >= number:
            return
        time.sleep(0.01)


def test_a_reader_beside_a_running_run(made, tmp_path):
    """It sees whole iterations only, and more and more of them; the run ends as without it."""
    path = tmp_path / "refine_01"
    process = start(made, path)
    seen: set[int] = set()
    deadline = time.monotonic() + 120
    opened: Refinement | None = None
    while process.poll() is None and time.monotonic() < deadline:
        try:
            opened = opened or look(path)
        except MissingInputError:
            time.sleep(0.01)
            continue
        latest = opened.latest
        if latest is not None:
            seen.add(latest.number)
            assert np.isfinite(latest.map).all()
            assert len(latest.poses) == PARTICLES
        assert repr(opened)
    assert process.returncode == 0
    assert len(seen) > 1
    assert opened is not None
    assert opened.latest.number == 4
    assert opened.latest.is_final
    assert opened.check() == []


def test_a_run_that_was_packed_while_it_went_on_goes_on_elsewhere_with_the_same_bits(
    made, finished, tmp_path
):
    path = tmp_path / "refine_01"
    process = start(made, path)
    wait_for_iteration(path, 2, process)
    archive, _, _ = pack(path, tmp_path / "x.tar")
    assert process.wait(120) == 0
    folder, problems = unpack(archive, tmp_path / "elsewhere")
    assert problems == []
    assert 2 <= len(look(folder)) < 4
    done = run_here(["mpipar", "refine", "--resume", "--path", str(folder)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert digests(folder) == digests(finished)


def test_a_run_that_prunes_itself_has_the_same_bits_also_when_resumed(made, finished, tmp_path):
    path = tmp_path / "refine_01"
    process = start(made, path, "--keep", "1")
    wait_for_iteration(path, 2, process)
    process.terminate()
    process.wait(120)
    assert [iteration.number for iteration in look(path)] in ([2], [3], [4])
    done = run_here(["mpipar", "refine", "--resume", "--path", str(path)], tmp_path)
    assert done.returncode == 0, done.stderr
    run = look(path)
    assert [iteration.number for iteration in run] == [4]
    assert run.history["iteration"].tolist() == [1, 2, 3, 4]
    assert f"4 iterations of {PARTICLES} particles" in repr(run)
    with pytest.raises(InputError, match="no iteration 2, which was pruned; there are: 4"):
        run[2]
    assert check(path) == []
    assert digests(path) == digests(finished)


def test_imported_particles_are_refined_to_the_same_bits(made, finished, tmp_path):
    import_particles(made.star, tmp_path / "set", "float32", lambda text: None)
    words = ["--input", tmp_path / "set" / "particles.star", "--model", made.model, "--iter", 4]
    done = run_here(["mpipar", "refine", *words, "--path", tmp_path / "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    names = {"map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "fsc.txt"}
    found, expected = digests(tmp_path / "run"), digests(finished)
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
