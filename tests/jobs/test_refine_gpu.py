"""`--gpu` where there is no cupy: said at the start, or the processors do it, with their bits."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.support import jobs, refine_runs
from tests.support.installed import MPIRUN

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI"),
    pytest.mark.skipif(find_spec("cupy") is not None, reason="cupy is installed"),
]


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> refine_runs.Reference:
    return refine_runs.reference(tmp_path_factory.getbasetemp())


def test_auto_gives_the_processors_bits_and_says_why(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    done = jobs.run(reference.input.words("--path", path, "--gpu", "auto"), ranks=3)
    assert done.returncode == 0, done.stderr
    assert "note: --gpu needs cupy and numba-cuda" in done.stdout
    assert "the processors align" in done.stdout
    assert refine_runs.digests(path) == reference.digests


def test_a_number_is_refused_once_and_no_folder_is_left(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    done = jobs.run(reference.input.words("--path", path, "--gpu", "0"), ranks=3)
    assert done.returncode == 69
    assert done.stderr.count("mpipar: --gpu needs cupy and numba-cuda") == 1
    assert "Traceback" not in done.stderr
    assert not path.exists()
