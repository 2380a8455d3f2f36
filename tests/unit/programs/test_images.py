"""Particle images come in the order asked for, and unusable ones are named."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpipar.errors import InputError, MissingInputError
from mpipar.formats.star import read_particles
from mpipar.programs import images as images_module
from mpipar.programs.images import StackSource, open_stacks
from tests.support.blocks import (
    noise_images,
    optics_columns,
    particle_columns,
    write_mrc,
    write_star,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def three_stacks(folder: Path, box: int = 6) -> NDArray[np.float32]:
    """Write particles.star whose 12 particles lie mixed in three stacks; their images."""
    names = [f"{i // 3 + 1}@{'abc'[i % 3]}.mrcs" for i in range(12)]
    tables = {"optics": optics_columns(), "particles": particle_columns(12, rlnImageName=names)}
    write_star(folder / "particles.star", tables)
    images = noise_images(12, box)
    for stack in range(3):
        write_mrc(folder / f"{'abc'[stack]}.mrcs", images[stack::3])
    return images


def source_of(folder: Path, **changes: Any) -> StackSource:
    particles = dataclasses.replace(read_particles(folder / "particles.star"), **changes)
    return StackSource(particles, open_stacks(particles))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(indices=st.lists(st.integers(0, 11), min_size=1, max_size=20))
def test_a_block_holds_its_particles_in_order(tmp_path: Path, indices: list[int]) -> None:
    images = three_stacks(tmp_path)
    source = source_of(tmp_path).divided([np.array([3, 1]), np.array(indices)])
    block = source.read(1)
    source.close()
    assert list(block) == ["images"]
    assert block["images"].dtype == np.float32
    np.testing.assert_array_equal(block["images"], images[indices])


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = three_stacks(tmp_path)
    monkeypatch.setattr(images_module, "MOST_OPEN_FILES", 2)
    assert images_module.most_open_files() == 2
    source = source_of(tmp_path)
    closed: list[str] = []
    for stack in source.stacks:

        def close(name: str = stack.path.name, really: Callable[[], None] = stack.close) -> None:
            closed.append(name)
            really()

        monkeypatch.setattr(stack, "close", close)
    for index in (0, 1, 0, 2, 1):
        np.testing.assert_array_equal(source.images(np.array([index])), images[[index]])
    assert closed == ["b.mrcs", "a.mrcs"]
    source.close()
    assert sorted(closed[2:]) == ["b.mrcs", "c.mrcs"]


@pytest.mark.parametrize(("allowed", "used"), [(1024, 256), (2, 1), (-1, 8192), (1 << 20, 8192)])
def test_open_files_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch, allowed: int, used: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (allowed, allowed))
    assert images_module.most_open_files() == used


def test_an_odd_box_loses_its_last_row_and_column(tmp_path: Path) -> None:
    images = three_stacks(tmp_path, box=7)
    source = source_of(tmp_path)
    assert source.box == 6
    np.testing.assert_array_equal(source.images(np.array([4])), images[4:5, :6, :6])
    source.close()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.nan, "has pixels that are NaN or infinite"),
        (-np.inf, "has pixels that are NaN or infinite"),
        (7.0, "has the same value in all pixels"),
    ],
)
def test_an_unusable_image_is_named(tmp_path: Path, pixels: float, message: str) -> None:
    images = three_stacks(tmp_path)[1::3].copy()
    if np.isfinite(pixels):
        images[2] = pixels
    else:
        images[2, 3, 4] = pixels
    path = write_mrc(tmp_path / "b.mrcs", images)
    source = source_of(tmp_path).divided([np.arange(7), np.arange(6, 9)])
    source.read(0)
    with pytest.raises(InputError, match=f"particle 8 of .* {message}: image 3 of {path};"):
        source.note(source.read(1).findings)
    with pytest.raises(InputError, match=f"particle 8 {message}; it was sound when"):
        source.read(1)["images"]
    with pytest.raises(InputError, match="particle 8"):
        source.check_sample()
    source.close()


@pytest.mark.parametrize("factor", [1e-25, 1e18, 1e30, 1e37])
def test_images_whose_squares_are_no_numbers_are_named(tmp_path: Path, factor: float) -> None:
    images = three_stacks(tmp_path)[1::3] * np.float32(factor)
    path = write_mrc(tmp_path / "b.mrcs", images)
    message = rf"particle 2 of .* has grey values up to [0-9.e+-]+, .*: image 1 of {path}"
    with pytest.raises(InputError, match=message):
        source_of(tmp_path).check_sample()


def test_the_sample_is_short_and_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_stacks(tmp_path)
    monkeypatch.setattr(images_module, "SAMPLE_SIZE", 4)
    source = source_of(tmp_path)
    looked: list[list[int]] = []
    monkeypatch.setattr(source, "images", lambda indices: looked.append(indices.tolist()))
    source.check_sample()
    assert looked == [[0, 3, 7, 11]]


def test_a_truncated_stack_is_named_with_its_first_particle(tmp_path: Path) -> None:
    three_stacks(tmp_path)
    path = tmp_path / "b.mrcs"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"particle 2 of .*star: .*b\.mrcs is truncated.* 3 whole"):
        source_of(tmp_path)


def test_a_stack_that_went_away_is_a_missing_input(tmp_path: Path) -> None:
    three_stacks(tmp_path)
    particles = read_particles(tmp_path / "particles.star")
    (tmp_path / "c.mrcs").unlink()
    with pytest.raises(MissingInputError, match=r"particle 3 of .*c\.mrcs does not exist"):
        open_stacks(particles)


def test_stacks_of_different_boxes_are_named(tmp_path: Path) -> None:
    three_stacks(tmp_path)
    write_mrc(tmp_path / "c.mrcs", noise_images(4, 8))
    with pytest.raises(InputError, match=r"a\.mrcs has 6 pixels .particle 1.*c\.mrcs has 8 .*3\)"):
        source_of(tmp_path)


def test_a_name_without_a_number_must_be_of_one_image(tmp_path: Path) -> None:
    write_mrc(tmp_path / "one.mrc", noise_images(1, 6))
    write_mrc(tmp_path / "many.mrcs", noise_images(3, 6))
    columns = particle_columns(2, rlnImageName=["one.mrc", "one.mrc"])
    write_star(tmp_path / "particles.star", {"optics": optics_columns(), "particles": columns})
    source_of(tmp_path).images(np.arange(2))
    columns["rlnImageName"] = ["one.mrc", "many.mrcs"]
    write_star(tmp_path / "particles.star", {"optics": optics_columns(), "particles": columns})
    with pytest.raises(InputError, match=r"particle 2 of .* which of its 3 images .*000001@many"):
        source_of(tmp_path)


def test_a_mark_of_the_list_makes_a_cube_a_stack(tmp_path: Path) -> None:
    images = noise_images(6, 6)
    write_mrc(tmp_path / "cube.mrc", images, volume=True)
    names = ["000002@cube.mrc:mrcs", "000001@cube.mrc:mrcs"]
    columns = particle_columns(2, rlnImageName=names)
    write_star(tmp_path / "particles.star", {"optics": optics_columns(), "particles": columns})
    np.testing.assert_array_equal(source_of(tmp_path).images(np.arange(2)), images[[1, 0]])


def test_an_image_beyond_its_stack_is_named(tmp_path: Path) -> None:
    three_stacks(tmp_path)
    write_mrc(tmp_path / "c.mrcs", noise_images(3, 6))
    with pytest.raises(InputError, match=r"particle 12 of .* image 4 of .*c\.mrcs.* only 3 images"):
        source_of(tmp_path)
