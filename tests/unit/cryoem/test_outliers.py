"""Hot pixels and voxels are found; images and volumes without any are not touched."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.cryoem import outliers
from tests.support.blocks import blob, noise_images

MODEL = blob(32, 2.0, (0, 4, 6), 8.0)


def test_sound_volumes_are_returned_themselves() -> None:
    assert outliers.without_hot_voxels(MODEL) == (MODEL, 0)


@pytest.mark.parametrize("value", [60.0, -60.0, 1e30])
def test_hot_voxels_become_like_their_neighbours(value: float) -> None:
    spoilt = MODEL.copy()
    spoilt[16, 16, 17] = spoilt[16, 16, 18] = spoilt[2, 3, 4] = value
    mended, count = outliers.without_hot_voxels(spoilt)
    assert count == 3
    np.testing.assert_allclose(mended, MODEL, atol=0.1)


def test_a_small_molecule_in_a_large_box_is_not_hot() -> None:
    x = np.arange(64) - 32
    distance = x[:, None, None] ** 2 + x[:, None] ** 2 + x**2
    small = np.exp(-distance / (2 * 0.7**2)).astype(np.float32)
    assert outliers.without_hot_voxels(small) == (small, 0)


def test_a_background_is_found_and_a_small_one_is_none() -> None:
    assert outliers.offset_of(MODEL) == 0.0
    assert outliers.offset_of(MODEL + 0.01) == 0.0
    assert outliers.offset_of(MODEL - 3.0) == pytest.approx(-3.0, rel=0.01)
    assert outliers.offset_of(1000 * MODEL + 250.0) == pytest.approx(250.0, rel=0.01)


def test_dark_is_told_from_bright() -> None:
    assert not outliers.is_dark(MODEL)
    assert outliers.is_dark(-MODEL)
    assert outliers.is_dark(-1e38 * MODEL)


def test_images_are_told_from_a_volume() -> None:
    x = np.arange(32) - 16
    near = np.exp(-(x[:, None] ** 2 + x**2) / 8)
    noise = noise_images(32, 32) - np.arange(32)[:, None, None]  # which has mean i in image i
    smooth = np.fft.ifft2(np.fft.fft2(noise) * np.fft.fft2(np.fft.ifftshift(near))).real
    assert outliers.is_pile_of_images(smooth)
    assert not outliers.is_pile_of_images(MODEL)
    assert not outliers.is_pile_of_images(noise), "noise alone says nothing"
