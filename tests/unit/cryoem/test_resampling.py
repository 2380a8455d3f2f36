"""A resampled volume keeps its centre, its size in Angstrom and its grey values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpipar.cryoem.resampling import resample_volume
from tests.support.blocks import blob


@settings(max_examples=30, deadline=None)
@given(
    box=st.integers(24, 40),
    new_box=st.integers(16, 48),
    new_pixel_size=st.floats(1.0, 3.5),
    centre=st.tuples(*[st.floats(-3.0, 3.0)] * 3),
)
def test_a_blob_keeps_place_width_and_height(
    box: int, new_box: int, new_pixel_size: float, centre: tuple[float, float, float]
) -> None:
    pixel_size, sigma = 2.0, 4.0
    resampled = resample_volume(blob(box, pixel_size, centre, sigma), 2.0, new_pixel_size, new_box)
    if abs(new_pixel_size / pixel_size - 1) < 1e-3:
        new_pixel_size = pixel_size  # taken for the same
    wanted = blob(new_box, new_pixel_size, centre, sigma)
    axis = np.abs(np.arange(new_box) - new_box // 2) * new_pixel_size
    inside = np.flatnonzero(axis < box * pixel_size / 2 - 2 * pixel_size)
    part = np.ix_(inside, inside, inside)
    # Only the blob's tails at the edges of small boxes are lost, where the series repeats.
    np.testing.assert_allclose(resampled[part], wanted[part], atol=0.02)


def test_half_the_pixels_keep_the_middle_one() -> None:
    volume = blob(32, 2.0, (0, 0, 0), 5.0)
    resampled = resample_volume(volume, 2.0, 4.0, 16)
    assert resampled[8, 8, 8] == resampled.max()
    np.testing.assert_allclose(resampled, volume[::2, ::2, ::2], atol=1e-4)


def test_there_and_back_is_the_same() -> None:
    volume = blob(24, 2.0, (1, -2, 3), 4.0)
    finer = resample_volume(volume, 2.0, 1.5, 32)
    np.testing.assert_allclose(resample_volume(finer, 1.5, 2.0, 24), volume, atol=2e-3)


@pytest.mark.parametrize(("box", "new_box"), [(8, 12), (12, 8), (9, 8), (8, 9), (9, 12), (12, 9)])
def test_the_same_pixel_size_only_cuts_or_pads_about_the_centre(box: int, new_box: int) -> None:
    volume = np.random.default_rng(1).normal(size=(box,) * 3).astype(np.float32)
    changed = resample_volume(volume, 2.0, 2.0002, new_box)
    assert changed.shape == (new_box,) * 3
    assert changed[(new_box // 2,) * 3] == volume[(box // 2,) * 3]
    assert changed.sum() == pytest.approx(volume.sum(), abs=1e-3) or new_box < box
    back = resample_volume(changed, 2.0, 2.0, box)
    kept = back != 0
    np.testing.assert_array_equal(back[kept], volume[kept])
    assert kept.sum() == min(box, new_box) ** 3


def test_outside_of_the_old_box_is_zero() -> None:
    resampled = resample_volume(np.ones((8, 8, 8)), 1.0, 2.0, 16)
    np.testing.assert_allclose(resampled[6:10, 6:10, 6:10], 1, atol=1e-6)
    assert not resampled[:4].any()
    assert not resampled[12:].any()


def test_finer_detail_than_the_new_pixels_carry_is_cut_off() -> None:
    wave = np.cos(2 * np.pi * np.arange(24) / 3)  # period 3 pixels, beyond Nyquist of 2-fold pixels
    volume = np.broadcast_to(wave, (24, 24, 24))
    np.testing.assert_allclose(resample_volume(volume, 1.0, 2.0, 12), 0, atol=1e-6)
