"""Signatures of images: the same for copies, whatever was done to their grey values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpipar.cryoem.copied_images import first_alike
from mpipar.cryoem.fourier import components, image_components, largest_radius
from mpipar.cryoem.masks import soft_discs
from mpipar.cryoem.signatures import signatures

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Images = NDArray[np.float32]


def signed(images: Images) -> NDArray[np.float32]:
    wanted = components(images.shape[-1], largest_radius(images.shape[-1]))
    return signatures(image_components(images.astype(np.float32), wanted), wanted)


def noise(count: int, box: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).normal(size=(count, box, box)).astype(np.float32)


def binned(images: Images) -> Images:
    """Every second frequency lost, at the old box again."""
    transform = np.fft.fftshift(np.fft.fft2(images), axes=(1, 2))
    n = images.shape[-1]
    kept = np.zeros_like(transform)
    inner = slice(n // 4, n - n // 4)
    kept[:, inner, inner] = transform[:, inner, inner]
    back = np.fft.ifft2(np.fft.ifftshift(kept, axes=(1, 2))).real
    return np.asarray(back, np.float32)


def with_ramp(images: Images) -> Images:
    x = np.arange(images.shape[-1], dtype=np.float32)
    return np.asarray(images + 0.3 * x + 0.1 * x[:, None], np.float32)


CHANGES = {
    "scale": lambda images: images * 37.5,
    "offset": lambda images: images + 12.0,
    "sign": lambda images: -0.3 * images,
    "half": lambda images: images.astype(np.float16).astype(np.float32),
    "int16": lambda images: np.rint(images * 1000),
    "int8": lambda images: np.rint(images * 25),
    "binned": binned,
    "ramp": with_ramp,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("box", [24, 32, 64])
def test_copies_are_found(box: int, change: Callable[[Images], Images]) -> None:
    images = noise(100, box)
    both = np.concatenate([images, change(images)])
    assert np.array_equal(first_alike(signed(both)), np.tile(np.arange(100), 2))


@pytest.mark.parametrize("box", [8, 10, 16, 32, 48])
@pytest.mark.parametrize("count", [2, 4, 31, 2000])
def test_noise_has_no_copies(box: int, count: int) -> None:
    assert np.array_equal(first_alike(signed(noise(count, box))), np.arange(count))


def test_many_copies_of_few_images() -> None:
    images = noise(3, 32)
    copies = np.concatenate([images * np.float32(k) for k in range(1, 30)])
    assert np.array_equal(first_alike(signed(copies)), np.tile(np.arange(3), 29))


@pytest.mark.parametrize("strength", [10.0, 1000.0])
def test_what_all_images_share_makes_no_copies(strength: float) -> None:
    box, count = 32, 200
    rim = soft_discs(box, np.zeros((1, 2)), 13, 1)
    images = noise(count, box) + np.float32(strength) * rim
    assert np.array_equal(first_alike(signed(images)), np.arange(count))


def test_images_without_detail_are_no_copies() -> None:
    assert np.array_equal(first_alike(signed(np.zeros((5, 16, 16), np.float32))), np.arange(5))
