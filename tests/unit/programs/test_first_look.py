"""The first look at all images: copies, hot pixels, other grey scales, contrast."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.cryoem.masks import soft_sphere
from mpipar.errors import InputError
from mpipar.programs import dataset
from mpipar.programs.dataset import FOLDS
from mpipar.programs.first_look import FirstLook, look_at_all
from mpipar.programs.inputs import read_inputs
from mpipar.settings import RefineSettings
from tests.support import refine_input
from tests.support.blocks import write_mrc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.programs.images import StackSource
    from mpipar.programs.look_stage import ImageLook, LookStage
    from mpipar.runtime.stage import Task

COUNT = 60


def measure(source: StackSource, stage: LookStage, tasks: list[Task]) -> Sequence[ImageLook]:
    """Run the stage here, block by block."""
    return [stage.run(task, source.read(task.id), None) for task in tasks]


def look(folder: Path, images: NDArray[np.float32], **options: Any) -> FirstLook:
    """The first look at the demo's particle list with these images."""
    made = refine_input.make_input(folder, count=len(images))
    write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)
    return look_at(made, **options)


def look_at(made: refine_input.Input, **options: Any) -> FirstLook:
    """The first look at this input."""
    settings = RefineSettings(input=made.star, model=made.model, **options)
    inputs = read_inputs(settings)
    return look_at_all(inputs, dataset.start_of(inputs, settings, 1), settings, measure)


def test_sound_images_are_used_as_they_are(tmp_path: Path) -> None:
    found = look(tmp_path, refine_input.demo_images(COUNT))
    assert found.notes == ()
    assert np.array_equal(found.constants.gain, np.ones(COUNT))
    assert np.array_equal(found.constants.offset, np.zeros(COUNT))


@pytest.mark.parametrize(("scale", "offset"), [(-1.0, 0.0), (-30.0, 500.0)])
def test_dark_particles_have_their_sign_turned(tmp_path: Path, scale: float, offset: float) -> None:
    images = refine_input.demo_images(COUNT)
    white = look(tmp_path / "white", images)
    changed = images * np.float32(scale) + np.float32(offset)
    dark = look(tmp_path / "dark", changed)
    assert "the contrast of the images is inverted" in dark.notes[-1]
    offsets, gains = dark.constants.offset, dark.constants.gain
    used = (changed - offsets[:, None, None]) * gains[:, None, None]
    if dark.constants.normalised:
        correlation = np.corrcoef(used.ravel(), images.ravel())[0, 1]
        assert correlation > 0.99
    else:
        np.testing.assert_array_equal(used, images)
    assert (dark.constants.largest > 0).all()
    np.testing.assert_allclose(dark.spectra, white.spectra, rtol=0.2)


def test_images_without_a_particle_are_not_turned(tmp_path: Path) -> None:
    box = refine_input.BOX
    noise = np.random.default_rng(0).normal(size=(COUNT, box, box)).astype(np.float32)
    found = look(tmp_path, noise)
    (note,) = found.notes
    assert note.startswith("it does not show whether the particles are bright or dark")
    assert np.array_equal(found.constants.gain, np.ones(COUNT))


@pytest.mark.parametrize(("contrast", "scale", "gain"), [("as-is", -1, 1), ("invert", 1, -1)])
def test_the_user_has_the_last_word_on_contrast(
    tmp_path: Path, contrast: str, scale: int, gain: int
) -> None:
    found = look(tmp_path, refine_input.demo_images(COUNT) * np.float32(scale), contrast=contrast)
    assert found.notes == ()
    assert np.array_equal(found.constants.gain, np.full(COUNT, gain))


@pytest.mark.parametrize("scale", [1, -1])
def test_images_are_not_turned_for_a_model_of_another_shape(tmp_path: Path, scale: int) -> None:
    box = refine_input.BOX
    made = refine_input.make_input(tmp_path, count=COUNT)
    images = refine_input.demo_images(COUNT) * np.float32(scale)
    write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)
    hollow = soft_sphere(box, 12, 2) - soft_sphere(box, 9, 2)
    write_mrc(made.model, hollow, pixel_size=refine_input.PIXEL_SIZE, volume=True)
    found = look_at(made)
    assert np.array_equal(found.constants.gain, np.ones(COUNT))
    if scale > 0:  # the hollow model has a negative product with solid particles
        (note,) = found.notes
        assert "their mean has not its shape" in note


def test_images_with_a_foreign_rim_are_mended(tmp_path: Path) -> None:
    images = refine_input.demo_images(COUNT)
    sound = look(tmp_path / "sound", images)
    inside = np.hypot(*(np.indices(images.shape[1:]) - 16)) < 15.5
    found = look(tmp_path / "filled", np.where(inside, images, np.float32(20.0)))
    note, *_ = found.notes
    assert note.endswith("in 60 particles (rows 1, 2, 3, 4, 5 and 55 more)")
    assert (found.constants.gain > 0).all()
    power = found.spectra / found.spectra.sum() * sound.spectra.sum()
    np.testing.assert_allclose(power[:, 1:8], sound.spectra[:, 1:8], rtol=0.3)


def test_half_sets_of_quite_other_sizes_are_noted(tmp_path: Path) -> None:
    made = refine_input.make_input(tmp_path, count=COUNT)
    text = re.sub(r"(?m)^(\d+@.*) \d$", r"\1 1", made.star.read_text())
    made.star.write_text(re.sub(r"(?m)^(00000[1-5]@.*) \d$", r"\1 2", text))
    (note,) = look_at(made).notes
    assert note.startswith("the half sets have 55 and 5 particles")


