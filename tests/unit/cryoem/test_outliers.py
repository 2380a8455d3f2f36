"""Hot pixels and voxels are found; images and volumes without any are not touched."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.cryoem import outliers
from tests.support.blocks import blob, noise_images

MODEL = blob(32, 2.0, (0, 4, 6), 8.0)


def test_sound_images_are_returned_themselves() -> None:
    images = noise_images(5, 32)
    same, counts = outliers.without_hot_pixels(images)
    assert same is images
    assert counts.tolist() == [0] * 5


@pytest.mark.parametrize("value", [40.0, -40.0, 1e4, 3e38])
def test_hot_pixels_become_the_median(value: float) -> None:
    images = noise_images(5, 32)
    spoilt = images.copy()
    spoilt[3, 10, 12] = spoilt[3, 0, 0] = value
    mended, counts = outliers.without_hot_pixels(spoilt)
    assert counts.tolist() == [0, 0, 0, 2, 0]
    changed = np.argwhere(mended != images).tolist()
    assert changed == [[3, 0, 0], [3, 10, 12]]
    assert mended[3, 0, 0] == pytest.approx(np.median(images[3]), abs=0.01)
    assert spoilt[3, 0, 0] == np.float32(value), "the input is left alone"


def test_an_image_without_noise_keeps_its_particle() -> None:
    x = np.arange(64) - 32
    image = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 5.0**2)).astype(np.float32)[None]
    assert outliers.without_hot_pixels(image)[0] is image


@pytest.mark.parametrize("fill", [0.0, -3.0, 1e6])
@pytest.mark.parametrize("radius", [15.5, 13.0])
def test_a_rim_of_a_foreign_value_becomes_background(fill: float, radius: float) -> None:
    images = noise_images(5, 32)
    x = np.arange(32) - 16
    rim = np.sqrt(x[:, None] ** 2 + x**2) > radius
    spoilt = images.copy()
    spoilt[3][rim] = fill
    mended, filled = outliers.without_fill(spoilt)
    assert filled.tolist() == [False, False, False, True, False]
    np.testing.assert_array_equal(mended[3][~rim], images[3][~rim])
    np.testing.assert_allclose(mended[3][rim], images[3].mean(), atol=0.5)
    assert np.ptp(mended[3][rim]) == 0
    assert (spoilt[3][rim] == np.float32(fill)).all(), "the input is left alone"


def test_a_rim_of_zeros_is_left() -> None:
    images = noise_images(5, 32)
    images -= images.mean(axis=(1, 2), keepdims=True)
    images[3, 0], images[4] = 0.0, images[4] * (np.hypot(*(np.indices((32, 32)) - 16)) < 14)
    same, filled = outliers.without_fill(images)
    assert same is images
    assert not filled.any()


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
