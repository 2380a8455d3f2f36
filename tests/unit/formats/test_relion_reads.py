"""RELION's own programs, where installed, read what is written here."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.formats.mrc import Stack, read_volume, write_volume
from mpipar.formats.star import read_particles, write_particles
from tests.support.blocks import (
    blob,
    noise_images,
    old_columns,
    optics_columns,
    particle_columns,
    write_mrc,
    write_star,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    shutil.which("relion_stack_create") is None, reason="RELION is not installed"
)


def relion(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("suffix", [".mrcs", ".mrc"])
@pytest.mark.parametrize("generation", ["3.0", "3.1"])
def test_relion_reads_particles_from_any_folder(
    tmp_path: Path, generation: str, suffix: str
) -> None:
    images = noise_images(6, 16)
    write_mrc(tmp_path / f"particles{suffix}", images)
    names = [f"{i}@particles{suffix}" for i in (3, 1, 2, 6)]
    old: dict[str, Any] = {"": old_columns(4, rlnImageName=names)}
    new = {"optics": optics_columns(), "particles": particle_columns(4, rlnImageName=names)}
    star = write_star(tmp_path / "in.star", old if generation == "3.0" else new)
    poses: dict[str, Any] = {"angles": np.full((4, 3), 9.0), "origins": np.ones((4, 2))}
    # a label that RELION does not know, too
    poses["extra"] = dict.fromkeys(("rlnParticleFigureOfMerit", "mpiparSignificance"), np.ones(4))
    write_particles(tmp_path / "out.star", read_particles(star), half=np.ones(4, int), **poses)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    relion(elsewhere, "relion_stack_create", "--i", "../out.star", "--o", "copy")
    copy = Stack(elsewhere / "copy.mrcs")
    np.testing.assert_array_equal(copy.read(np.arange(4)), images[[2, 0, 1, 5]])
    copy.close()
    command = ("relion_reconstruct", "--i", "../out.star", "--o", "map.mrc", "--ctf")
    relion(elsewhere, *command, "--fom_weighting")
    volume = read_volume(elsewhere / "map.mrc")
    assert (volume.data.shape, volume.pixel_size) == ((16, 16, 16), 2.0)


def test_relion_reads_a_volume(tmp_path: Path) -> None:
    volume = blob(16, 1.5, (1, 2, 3), 4.0)
    write_volume(tmp_path / "map.mrc", volume, 1.5)
    said = relion(tmp_path, "relion_image_handler", "--i", "map.mrc", "--stats")
    assert "(x,y,z,n)= 16 x 16 x 16 x 1" in said
    assert "angpix = 1.5" in said
    double = ("--multiply_constant", "2")
    relion(tmp_path, "relion_image_handler", "--i", "map.mrc", "--o", "twice.mrc", *double)
    np.testing.assert_allclose(read_volume(tmp_path / "twice.mrc").data, 2 * volume, rtol=1e-6)
