"""Results as other programs read them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import mrcfile
import numpy as np
import pytest

from mpipar.cryoem.matches import Matches
from mpipar.cryoem.rotations import from_euler
from mpipar.formats.star import read_particles
from mpipar.options import read_settings_file
from mpipar.programs import alarms, exports
from mpipar.programs.iteration import Maps
from mpipar.settings import RefineSettings
from mpipar.store.project import Project
from tests.support.small_refinement import Small, small

if TYPE_CHECKING:
    from pathlib import Path

BOX, PIXEL_SIZE = 16, 2.0
CURVE = np.array([1.0, 1.0, 0.9, 0.8, 0.643, 0.143 - 0.5, -0.4, -0.4, -0.5])
"""Falls to 0.143 half-way between shells 4 and 5."""
ALARM = alarms.Alarm("a name", "what was seen, what it means, what to do")


@pytest.fixture
def written(tmp_path: Path) -> tuple[Small, Maps, Path]:
    made = small(tmp_path / "input")
    random, count = np.random.default_rng(0), made.inputs.particles.count
    angles = np.degrees(random.uniform(-3, 3, size=(count, 3)))
    poses = dataclasses.replace(
        made.state.poses,
        rotations=from_euler(angles),
        shifts=random.normal(size=(count, 2)),
        score=random.normal(size=count),
    )
    matches = Matches(*random.normal(100, 10, size=(4, count)))
    state = dataclasses.replace(made.state, poses=poses, matches=matches)
    halves = random.normal(size=(2, BOX, BOX, BOX)).astype(np.float32)
    maps = Maps(halves, made.data.sphere, halves.sum(axis=0), CURVE / 2, CURVE, CURVE)
    start = alarms.StartingModel(made.inputs.model, 12.0)
    found = alarms.look(made.data, state, maps, [], start, finished=True)
    found = dataclasses.replace(found, alarms=(ALARM,))
    path = tmp_path / "run"
    with Project.create(path, settings={}, kind="refine") as project:
        exports.write_all(project, made.inputs, made.settings, made.data, state, found)
    return dataclasses.replace(made, state=state), maps, path


def test_every_named_file_is_there_and_nothing_half_written(
    written: tuple[Small, Maps, Path],
) -> None:
    path = written[2]
    assert set(exports.NAMES) <= {file.name for file in path.iterdir()}
    assert not [file for file in path.iterdir() if file.name.startswith(".tmp")]


def test_maps_are_read_by_mrcfile(written: tuple[Small, Maps, Path]) -> None:
    made, maps, path = written
    expected = {
        "half1.mrc": maps.halves[0],
        "half2.mrc": maps.halves[1],
        "mask.mrc": maps.mask,
        "map.mrc": maps.combined * made.data.sphere,
    }
    for name, volume in expected.items():
        assert mrcfile.validate(path / name)
        with mrcfile.open(path / name) as mrc:
            assert mrc.is_volume()
            assert mrc.voxel_size.x == pytest.approx(PIXEL_SIZE)
            assert mrc.data.dtype == np.float32
            np.testing.assert_array_equal(mrc.data, volume)


def test_particles_are_read_back(written: tuple[Small, Maps, Path]) -> None:
    made, _, path = written
    again = read_particles(path / "particles.star")
    before, poses = made.inputs.particles, made.state.poses
    assert again.angles is not None
    assert again.origins is not None
    np.testing.assert_allclose(from_euler(again.angles), poses.rotations, atol=1e-6)
    # the origin says how to move the image, the shift where the particle lies
    np.testing.assert_allclose(again.origins, -PIXEL_SIZE * poses.shifts, atol=1e-5)
    assert np.array_equal(again.half, made.data.half)
    assert again.stacks == before.stacks
    assert np.array_equal(again.slice, before.slice)
    np.testing.assert_allclose(again.defocus_u, before.defocus_u)
    score = again.table["rlnLogLikeliContribution"].astype(float)
    np.testing.assert_allclose(score, poses.score, rtol=1e-5, atol=1e-5)
    held_out = again.table["mpiparHeldOutScore"].astype(float)
    np.testing.assert_allclose(held_out, made.state.matches.held_score, rtol=1e-5)
    assert again.table["rlnParticleFigureOfMerit"].astype(float).between(0, 1).all()


def test_settings_are_read_back(written: tuple[Small, Maps, Path]) -> None:
    made, _, path = written
    again = RefineSettings.from_mapping(read_settings_file(path / "settings.toml", "refine"))
    assert again.to_mapping() == made.settings.to_mapping()
    assert again.path is None, "the folder of the run is taken"


def test_fsc_table_is_numbers_under_warnings_and_a_resolution(
    written: tuple[Small, Maps, Path],
) -> None:
    _, maps, path = written
    text = (path / "fsc.txt").read_text()
    assert text == f"# warnings:\n#   {ALARM}\n{exports.fsc_table(maps, BOX, PIXEL_SIZE)}"
    at = BOX * PIXEL_SIZE / 4.5
    assert f"{at:.2f} A inside the mask" in text
    table = np.loadtxt(path / "fsc.txt")
    assert table.shape == (BOX // 2, 6)
    np.testing.assert_array_equal(table[:, 0], np.arange(1, BOX // 2 + 1))
    np.testing.assert_allclose(table[:, 1], table[:, 0] / (BOX * PIXEL_SIZE), atol=1e-6)
    np.testing.assert_allclose(table[:, 1] * table[:, 2], 1.0, atol=1e-3)
    np.testing.assert_allclose(table[:, 3], CURVE[1:] / 2, atol=1e-6)
    np.testing.assert_allclose(table[:, 4:], np.stack([CURVE[1:]] * 2, axis=1), atol=1e-6)


def test_resolutions_are_those_of_the_corrected_and_the_unmasked_curve() -> None:
    volume = np.zeros((BOX,) * 3, np.float32)
    maps = Maps(np.stack([volume] * 2), volume, volume, np.full(9, 0.1), np.ones(9), CURVE)
    inside, everywhere = exports.resolutions(maps, BOX, PIXEL_SIZE)
    assert inside == pytest.approx(BOX * PIXEL_SIZE / 4.5)
    assert everywhere == pytest.approx(BOX * PIXEL_SIZE / 1)
    assert exports.limit_of_pixels(maps, BOX, PIXEL_SIZE) == ""


def test_curve_that_does_not_fall_is_said_to_be_a_limit() -> None:
    volume = np.zeros((BOX,) * 3, np.float32)
    unmasked, high = np.linspace(1.0, -0.1, 9), np.linspace(1.0, 0.2, 9)
    maps = Maps(np.stack([volume] * 2), volume, volume, unmasked, high, high)
    assert exports.resolutions(maps, BOX, PIXEL_SIZE)[0] == 2 * PIXEL_SIZE
    said = exports.limit_of_pixels(maps, BOX, PIXEL_SIZE)
    assert said.startswith("at least; the FSC does not fall")
    assert "4.00 A, two pixels" in said
    assert f"# {said}\n" in exports.fsc_table(maps, BOX, PIXEL_SIZE)


def test_shells_that_no_image_fills_give_no_resolution() -> None:
    """A mask mixes the last filled shells into those after them."""
    volume = np.zeros((BOX,) * 3, np.float32)
    unmasked = np.array([1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.0, 0.0, 0.0])
    maps = Maps(np.stack([volume] * 2), volume, volume, unmasked, np.ones(9), np.ones(9))
    assert exports.resolutions(maps, BOX, PIXEL_SIZE) == (BOX * PIXEL_SIZE / 5,) * 2
    assert "where this run ended its maps" in exports.limit_of_pixels(maps, BOX, PIXEL_SIZE)


def test_marked_maps_claim_no_resolution(
    written: tuple[Small, Maps, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even in pictures: what they would say is looked at."""
    from mpipar.views import plots

    drawn: dict[str, Any] = {}
    made, maps, _ = written
    start = alarms.StartingModel(made.inputs.model, 30.0)
    marked = dataclasses.replace(maps, mark="NOTHING")
    found = alarms.look(made.data, made.state, marked, [], start, finished=True)
    assert found.evidence.directions is not None
    assert found.evidence.directions.best < 30.0, "else there is nothing to keep from being said"
    path = tmp_path / "marked"
    with Project.create(path, settings={}, kind="refine") as project:
        monkeypatch.setattr(exports, "draw_quality", lambda file, quality: file.touch())
        monkeypatch.setattr(
            plots, "picture", lambda file, *w, **t: (file.touch(), drawn.update(map=(w, t)))
        )
        monkeypatch.setattr(
            plots,
            "orientation_picture",
            lambda file, *w, **t: (file.touch(), drawn.update(views=(w, t))),
        )
        exports.write_all(project, made.inputs, made.settings, made.data, made.state, found)
    words, title = drawn["map"]
    assert words[-1] == 0.0, "no resolution is drawn on the curve"
    assert "NOTHING" in title["title"]
    words, title = drawn["views"]
    assert words[2].best == 30.0
    assert title["title"] == "NOTHING"
    with mrcfile.open(path / "map.mrc") as file:
        assert list(file.get_labels()) == ["NOTHING"]
    assert "resolution" not in exports.fsc_table(marked, BOX, PIXEL_SIZE)
