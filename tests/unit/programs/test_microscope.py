"""CTF cells that no microscope gives are refused by row; unusual ones are noted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from mpipar.errors import InputError
from mpipar.formats.star import read_particles
from mpipar.programs import microscope
from tests.support.blocks import (
    old_columns,
    optics_columns,
    particle_columns,
    write_particle_input,
    write_star,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.formats.particles import ParticleSet

COUNT = 8
DEFOCUS = ("rlnDefocusU", "rlnDefocusV")


def listed(folder: Path, optics: dict[str, Any] | None = None, **columns: Any) -> ParticleSet:
    star = write_particle_input(folder, count=COUNT)
    tables = {
        "optics": optics_columns(**(optics or {})),
        "particles": particle_columns(COUNT, **columns),
    }
    return read_particles(write_star(star, tables))


def one(usual: float, odd: float) -> list[float]:
    """A column in which particle 6 is odd."""
    return [odd if row == 5 else usual for row in range(COUNT)]


def test_a_sound_list_passes_without_a_word(tmp_path: Path) -> None:
    particles = listed(tmp_path)
    assert microscope.doubts(particles) == []
    assert list(microscope.pixel_notes(particles)) == []


@pytest.mark.parametrize(
    ("label", "usual", "odd"),
    [
        ("rlnCtfBfactor", 0.0, -1e5),
        ("rlnCtfBfactor", 0.0, 1e6),
        ("rlnCtfBfactor", 0.0, -9000.0),
        ("rlnCtfScalefactor", 1.0, 0.0),
        ("rlnCtfScalefactor", 1.0, -1.0),
        ("rlnCtfScalefactor", 1.0, 1e6),
        ("rlnDefocusU", 20000.0, 1e9),
        ("rlnDefocusV", 20000.0, -1e9),
        ("rlnPhaseShift", 0.0, 1e8),
        ("rlnDefocusAngle", 0.0, 1e8),
    ],
)
@pytest.mark.parametrize("everywhere", [True, False])
def test_what_no_microscope_gives_is_refused(
    tmp_path: Path, label: str, usual: float, odd: float, everywhere: bool
) -> None:
    column = [odd] * COUNT if everywhere else one(usual, odd)
    columns: dict[str, Any] = {label: column}
    particles = listed(tmp_path, **columns)
    row = 1 if everywhere else 6
    with pytest.raises(
        InputError, match=rf"^particle {row} of .* has {label} = {re.escape(f'{odd:g}')}"
    ):
        microscope.doubts(particles)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"rlnDefocusU": [-20000.0] * COUNT}, "rlnDefocusU .* overfocus"),
        ({label: [1500.0] * COUNT for label in DEFOCUS}, "rlnDefocusU .* nanometres"),
        ({"rlnDefocusU": [1.5] * COUNT}, "rlnDefocusU is .* micrometres"),
        ({"rlnDefocusV": [1.2] * COUNT}, "rlnDefocusV is .* micrometres"),
        ({"rlnDefocusU": [0.0] * COUNT, "rlnDefocusV": [0.0] * COUNT}, "are 0 for all particles"),
        ({"rlnDefocusU": one(20000.0, 3e5)}, r"rlnDefocusU .* 1 particle \(rows 6\)"),
        ({"rlnDefocusV": [0.0] * COUNT}, "rlnDefocusV .* not set"),
        ({"rlnDefocusV": one(20000.0, 50000.0)}, r"far apart in 1 particle \(rows 6\)"),
        ({"rlnPhaseShift": [1.57] * COUNT}, "rlnPhaseShift .* radians"),
        ({"rlnPhaseShift": one(90.0, 900.0)}, "rlnPhaseShift is unusual in 1"),
        ({"rlnCtfBfactor": one(0.0, 5000.0)}, r"rlnCtfBfactor .* \(rows 6\)"),
        ({"rlnCtfScalefactor": one(1.0, 0.01)}, r"rlnCtfScalefactor .* \(rows 6\)"),
        ({"optics": {"rlnVoltage": [3.0]}}, "rlnVoltage = 3 kV"),
        ({"optics": {"rlnAmplitudeContrast": [0.9]}}, "rlnAmplitudeContrast = 0.9"),
    ],
)
def test_what_is_unusual_is_noted(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    notes = microscope.doubts(listed(tmp_path, **columns))
    assert any(re.search(says, note) for note in notes), notes


def test_pixel_sizes_that_disagree_are_noted(tmp_path: Path) -> None:
    particles = listed(tmp_path, {"rlnPixelSize": [4.0]})
    (note,) = microscope.pixel_notes(particles)
    assert "rlnPixelSize gives 4 A, and 2 A is used" in note
    columns = old_columns(COUNT, rlnPixelSize=[2.0] * COUNT)
    columns |= {"rlnDetectorPixelSize": [5.0] * COUNT, "rlnMagnification": [10000.0] * COUNT}
    star = write_star(tmp_path / "particles.star", {"": columns})
    notes = list(microscope.pixel_notes(read_particles(star)))
    assert "rlnDetectorPixelSize with rlnMagnification gives 5 A, and 2 A is used" in notes[-1]


def test_a_negative_amplitude_contrast_is_refused(tmp_path: Path) -> None:
    particles = listed(tmp_path, {"rlnAmplitudeContrast": [-0.1]})
    with pytest.raises(InputError, match=r"rlnAmplitudeContrast = -0\.1 .*--contrast invert"):
        microscope.doubts(particles)


def test_origins_outside_of_their_images_are_refused(tmp_path: Path) -> None:
    def notes(x: float) -> list[str]:
        particles = listed(tmp_path, rlnOriginXAngst=one(1.0, x), rlnOriginYAngst=[0.0] * COUNT)
        return microscope.origin_notes(particles, 32.0)

    assert notes(5.0) == []
    (note,) = notes(-20.0)
    assert note.startswith("origins are far from the centres of 1 image (rows 6): 20 A of 32 A")
    for far in (40.0, 1e30):
        with pytest.raises(InputError, match=r"^particle 6 .* has its origin"):
            notes(far)
