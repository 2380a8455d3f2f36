"""Bad input is refused before anything is computed, odd input adapted and said aloud."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.cryoem.masks import soft_sphere
from mpipar.errors import InputError, MissingInputError, UsageError
from mpipar.programs.inputs import RefineInputs, read_inputs
from mpipar.programs.volumes import centre_notes
from mpipar.settings import RefineSettings
from tests.support.blocks import (
    blob,
    noise_images,
    optics_columns,
    particle_columns,
    write_mrc,
    write_particle_input,
    write_star,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read(folder: Path, **changes: Any) -> RefineInputs:
    files = {"input": folder / "particles.star", "model": folder / "init.mrc"}
    return read_inputs(RefineSettings(**{**files, **changes}))


def write_model(folder: Path, box: int, pixel_size: float, **fields: Any) -> Path:
    """A blob 8 A wide, 6 A along x from the centre."""
    model = blob(box, pixel_size, (0, 0, 6), 4.0)
    return write_mrc(folder / "init.mrc", model, pixel_size=pixel_size, volume=True, **fields)


def test_sound_input_passes_without_a_word(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    before = sorted(tmp_path.iterdir())
    inputs = read(tmp_path)
    assert (inputs.pixel_size, inputs.box, inputs.mask, inputs.notes) == (2.0, 16, None, ())
    assert inputs.particles.count == 8
    np.testing.assert_array_equal(inputs.model, blob(16, 2.0, (0, 0, 0), 5.0))
    np.testing.assert_array_equal(inputs.stacks.images(np.arange(8)), noise_images(8, 16))
    inputs.stacks.close()
    assert sorted(tmp_path.iterdir()) == before, "reading writes nothing"


def test_particles_and_model_are_needed(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    for missing in ("input", "model"):
        with pytest.raises(UsageError, match=r"--input particles\.star --model init\.mrc"):
            read(tmp_path, resume=True, **{missing: None})


@pytest.mark.parametrize(("box", "pixel_size"), [(12, 2.0), (24, 2.0), (32, 1.0), (20, 2.4)])
def test_a_model_of_another_grid_is_resampled_and_said_aloud(
    tmp_path: Path, box: int, pixel_size: float
) -> None:
    write_particle_input(tmp_path)
    write_model(tmp_path, box, pixel_size)
    inputs = read(tmp_path)
    (note,) = inputs.notes
    assert f"({box} pixels of {pixel_size:g} A, {box * pixel_size:g} A wide) is brought" in note
    assert "the particles' 16 pixels of 2 A (32 A)" in note
    inner = np.ix_(*[range(3, 13)] * 3)
    np.testing.assert_allclose(inputs.model[inner], blob(16, 2.0, (0, 0, 6), 4.0)[inner], atol=0.03)


@pytest.mark.parametrize(("cell", "said"), [(0, "no pixel size"), (16, "the pixel size 1 A")])
def test_a_model_without_pixel_size_has_the_particles_own(
    tmp_path: Path, cell: float, said: str
) -> None:
    write_particle_input(tmp_path)
    write_model(tmp_path, 16, 2.0, cella=(cell, cell, cell))
    inputs = read(tmp_path)
    (note,) = inputs.notes
    assert f"has {said}" in note
    assert "particles' 2 A is assumed" in note
    np.testing.assert_array_equal(inputs.model, blob(16, 2.0, (0, 0, 6), 4.0))


def test_an_odd_box_is_made_even_and_said_aloud(tmp_path: Path) -> None:
    write_particle_input(tmp_path, box=17)
    write_mrc(tmp_path / "mask.mrc", np.ones((17, 17, 17), np.float32) * 0.5, volume=True)
    mask = np.zeros((17, 17, 17), np.float32)
    mask[4:13, 4:13, 4:13] = 1
    write_mrc(tmp_path / "mask.mrc", mask, volume=True)
    inputs = read(tmp_path, mask=tmp_path / "mask.mrc")
    assert inputs.box == 16
    assert inputs.model.shape == (16, 16, 16)
    assert inputs.model[8, 8, 8] == inputs.model.max()
    assert inputs.mask is not None
    np.testing.assert_array_equal(inputs.mask, mask[:16, :16, :16])
    (note,) = inputs.notes
    assert note.startswith("the box of 17 pixels is odd")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (np.zeros((16, 16, 16), np.float32), "is 0 everywhere; it holds no structure"),
        (np.full((16, 16, 16), np.nan, np.float32), "voxels that are NaN or infinite"),
        (np.ones((16, 16, 12), np.float32), "must be a cube"),
    ],
)
def test_an_unusable_model_is_refused(tmp_path: Path, model: Any, message: str) -> None:
    write_particle_input(tmp_path)
    write_mrc(tmp_path / "init.mrc", model, volume=True)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_a_model_that_is_not_there_is_a_missing_input(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    with pytest.raises(MissingInputError, match=r"other\.mrc does not exist"):
        read(tmp_path, model=tmp_path / "other.mrc")


def test_a_mask_of_another_scale_is_divided_and_said_aloud(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    mask = blob(16, 2.0, (0, 0, 0), 8.0)
    path = write_mrc(tmp_path / "mask.mrc", mask * 255, volume=True)
    inputs = read(tmp_path, mask=path)
    assert inputs.mask is not None
    np.testing.assert_allclose(inputs.mask, mask, rtol=1e-6)
    (note,) = inputs.notes
    assert "goes up to 255: it is divided by that" in note


@pytest.mark.parametrize(
    ("shape", "value", "pixel_size", "message"),
    [
        ((12, 12, 12), 1.0, 2.0, "has 12 pixels of 2 A, the particles 16 of 2 A"),
        ((16, 16, 16), 1.0, 1.5, "has 16 pixels of 1.5 A, the particles 16 of 2 A"),
        ((16, 16, 16), -1.0, 2.0, "values from -1 to 0; a mask goes from 0 to 1"),
        ((16, 16, 16), 0.0, 2.0, "is 0 everywhere"),
    ],
)
def test_an_unusable_mask_is_refused(
    tmp_path: Path, shape: tuple[int, ...], value: float, pixel_size: float, message: str
) -> None:
    write_particle_input(tmp_path)
    mask = np.zeros(shape, np.float32)
    mask[4:12, 4:12, 4:12] = value
    path = write_mrc(tmp_path / "mask.mrc", mask, pixel_size=pixel_size, volume=True)
    with pytest.raises(InputError, match=message):
        read(tmp_path, mask=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: 1 - mask, "it is inverted; give 1 minus that mask"),
        (lambda mask: np.roll(mask, (8, 8), (0, 1)), r"leaves 0\.\d% of the model's density"),
        (np.ones_like, "is 1 everywhere.*leave --mask out"),
        (lambda mask: np.where(mask > 0.5, np.float32(np.nan), mask), "NaN or infinite"),
    ],
)
def test_a_mask_that_takes_the_particle_away_is_refused(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    write_particle_input(tmp_path)
    mask = soft_sphere(16, 4.0, 2.0)
    path = write_mrc(tmp_path / "mask.mrc", change(mask), pixel_size=2.0, volume=True)
    with pytest.raises(InputError, match=message):
        read(tmp_path, mask=path)


def test_a_mask_of_a_small_part_is_noted(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    mask = soft_sphere(16, 1.0, 2.0)
    path = write_mrc(tmp_path / "mask.mrc", mask, pixel_size=2.0, volume=True)
    (note,) = read(tmp_path, mask=path).notes
    assert "of the model's density: is it the mask of this particle?" in note


@pytest.mark.parametrize("scale", [1e-30, 0.2])
def test_a_faint_mask_is_brought_to_one(tmp_path: Path, scale: float) -> None:
    write_particle_input(tmp_path)
    mask = soft_sphere(16, 5.0, 2.0)
    path = write_mrc(tmp_path / "mask.mrc", mask * np.float32(scale), pixel_size=2.0, volume=True)
    inputs = read(tmp_path, mask=path)
    assert inputs.mask is not None
    np.testing.assert_allclose(inputs.mask, mask, atol=1e-6)
    (note,) = inputs.notes
    assert "it is divided by that" in note


@pytest.mark.parametrize("pixel_size", [20.0, 0.2, 2000.0])
def test_a_model_of_another_scale_is_refused(tmp_path: Path, pixel_size: float) -> None:
    write_particle_input(tmp_path)
    write_model(tmp_path, 16, pixel_size)
    with pytest.raises(InputError, match="correct the model's header or the particle list"):
        read(tmp_path)


@pytest.mark.parametrize("scale", [3e38, -3e38, 1e-38])
def test_a_model_at_the_ends_of_float32_keeps_its_sign(tmp_path: Path, scale: float) -> None:
    write_particle_input(tmp_path)
    model = blob(16, 2.0, (0, 0, 0), 4.0)
    spoilt = (model / model.max() * scale).astype(np.float32)
    write_mrc(tmp_path / "init.mrc", spoilt, pixel_size=2.0, volume=True)
    inputs = read(tmp_path)
    np.testing.assert_allclose(inputs.model, model / model.max(), atol=1e-5)
    assert any("inverted" in note for note in inputs.notes) == (scale < 0)


def test_a_model_beside_the_centre_is_noted() -> None:
    centred = blob(32, 2.0, (0, 0, 0), 5.0)
    assert centre_notes(centred, 2.0) == []
    (note,) = centre_notes(blob(32, 2.0, (0, 0, 10), 5.0), 2.0)
    assert note.startswith("the model's mass lies 10 A off the centre of its box")
    (note,) = centre_notes(np.roll(centred, 16, (0, 1, 2)), 2.0)
    assert "in the corners of its box" in note


def test_too_few_particles_are_refused_with_advice(tmp_path: Path) -> None:
    write_particle_input(tmp_path, count=3)
    with pytest.raises(InputError, match="half sets of 1 and 2 particles; each needs at least 2"):
        read(tmp_path)


def test_lopsided_half_sets_are_refused(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    columns = particle_columns(8, rlnRandomSubset=[1] * 7 + [2])
    write_star(tmp_path / "particles.star", {"optics": optics_columns(), "particles": columns})
    with pytest.raises(InputError, match="half sets of 7 and 1 particles"):
        read(tmp_path)


def test_a_box_that_the_star_file_contradicts_is_refused(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    tables = {"optics": optics_columns(rlnImageSize=[64]), "particles": particle_columns(8)}
    write_star(tmp_path / "particles.star", tables)
    with pytest.raises(InputError, match=r"says rlnImageSize = 64, but the images in .* are 16"):
        read(tmp_path)


def test_a_stack_of_another_pixel_size_is_said_aloud(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    write_mrc(tmp_path / "particles.mrcs", noise_images(8, 16), pixel_size=1.7)
    (note,) = read(tmp_path).notes
    assert note.endswith("has a pixel size of 1.7 A in its header; the particles' 2 A is used")


def test_a_diameter_beyond_the_box_is_refused(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    with pytest.raises(
        InputError, match=r"--diameter 33 A is larger than the images, .* 32 A wide"
    ):
        read(tmp_path, diameter=33)


def test_a_bad_image_shows_at_once(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    images = noise_images(8, 16)
    images[5, 3, 3] = np.nan
    write_mrc(tmp_path / "particles.mrcs", images)
    with pytest.raises(InputError, match=r"particle 6 of .* NaN or infinite: image 6 of"):
        read(tmp_path)


def test_what_the_particles_lack_is_among_the_notes(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    columns = particle_columns(8, rlnPhaseShift=())
    write_star(tmp_path / "particles.star", {"optics": optics_columns(), "particles": columns})
    own_size, usual, header, model = read(tmp_path, apix=2.5).notes
    assert own_size == "the pixel size 2.5 A of --apix is used; the file says 2 A"
    assert usual == "not in the file and taken as usual: rlnPhaseShift = 0 degrees"
    assert header.endswith("a pixel size of 2 A in its header; the particles' 2.5 A is used")
    assert model.endswith("is brought to the particles' 16 pixels of 2.5 A (40 A)")


@pytest.mark.parametrize("offset", [5.0, -1.5, 0.1])
def test_a_constant_added_to_the_model_is_taken_off(tmp_path: Path, offset: float) -> None:
    write_particle_input(tmp_path)
    write_mrc(tmp_path / "init.mrc", blob(12, 2.0, (0, 0, 0), 4.0) + offset, pixel_size=2.0)
    inputs = read(tmp_path)
    assert any("it is subtracted" in note for note in inputs.notes)
    expected = blob(16, 2.0, (0, 0, 0), 4.0)
    np.testing.assert_allclose(inputs.model, expected, atol=0.05, err_msg="the padding too")


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_a_dark_model_has_its_sign_turned(tmp_path: Path, offset: float) -> None:
    write_particle_input(tmp_path)
    dark = offset - blob(16, 2.0, (0, 0, 0), 4.0)
    write_mrc(tmp_path / "init.mrc", dark, pixel_size=2.0, volume=True)
    inputs = read(tmp_path)
    assert any("contrast of the model" in note and "inverted" in note for note in inputs.notes)
    np.testing.assert_allclose(inputs.model, blob(16, 2.0, (0, 0, 0), 4.0), atol=0.01)


def test_a_model_beyond_the_squares_of_float32_is_brought_to_one(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    model = blob(16, 2.0, (0, 0, 0), 4.0)
    write_mrc(tmp_path / "init.mrc", model * np.float32(1e35), pixel_size=2.0, volume=True)
    np.testing.assert_allclose(read(tmp_path).model, model / model.max(), atol=1e-6)


@pytest.mark.parametrize("what", ["model", "mask"])
def test_a_hot_voxel_is_mended_and_said(tmp_path: Path, what: str) -> None:
    write_particle_input(tmp_path)
    data = blob(16, 2.0, (0, 0, 0), 5.0)
    hot = data.copy()
    hot[8, 8, 12] = 1e4
    path = write_mrc(tmp_path / "hot.mrc", hot, pixel_size=2.0, volume=True)
    inputs = read(tmp_path, **{what: path})
    (note,) = inputs.notes
    assert f"the {what} {path} has 1 voxel far beyond all others (up to 10000)" in note
    np.testing.assert_allclose(getattr(inputs, what), data, atol=0.1)


@pytest.mark.parametrize("what", ["model", "mask"])
def test_a_stack_is_no_volume(tmp_path: Path, what: str) -> None:
    write_particle_input(tmp_path)
    path = write_mrc(tmp_path / "classes.mrcs", blob(16, 2.0, (0, 0, 0), 5.0), pixel_size=2.0)
    with pytest.raises(InputError, match=rf"the {what} .*suffix of a stack of images"):
        read(tmp_path, **{what: path})


@pytest.mark.parametrize("box", [1, 2, 4, 7])
def test_a_tiny_box_is_refused(tmp_path: Path, box: int) -> None:
    write_particle_input(tmp_path, box=16)
    write_mrc(tmp_path / "particles.mrcs", noise_images(8, box))
    with pytest.raises(InputError, match=f"are {box} pixels wide; at least 8 are needed"):
        read(tmp_path)


def test_another_stack_of_the_same_name_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        write_particle_input(folder)
    assert read(new).notes == ()
    monkeypatch.chdir(old)
    (note,) = read(new).notes
    taken, other = old / "particles.mrcs", new / "particles.mrcs"
    assert f"the images are read from {taken}, not from {other}" in note
    taken.unlink()
    taken.symlink_to(other)
    assert read(new).notes == (), "one file"


@pytest.mark.parametrize("size", [0.01, 1000.0])
def test_a_pixel_size_that_cannot_be_is_a_wrong_flag(tmp_path: Path, size: float) -> None:
    write_particle_input(tmp_path)
    with pytest.raises(UsageError, match=rf"--apix {size:g}: must lie between 0\.05 and 200 A"):
        read(tmp_path, apix=size)


def test_an_origin_along_one_axis_only_is_said_to_be_ignored(tmp_path: Path) -> None:
    write_particle_input(tmp_path)
    columns = particle_columns(8, rlnOriginYAngst=[1.0] * 8)
    write_star(tmp_path / "particles.star", {"optics": optics_columns(), "particles": columns})
    inputs = read(tmp_path)
    assert inputs.particles.origins is None
    assert "rlnOriginYAngst is ignored" in inputs.notes[0]