def test_one_of_two_sessions_is_turned(tmp_path: Path) -> None:
    made = refine_input.make_input(tmp_path, count=COUNT)
    images = refine_input.demo_images(COUNT)
    dark = np.arange(COUNT) >= COUNT - 20
    write_mrc(made.stack, images, pixel_size=refine_input.PIXEL_SIZE)
    write_mrc(tmp_path / "later.mrcs", -images, pixel_size=refine_input.PIXEL_SIZE)
    text = made.star.read_text()
    for number in np.flatnonzero(dark) + 1:
        text = text.replace(f"{number:06d}@particles", f"{number:06d}@later")
    made.star.write_text(text)
    found = look_at(made)
    (note,) = found.notes
    assert "the contrast of the images is inverted in 20 of them (rows 41, 42" in note
    assert np.array_equal(found.constants.gain, np.where(dark, -1.0, 1.0))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_any_grey_scale_that_float32_holds_will_do(tmp_path: Path, scale: float) -> None:
    images = refine_input.demo_images(COUNT)
    found = look(tmp_path, images * np.float32(scale))
    (note,) = found.notes
    assert note.startswith("the images are not normalised")
    deviations = 1.0 / (found.constants.gain * scale)
    np.testing.assert_allclose(deviations, 1.0, atol=0.3)
    sound = look(tmp_path / "sound", images)
    np.testing.assert_allclose(found.spectra, sound.spectra, rtol=0.2)


def test_one_loud_image_is_named(tmp_path: Path) -> None:
    images = refine_input.demo_images(COUNT)
    images[7] *= 1000
    found = look(tmp_path, images)
    (note,) = found.notes
    assert "of quite another grey scale than the other images: particle 8;" in note


@pytest.mark.parametrize(("scale", "offset"), [(2.0, 0.0), (0.4, 0.0), (1.0, 1.0)])
def test_a_micrograph_of_another_grey_scale_is_brought_to_the_others(
    tmp_path: Path, scale: float, offset: float
) -> None:
    images = refine_input.demo_images(COUNT)
    images[:10] = images[:10] * np.float32(scale) + np.float32(offset)
    found = look(tmp_path, images)
    (note,) = found.notes
    assert "10 particles (rows 1, 2, 3, 4, 5 and 5 more)" in note
    assert np.array_equal(found.constants.gain[10:], np.ones(COUNT - 10))
    np.testing.assert_allclose(found.constants.gain[:10] * scale, 1.0, atol=0.3)


def test_a_hot_pixel_is_replaced_and_named(tmp_path: Path) -> None:
    images = refine_input.demo_images(COUNT)
    sound = look(tmp_path / "sound", images)
    images[7, 10, 10] = 1e4
    found = look(tmp_path / "hot", images)
    (note,) = found.notes
    assert note.endswith("are set to its median: 1 in particle 8")
    np.testing.assert_allclose(found.spectra, sound.spectra, rtol=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_images_with_the_same_pixels_come_into_one_half_set(tmp_path: Path, seed: int) -> None:
    images = refine_input.demo_images(COUNT)
    images[COUNT // 2 :] = images[: COUNT // 2]
    found = look(tmp_path, images, seed=seed)
    (note,) = found.notes
    assert "30 particles have the same pixels as an earlier one (rows 31, 32" in note
    half = found.constants.half
    assert np.array_equal(half[: COUNT // 2], half[COUNT // 2 :])
    assert set(half) == {1, 2}
    blocks = found.source.blocks
    assert np.array_equal(np.sort(np.concatenate(blocks)), np.arange(COUNT))
    assert all(len(set(half[rows])) == 1 for rows in blocks)
    again = measure_alone(found)
    np.testing.assert_array_equal(again, found.constants.largest)


@pytest.mark.parametrize("scale", [2.5, -1.0])
def test_copies_of_another_grey_scale_come_into_one_half_set(tmp_path: Path, scale: float) -> None:
    images = refine_input.demo_images(COUNT)
    images[COUNT // 2 :] = images[: COUNT // 2] * np.float32(scale) + 0.1
    found = look(tmp_path, images)
    copies = "30 particles are but for grey scale, sign or rounding copies of an earlier one"
    assert any(note.startswith(copies) for note in found.notes)
    half, fold = found.constants.half, found.constants.fold
    assert np.array_equal(half[: COUNT // 2], half[COUNT // 2 :])
    assert fold is not None
    assert np.array_equal(fold[: COUNT // 2], fold[COUNT // 2 :]), "copies show the same noise"
    assert len(np.unique(fold)) == FOLDS, "and no fold is empty"


def test_a_set_of_one_image_many_times_is_refused(tmp_path: Path) -> None:
    images = np.repeat(refine_input.demo_images(1), COUNT, axis=0)
    with pytest.raises(InputError, match=r"half sets of (60 and 0|0 and 60) particles are left"):
        look(tmp_path / "pixels", images)
    made = refine_input.make_input(tmp_path / "names", count=COUNT)
    made.star.write_text(re.sub(r"^\d+@", "000001@", made.star.read_text(), flags=re.MULTILINE))
    with pytest.raises(InputError, match="particles are left"):
        look_at(made)


def measure_alone(found: FirstLook) -> NDArray[np.float64]:
    """The largest amplitudes of images that are read in the blocks which were cut anew."""
    from mpipar.programs.block_rows import ImageGeometry
    from mpipar.programs.stages import MeasureStage

    images = found.source.images(np.arange(COUNT))
    half = found.constants.half
    blocks = dataset.blocks_of(half)
    stage = MeasureStage(ImageGeometry(images.shape[-1], refine_input.PIXEL_SIZE, 14.0))
    tasks = dataset.measure_tasks(blocks)
    looks = [stage.run(task, {"images": images[blocks[task.id]]}, None) for task in tasks]
    return dataset.measure(images.shape[-1], half, blocks, looks)[0].largest
