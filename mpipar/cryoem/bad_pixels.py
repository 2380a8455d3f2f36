"""Pixels of images that no specimen can have made, and images without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOT_PIXEL = 6.0
"""A pixel is hot if it is farther from the median than this many times the pixel at one in a
hundred: 15 deviations of an image that is mostly noise."""
ONE_IN = 100

FOREIGN = 0.5
"""Deviations from the background's mean by which a rim of one value is foreign."""
RING = 3.0
"""Pixels inside of such a rim from which the background is taken."""
ROUNDING = 1e-3
"""Of an image's mean square: more than single precision can lose of its variance."""


def without_hot_pixels(
    images: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images with hot pixels set to the image's median, and how many each had, (b,).

    images   (b, n, n); not changed, and returned itself if no pixel is hot
    """
    whole = images.reshape(len(images), -1)
    counts = np.zeros(len(images), np.int64)
    doubtful = np.flatnonzero(~_surely_without_hot(whole))
    if not doubtful.size:
        return images, counts
    flat = whole[doubtful]
    middle = np.median(flat, axis=1)[:, None]
    far = np.abs(flat - middle)
    rank = flat.shape[1] - 1 - flat.shape[1] // ONE_IN
    usual = np.partition(far, rank, axis=1)[:, rank, None]
    with np.errstate(over="ignore"):  # no pixel is above infinity
        hot = (far > HOT_PIXEL * usual) & (usual > 0)
    counts[doubtful] = np.count_nonzero(hot, axis=1)
    if not counts.any():
        return images, counts
    mended = whole.copy()
    mended[doubtful] = np.where(hot, middle, flat)
    return mended.reshape(images.shape), counts


def _surely_without_hot(flat: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether images (b, p) cannot have hot pixels; cheap, and seldom False for sound images.

    A median lies within one deviation of the mean. So if enough pixels are at a distance from the
    mean that shows them far enough from any such median, the pixel at one in a hundred is.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean = flat.mean(axis=1)
        square = np.einsum("ij,ij->i", flat, flat) / np.float32(flat.shape[1])
        deviation = np.sqrt(np.maximum(square - mean**2, 0) + ROUNDING * square)
        farthest = np.maximum(flat.max(axis=1) - mean, mean - flat.min(axis=1)) + deviation
        distance = farthest / HOT_PIXEL + deviation
        above, below = mean + distance, mean - distance
    enough = flat.shape[1] // ONE_IN
    sure = np.zeros(len(flat), np.bool_)
    for number, pixels in enumerate(flat):
        found = np.count_nonzero(pixels >= above[number])
        if found <= enough:
            found += np.count_nonzero(pixels <= below[number])
        sure[number] = found > enough
    return sure


def without_fill(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return images whose rim was filled with a foreign value, filled with their own background.

    images    (b, n, n); not changed, and returned itself if no image has such a rim
    returns   also which images (b,) had one: all pixels beyond a circle had one value, and that was
              not about their background's
    """
    filled = np.zeros(len(images), np.bool_)
    corner = images[:, 0, 0]
    beside = (images[:, 0, 1], images[:, 1, 0], images[:, 0, -1], images[:, -1, 0])
    candidates = np.flatnonzero(np.logical_and.reduce([corner == pixel for pixel in beside]))
    if not candidates.size:
        return images, filled
    box = images.shape[-1]
    x = np.arange(box) - box // 2
    distance = np.sqrt(x[:, None] ** 2 + x**2)
    mended = images
    for number in candidates:
        image = images[number]
        if (image[distance > box / 2] != image[0, 0]).any():
            continue
        fill = (image == image[0, 0]) & (distance > box / 4)
        inner = np.where(fill, 0.0, distance)
        ring = image[inner > inner.max() - RING].astype(np.float64)
        filled[number] = abs(image[0, 0] - ring.mean()) > FOREIGN * ring.std()
        if filled[number]:
            mended = images.copy() if mended is images else mended
            mended[number][fill] = ring.mean()
    return mended, filled
