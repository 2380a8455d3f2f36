"""A volume at another pixel size and box, by Fourier interpolation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAME_PIXEL: Final = 1e-3  # relative; headers and STAR files round


def resample_volume(
    volume: NDArray[np.floating[Any]], pixel_size: float, new_pixel_size: float, new_box: int
) -> NDArray[np.float32]:
    """Bring a volume to another pixel size and box; the centre n // 2 and the grey values stay.

    volume           (n, n, n), axes z y x
    pixel_size       Angstrom, of `volume`
    new_pixel_size   Angstrom, any ratio; frequencies beyond the lower Nyquist are cut off
    new_box          pixels along each side; voxels outside of `volume` are zero
    returns          (new_box, new_box, new_box) float32
    """
    box = volume.shape[0]
    ratio = new_pixel_size / pixel_size
    if abs(ratio - 1) < SAME_PIXEL:
        return _cut_or_pad(volume.astype(np.float32), new_box)
    weights = _interpolation(box, ratio, new_box)
    result = volume.astype(np.float64)
    for _ in range(3):
        # Each product works on the first axis and moves it to the back: three turns, all axes.
        result = np.tensordot(result, weights, axes=(0, 1))
    return result.astype(np.float32)


def _interpolation(box: int, ratio: float, new_box: int) -> NDArray[np.float64]:
    """Weights (new_box, box): the Fourier series of a line, evaluated at the new pixels."""
    places = (np.arange(new_box) - new_box // 2) * ratio + box // 2
    highest = min(box / 2, box / (2 * ratio))  # the lower Nyquist, in cycles per old box
    frequencies = np.arange(1, int(np.floor(highest + 1e-9)) + 1)
    strength = np.where(np.isclose(frequencies, box / 2), 1.0, 2.0)  # Nyquist is its own mate
    new, old = (
        2 * np.pi / box * np.outer(points, frequencies) for points in (places, np.arange(box))
    )
    # cos(new - old), summed over frequencies, as two products
    waves = (np.cos(new) * strength) @ np.cos(old).T + (np.sin(new) * strength) @ np.sin(old).T
    weights = np.asarray((1 + waves) / box)
    outside = (places < 0) | (places > box - 1)  # there the series would repeat itself
    weights[outside] = 0
    return weights


def _cut_or_pad(volume: NDArray[np.float32], new_box: int) -> NDArray[np.float32]:
    box = volume.shape[0]
    shift = new_box // 2 - box // 2
    first, last = max(0, shift), min(new_box, box + shift)
    new, old = slice(first, last), slice(first - shift, last - shift)
    result = np.zeros((new_box,) * 3, np.float32)
    result[new, new, new] = volume[old, old, old]
    return result
