"""Hot pixels and foreign rims are found; images without any are not touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.cryoem import bad_pixels
from tests.support.blocks import noise_images

if TYPE_CHECKING:
    from numpy.typing import NDArray


def test_sound_images_are_returned_themselves() -> None:
    images = noise_images(5, 32)
    same, counts = bad_pixels.without_hot_pixels(images)
    assert same is images
    assert counts.tolist() == [0] * 5


@pytest.mark.parametrize("value", [40.0, -40.0, 1e4, 3e38])
def test_hot_pixels_become_the_median(value: float) -> None:
    images = noise_images(5, 32)
    spoilt = images.copy()
    spoilt[3, 10, 12] = spoilt[3, 0, 0] = value
    mended, counts = bad_pixels.without_hot_pixels(spoilt)
    assert counts.tolist() == [0, 0, 0, 2, 0]
    changed = np.argwhere(mended != images).tolist()
    assert changed == [[3, 0, 0], [3, 10, 12]]
    assert mended[3, 0, 0] == pytest.approx(np.median(images[3]), abs=0.01)
    assert spoilt[3, 0, 0] == np.float32(value), "the input is left alone"


def test_an_image_without_noise_keeps_its_particle() -> None:
    x = np.arange(64) - 32
    image = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 5.0**2)).astype(np.float32)[None]
    assert bad_pixels.without_hot_pixels(image)[0] is image


@pytest.mark.parametrize("fill", [0.0, -3.0, 1e6])
@pytest.mark.parametrize("radius", [15.5, 13.0])
def test_a_rim_of_a_foreign_value_becomes_background(fill: float, radius: float) -> None:
    images = noise_images(5, 32)
    x = np.arange(32) - 16
    rim = np.sqrt(x[:, None] ** 2 + x**2) > radius
    spoilt = images.copy()
    spoilt[3][rim] = fill
    mended, filled = bad_pixels.without_fill(spoilt)
    assert filled.tolist() == [False, False, False, True, False]
    np.testing.assert_array_equal(mended[3][~rim], images[3][~rim])
    np.testing.assert_allclose(mended[3][rim], images[3].mean(), atol=0.5)
    assert np.ptp(mended[3][rim]) == 0
    assert (spoilt[3][rim] == np.float32(fill)).all(), "the input is left alone"


def test_a_rim_of_zeros_is_left() -> None:
    images = noise_images(5, 32)
    images -= images.mean(axis=(1, 2), keepdims=True)
    images[3, 0], images[4] = 0.0, images[4] * (np.hypot(*(np.indices((32, 32)) - 16)) < 14)
    same, filled = bad_pixels.without_fill(images)
    assert same is images
    assert not filled.any()


def by_definition(images: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which pixels are hot, without any short cut."""
    flat = images.reshape(len(images), -1)
    far = np.abs(flat - np.median(flat, axis=1)[:, None])
    rank = flat.shape[1] - 1 - flat.shape[1] // bad_pixels.ONE_IN
    usual = np.sort(far, axis=1)[:, rank, None]
    hot: NDArray[np.bool_] = (far > bad_pixels.HOT_PIXEL * usual) & (usual > 0)
    return hot.reshape(images.shape)


@given(
    seed=st.integers(0, 2**32 - 1),
    power=st.floats(0.2, 3.0),
    offset=st.sampled_from([0.0, 1.0, -50.0, 3e4]),
    spikes=st.lists(st.floats(2.0, 60.0), max_size=20),
)
def test_the_short_cut_misses_no_hot_pixel(
    seed: int, power: float, offset: float, spikes: list[float]
) -> None:
    random = np.random.default_rng(seed)
    noise = random.normal(size=(4, 16, 16))
    spoilt = np.sign(noise) * np.abs(noise) ** power
    for spike in spikes:
        spoilt[tuple(random.integers(0, noise.shape))] = spike * random.choice([-1, 1])
    images = (spoilt + offset).astype(np.float32)
    hot = by_definition(images)
    mended, counts = bad_pixels.without_hot_pixels(images)
    assert counts.tolist() == np.count_nonzero(hot, axis=(1, 2)).tolist()
    np.testing.assert_array_equal(mended[~hot], images[~hot])
    middle = np.broadcast_to(np.median(images, axis=(1, 2))[:, None, None], images.shape)
    np.testing.assert_array_equal(mended[hot], middle[hot])


def test_sound_noise_takes_the_short_cut() -> None:
    images = np.random.default_rng(0).normal(size=(20, 64, 64)).astype(np.float32)
    for offset in (0.0, 2.0, -128.0):
        moved = (20 * images + np.float32(offset)).reshape(20, -1)
        assert bad_pixels._surely_without_hot(moved).all()
