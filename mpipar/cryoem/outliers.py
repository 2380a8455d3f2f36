"""Voxels that no specimen can have made, and what a volume is like without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOT_VOXEL = 10.0
"""A voxel is hot if it is farther from the background than this many times the voxel at one in a
thousand, which lies inside the molecule."""
ONE_VOXEL_IN, FEWEST_ABOVE = 1000, 8
LARGEST_SPOT = 8
"""Voxels that touch each other and are all hot, if they are more than this, are a small molecule in
a large box."""

OFFSET = 0.02
"""A background below this fraction of the strongest density is left as it is."""
DARK_SKEWNESS = -0.5
"""Molecules are dense and rare among voxels: a skewness below this says that dense is dark."""
SECTIONS_ALIKE = 0.4
"""Neighbouring sections of a volume correlate as rows and columns do; if they do by less than this
fraction of that, these are images that have nothing to do with each other."""


def without_hot_voxels(volume: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Return a volume with hot voxels set to the median of their neighbours, and how many it had.

    volume   (n, n, n); not changed, and returned itself if no voxel is hot
    """
    far = np.abs(volume.astype(np.float64) - background_level(volume))
    rank = max(0, volume.size - 1 - max(FEWEST_ABOVE, volume.size // ONE_VOXEL_IN))
    usual = np.partition(far, rank, axis=None)[rank]
    hot = far > HOT_VOXEL * usual
    if usual == 0 or not hot.any():
        return volume, 0
    spots = ndimage.label(hot, np.ones((3, 3, 3)))[0]
    hot &= np.bincount(spots.ravel())[spots] <= LARGEST_SPOT
    if not hot.any():
        return volume, 0
    mended = volume.copy()
    for place in np.argwhere(hot):
        around = tuple(slice(max(0, i - 1), i + 2) for i in place.tolist())
        cold = volume[around][~hot[around]]
        mended[tuple(place)] = np.median(cold) if cold.size else background_level(volume)
    return mended, int(np.count_nonzero(hot))


def background_level(volume: NDArray[np.floating]) -> float:
    """Return the median of the voxels beyond the largest sphere that fits into the box."""
    n = volume.shape[0]
    x = np.arange(n) - n // 2
    distance = np.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None, :] ** 2)
    return float(np.median(volume[distance > n / 2 - 1]))


def offset_of(volume: NDArray[np.floating]) -> float:
    """Return the constant that was added to a volume: its background, or 0 if that is hardly so."""
    level = background_level(volume)
    strongest = float(np.abs(volume.astype(np.float64) - level).max())
    return level if abs(level) > OFFSET * strongest else 0.0


def is_dark(volume: NDArray[np.floating]) -> bool:
    """Whether the dense part of a volume, whose background is about 0, is negative."""
    values = volume.astype(np.float64)
    values /= np.abs(values).max()
    return float((values**3).mean() / (values**2).mean() ** 1.5) < DARK_SKEWNESS


def is_pile_of_images(volume: NDArray[np.floating]) -> bool:
    """Whether the sections (n, n, n) along z are images that have nothing to do with each other."""

    def alike(axis: int) -> float:
        moved = np.moveaxis(volume.astype(np.float64), axis, 0)
        return float(np.corrcoef(moved[1:].ravel(), moved[:-1].ravel())[0, 1])

    within = min(alike(1), alike(2))
    return within > SECTIONS_ALIKE and alike(0) < SECTIONS_ALIKE * within
