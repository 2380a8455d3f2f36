"""Half sets, blocks, and what the first look at all images settles."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpipar.cryoem.fourier import components, image_components
from mpipar.errors import InputError
from mpipar.formats.star import read_particles
from mpipar.programs import dataset, iteration
from mpipar.programs.block_rows import ImageGeometry
from mpipar.programs.stages import MeasureStage
from mpipar.runtime.stage import Task
from tests.support.blocks import write_particle_input
from tests.support.small_refinement import Small, small

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet


@pytest.fixture
def particles(tmp_path: Path) -> ParticleSet:
    return read_particles(write_particle_input(tmp_path, count=101))


@pytest.fixture
def made(tmp_path: Path) -> Small:
    return small(tmp_path)


HALVES = arrays.arrays(np.int8, st.integers(2, 9000), elements=st.integers(1, 2)).filter(
    lambda half: len(np.unique(half)) == 2
)


@given(half=HALVES)
def test_blocks_hold_each_particle_once_and_one_half_set_each(half: NDArray[np.int8]) -> None:
    blocks = dataset.blocks_of(half)
    assert np.array_equal(np.sort(np.concatenate(blocks)), np.arange(len(half)))
    for rows in blocks:
        assert np.array_equal(rows, np.sort(rows)), "read from disk in order"
        assert len(set(half[rows])) == 1
        assert 1 <= len(rows) <= dataset.LARGEST_BLOCK
    sizes = [len(rows) for rows in blocks if half[rows[0]] == 1]
    assert max(sizes) - min(sizes) <= 1
    again = dataset.blocks_of(half.copy())
    assert all(np.array_equal(a, b) for a, b in zip(blocks, again, strict=True))


def test_there_are_blocks_enough_for_many_ranks() -> None:
    half = np.resize(np.array([1, 2], np.int8), 10_000)
    assert len(dataset.blocks_of(half)) >= dataset.BLOCKS_WANTED


def test_half_sets_are_those_of_the_list(particles: ParticleSet) -> None:
    given_ = np.resize(np.array([1, 1, 2], np.int8), particles.count)
    listed = dataclasses.replace(particles, half=given_)
    for seed in (0, 1):
        assert np.array_equal(dataset.half_sets(listed, seed), given_)


def test_half_sets_drawn_are_balanced_and_follow_the_seed(particles: ParticleSet) -> None:
    drawn = [dataset.half_sets(particles, seed) for seed in (0, 0, 1)]
    assert all(abs(int((half == 1).sum()) - int((half == 2).sum())) == 1 for half in drawn)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], np.arange(particles.count) % 2 + 1), "shuffled"


def test_a_list_that_gives_some_half_sets_only_is_drawn_anew(particles: ParticleSet) -> None:
    some = np.zeros(particles.count, np.int8)
    some[:3] = 1
    half = dataset.half_sets(dataclasses.replace(particles, half=some), 0)
    assert set(half) == {1, 2}


def test_copies_of_an_image_are_in_one_half_set(tmp_path: Path) -> None:
    star = write_particle_input(tmp_path, count=20)
    (tmp_path / "link.mrcs").symlink_to("particles.mrcs")
    (tmp_path / "hard.mrcs").hardlink_to(tmp_path / "particles.mrcs")
    text = star.read_text()
    rows = [line for line in text.splitlines() if "@" in line]
    more = [row.replace("particles.mrcs", name) for name in LINKS for row in rows]
    star.write_text("\n".join([text.rstrip(), *more, ""]))
    listed = read_particles(star)
    assert listed.count == 60
    for half in (listed.half, np.resize(np.array([1, 2, 2], np.int8), 60)):
        found = dataset.half_sets(dataclasses.replace(listed, half=half), 0)
        assert np.array_equal(found, np.tile(found[:20], 3))
        assert set(found) == {1, 2}


LINKS = ("link.mrcs", "hard.mrcs")


def looked_at(
    images: NDArray[np.float32], half: NDArray[np.int8], radius: float = 5.0
) -> tuple[dataset.ImageConstants, NDArray[np.float64]]:
    """What `measure` makes of a first look at these images."""
    blocks = dataset.blocks_of(half)
    stage = MeasureStage(ImageGeometry(images.shape[-1], 2.0, radius))
    looks = [
        stage.run(Task(n, n, None), {"images": images[rows]}, None) for n, rows in enumerate(blocks)
    ]
    return dataset.measure(images.shape[-1], half, blocks, looks)


def white(count: int, box: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, box, box)).astype(np.float32)


HALF = np.resize(np.array([1, 2], np.int8), 40)


def test_normalised_images_are_left_alone() -> None:
    constants, noise = looked_at(white(40, 16), HALF)
    assert not constants.normalised
    assert np.array_equal(constants.offset, np.zeros(40))
    assert np.array_equal(constants.gain, np.ones(40))
    assert noise.shape == (2, 9)
    # power of white noise in the disc: number of its pixels times the variance
    assert 0.5 * np.pi * 25 < np.median(noise) < 2 * np.pi * 10**2


@pytest.mark.parametrize(("scale", "mean"), [(40.0, 0.0), (1.0, 3.0), (1e-6, -7.0), (1e8, 1e9)])
def test_other_images_are_brought_to_mean_0_and_deviation_1(scale: float, mean: float) -> None:
    images = (white(40, 16) * scale + mean).astype(np.float32)
    constants, noise = looked_at(images, HALF)
    assert constants.normalised
    outside = np.hypot(*np.meshgrid(np.arange(16) - 8, np.arange(16) - 8)) > 5
    changed = (images - constants.offset[:, None, None]) * constants.gain[:, None, None]
    pixels = changed[:, outside]
    tolerance = 1e-4 + 1e-6 * abs(mean) / scale
    assert np.abs(pixels.mean(axis=1)).max() < tolerance
    assert np.abs(pixels.std(axis=1) - 1).max() < tolerance
    assert np.isfinite(noise).all()


@pytest.mark.parametrize(("scale", "mean"), [(1000.0, 0.0), (0.01, 0.0), (1.0, 50.0)])
def test_one_image_of_another_grey_scale_is_brought_to_the_others(
    scale: float, mean: float
) -> None:
    images = white(40, 16)
    expected, expected_noise = looked_at(images, HALF)
    images[7] = images[7] * scale + mean
    constants, noise = looked_at(images, HALF)
    assert not constants.normalised
    assert np.flatnonzero(constants.gain != 1).tolist() == [7]
    assert constants.gain[7] * scale == pytest.approx(1.0, rel=0.1)
    assert constants.offset[7] == pytest.approx(mean, abs=0.3 * scale)
    np.testing.assert_allclose(noise, expected_noise, rtol=0.1)
    np.testing.assert_allclose(constants.largest[1:], expected.largest[1:], rtol=0.2)


def test_an_image_with_a_flat_background_is_not_magnified() -> None:
    images = white(40, 16) * 7
    masked = images.copy()
    rim = np.hypot(*np.meshgrid(np.arange(16) - 8, np.arange(16) - 8)) > 5
    masked[3][rim] = 0.0
    expected, found = looked_at(images, HALF)[0], looked_at(masked, HALF)[0]
    assert found.gain[3] == pytest.approx(np.median(expected.gain), rel=0.1)
    assert np.array_equal(np.delete(found.gain, 3), np.delete(expected.gain, 3))


def test_masked_images_are_refused() -> None:
    images = white(40, 16)
    images[:, np.hypot(*np.meshgrid(np.arange(16) - 8, np.arange(16) - 8)) > 5] = 0.0
    with pytest.raises(InputError, match="without a mask"):
        looked_at(images, HALF)


@pytest.mark.parametrize(("scale", "mean"), [(1.0, 0.0), (1.0, 0.2), (3.0, 50.0)])
def test_no_amplitude_exceeds_its_bound(scale: float, mean: float) -> None:
    """Fixed-point sums rely on it: of the images as the stages use them."""
    images = (white(40, 16, seed=1) * scale + mean).astype(np.float32)
    images[7, 3, 3] += 1000 * scale  # an outlier
    constants, _ = looked_at(images, HALF)
    wanted = components(16, 8)
    used = (images - constants.offset[:, None, None].astype(np.float32)) * constants.gain[
        :, None, None
    ].astype(np.float32)
    amplitudes = np.abs(image_components(used, wanted)).max(axis=0)
    largest = constants.largest[wanted.shell]
    assert (amplitudes <= largest * (1 + 1e-5)).all()
    assert (np.maximum.reduceat(amplitudes, wanted.starts)[1:] >= 0.9 * constants.largest[1:]).all()


def test_geometry_and_low_pass_follow_the_model_unless_given(made: Small) -> None:
    inputs, settings = made.inputs, made.settings
    cutoff = dataset.lowpass_of(inputs, settings, 1)
    geometry = dataset.geometry_of(inputs, settings, inputs.model)
    # a Gaussian of 5 A falls to a tenth at 10.7 A
    assert 16 < 2 * geometry.radius * geometry.pixel_size < 32
    assert 2 * inputs.pixel_size < cutoff <= 60
    given_ = dataclasses.replace(settings, lowpass=17.0, diameter=12.0)
    sharp = inputs.model + np.random.default_rng(0).normal(scale=0.01, size=inputs.model.shape)
    detailed = dataclasses.replace(inputs, model=sharp.astype(np.float32))
    assert dataset.lowpass_of(detailed, settings, 60) < 0.6 * cutoff
    assert dataset.lowpass_of(detailed, settings, 1) < cutoff, "the model itself has no more detail"
    assert dataset.lowpass_of(inputs, given_, 60) == 17.0
    assert dataset.geometry_of(inputs, given_, inputs.model).radius == pytest.approx(3.0)
    wide = dataclasses.replace(settings, diameter=32.0)
    assert dataset.geometry_of(inputs, wide, inputs.model).radius == 6.0, "leaves a background"


def test_target_resolution_limits_the_shells(made: Small) -> None:
    settings = dataclasses.replace(made.settings, targetres=8.0)
    constants = dataset.ImageConstants(
        made.data.half, made.data.offset, made.data.gain, made.data.largest, False
    )
    start = dataset.Start(made.inputs.model, 12.0, made.data.geometry)
    data = dataset.make_dataset(made.inputs, settings, start, made.data.symmetry, constants)
    assert data.sampling.finest_shell == 4
    assert made.data.sampling.finest_shell == 8


def test_tasks_carry_what_their_particles_need(made: Small) -> None:
    ctf = dataset.ctf_of(made.inputs.particles)
    tasks = iteration.align_tasks(made.data, ctf, made.state, 6)
    assert [task.id for task in tasks] == [task.block for task in tasks] == [*range(len(tasks))]
    for task, rows in zip(tasks, made.data.blocks, strict=True):
        assert task.payload.half == made.data.half[rows[0]]
        assert np.array_equal(task.payload.ctf.defocus_u, ctf.defocus_u[rows])
        assert np.array_equal(task.payload.gain, made.data.gain[rows])
        assert np.array_equal(task.payload.poses.shifts, made.state.poses.shifts[rows])


def test_known_origins_are_where_the_search_begins(tmp_path: Path) -> None:
    count = 40
    made = small(
        tmp_path,
        rlnOriginXAngst=[2.0 * i / count for i in range(count)],
        rlnOriginYAngst=[-1.0] * count,
    )
    assert made.state.poses.shifts[:, 0] == pytest.approx(-np.arange(count) / count)
    assert made.state.poses.shifts[:, 1] == pytest.approx(np.full(count, 0.5))
    assert (made.state.poses.score == -np.inf).all(), "but no pose is known"


@pytest.mark.parametrize(
    ("scale", "b_factor", "expected"),
    [
        (1.0, 0.0, 1.0),
        (0.3, 100.0, 1.0),
        (2.0, 50.0, 2.0),
        (-2.0, 0.0, 2.0),
        (1.0, -16.0, np.e**0.25),
    ],
)
def test_bound_on_contrast(made: Small, scale: float, b_factor: float, expected: float) -> None:
    ctf = dataset.ctf_of(made.inputs.particles)
    count = made.inputs.particles.count
    changed = dataclasses.replace(
        ctf, scale=np.full(count, scale), b_factor=np.full(count, b_factor)
    )
    assert dataset.largest_contrast(changed, 2.0) == pytest.approx(expected)
