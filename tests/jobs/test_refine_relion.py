"""RELION's own tools take the results and agree with them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest

from mpipar.cryoem.resolution import fourier_shell_correlation, resolution_of
from tests.support import jobs, refine_input, refine_runs
from tests.support.installed import missing_programs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    bool(missing_programs("relion_postprocess", "relion_reconstruct")), reason="RELION is not here"
)


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> refine_runs.Reference:
    return refine_runs.reference(tmp_path_factory.getbasetemp(), iterations=8)


def relion(*words: object) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=jobs.environment({"LC_ALL": "C"}),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_relion_reconstructs_the_same_map_from_our_particles(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    """It agrees beyond our resolution: poses, origins and CTF mean to it what they mean to us."""
    stars = reference.path / "particles.star"
    relion("relion_reconstruct", "--i", stars, "--ctf", "--o", tmp_path / "map.mrc")
    ours, theirs = (mrcfile.read(f / "map.mrc") for f in (reference.path, tmp_path))
    curve = fourier_shell_correlation(ours, theirs)
    table = np.loadtxt(reference.path / "fsc.txt")
    reached = resolution_of(
        np.append(1.0, table[:, 5]), 0.143, refine_input.BOX, refine_input.PIXEL_SIZE
    )
    resolved = int(refine_input.BOX * refine_input.PIXEL_SIZE / reached)
    assert resolved >= 5, "there is something to agree on"
    assert curve[: resolved + 3].min() > 0.5, curve
    # where the FSC is low our map is no longer weighted as RELION's, which has no Wiener term
    sure = int(np.argmax(np.append(table[:, 5], 0.0) < 0.5)) + 1
    assert sure >= 5, "there is something to agree on"
    assert curve[:sure].min() > 0.9, curve
    assert curve[:resolved].min() > 0.8, curve
    turned = fourier_shell_correlation(ours, np.ascontiguousarray(theirs[:, ::-1, ::-1]))
    assert turned[3:resolved].max() < 0.5, "a turned map would have shown"


def test_relion_reads_our_half_maps_and_finds_their_correlation(
    reference: refine_runs.Reference, tmp_path: Path
) -> None:
    """With the mask: without one, RELION 3.1 stops at its own Guinier plot, whatever the maps."""
    halves = ["--i", reference.path / "half1.mrc", "--i2", reference.path / "half2.mrc"]
    mask = ["--mask", reference.path / "mask.mrc"]
    said = relion("relion_postprocess", *halves, *mask, "--o", tmp_path / "post")
    assert (tmp_path / "post.mrc").exists()
    assert "FINAL RESOLUTION" in said.upper()
    lines = (tmp_path / "post.star").read_text().partition("data_fsc")[2].splitlines()
    rows = [line.split() for line in lines if line[:12].strip().isdecimal()]
    theirs = np.array([row[5] for row in rows[: refine_input.BOX // 2]], float)
    table = np.loadtxt(reference.path / "fsc.txt")
    ours = np.append(1.0, table[:, 3])[: len(theirs)]
    # RELION counts the plane x = 0 twice
    assert len(theirs) == refine_input.BOX // 2
    assert np.abs(ours - theirs).max() < 0.1
