"""Integers whose header does not say if they have a sign are read as what they look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.formats.mrc import Stack, read_volume, stack_notes
from mpipar.formats.signs import unsigned_by_values
from tests.support.blocks import blob, write_mrc

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def drawn(kind: Any, middle: float, width: float, count: int = 4096) -> NDArray[Any]:
    """Rounded normal numbers within the bounds of an integer type."""
    bounds = np.iinfo(kind)
    values = np.random.default_rng(1).normal(middle, width, count)
    return np.clip(np.round(values), bounds.min, bounds.max).astype(kind)


def counts(kind: Any) -> NDArray[Any]:
    """Numbers that are most often small, a few of them in the upper half of an unsigned type."""
    scale = np.iinfo(kind).max / 8
    return np.clip(np.random.default_rng(2).exponential(scale, 4096), 0, 8 * scale).astype(kind)


@pytest.mark.parametrize(
    ("values", "unsigned"),
    [
        pytest.param(drawn("u1", 128, 20), True, id="bytes about 128"),
        pytest.param(drawn("u1", 128, 70), True, id="bytes cut off at both ends"),
        pytest.param(drawn("u1", 30, 40), True, id="bytes cut off at 0"),
        pytest.param(counts("u1"), True, id="counts"),
        pytest.param(np.array([0, 255, 255, 0], "u1"), True, id="a mask"),
        pytest.param(drawn("i1", 0, 20), False, id="signed bytes"),
        pytest.param(drawn("i1", 0, 70), False, id="signed bytes cut off at both ends"),
        pytest.param(drawn("i1", -40, 20), False, id="negative bytes"),
        pytest.param(np.round(250 * blob(16, 2, (0, 0, 0), 6)).astype("u1"), True, id="bright"),
        pytest.param(np.round(-120 * blob(16, 2, (0, 0, 0), 6)).astype("i1"), False, id="dark"),
        pytest.param(drawn("u2", 30000, 4000), True, id="integers about 30000"),
        pytest.param(counts("u2"), True, id="large counts"),
        pytest.param(drawn("i2", 0, 300), False, id="small signed integers"),
        pytest.param(drawn("i2", 100, 9000), False, id="large signed integers"),
        pytest.param(np.arange(256).astype("u1"), None, id="a ramp"),
        pytest.param(drawn("u1", 192, 8), None, id="none below 128"),
    ],
)
def test_values_tell_their_sign(values: NDArray[Any], unsigned: bool | None) -> None:
    found, note = unsigned_by_values(values.view(values.dtype.str.replace("i", "u")))
    assert found is unsigned
    assert {True: "as unsigned", False: "as signed ones", None: "nor do"}[unsigned] in note


def test_nothing_is_said_where_both_readings_are_the_same() -> None:
    assert unsigned_by_values(np.arange(128).astype("u1")) == (False, "")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_images_without_statistics_have_the_sign_of_their_values(
    tmp_path: Path, kind: str, order: Any
) -> None:
    middle = (int(np.iinfo(kind).max) + 1) // 2
    images = drawn(kind, middle, middle / 6, 12 * 16 * 16).reshape(12, 16, 16)
    signed = images.view(kind.replace("u", "i"))
    stack = Stack(write_mrc(tmp_path / "s.mrcs", signed, order=order))
    np.testing.assert_array_equal(stack.read(np.arange(12)), images.astype(np.float32))
    assert "as unsigned ones, which is what they look like" in stack_notes([stack])[0]


def test_a_doubt_about_the_sign_is_said_aloud(tmp_path: Path) -> None:
    ramp = np.arange(256).reshape(1, 16, 16).astype("u1").view("i1")
    stack = Stack(write_mrc(tmp_path / "s.mrcs", ramp))
    np.testing.assert_array_equal(stack.read(np.arange(1)), ramp.astype(np.float32))
    assert "read as signed, as the standard says" in stack_notes([stack])[0]


def test_a_volume_has_the_sign_of_its_values(tmp_path: Path) -> None:
    bytes_ = np.round(255 * blob(16, 2.0, (0, 0, 0), 5.0)).astype("u1")
    volume = read_volume(write_mrc(tmp_path / "v.mrc", bytes_.view("i1"), volume=True))
    np.testing.assert_array_equal(volume.data, bytes_.astype(np.float32))
    assert "as unsigned ones" in volume.notes[0]
