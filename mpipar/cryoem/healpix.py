"""Cells of equal area on a sphere: HEALPix in ring order (Gorski et al. 2005, Astrophys. J. 622).

A grid of resolution n has 12 n^2 cells in 4 n - 1 rings of equal tilt.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CAP: Final = 2.0 / 3.0
"""The height z beyond which a ring has fewer cells than 4 n."""
NEAR_POLE: Final = 0.99
"""The height z beyond which 1 - z is computed from the distance to the axis, which is exact."""


def cell_angles(resolution: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return tilt and rot of the centres of all cells, each (12 n^2,), in radians."""
    n = resolution
    tilts: list[float] = []
    rots: list[NDArray[np.floating]] = []
    counts: list[int] = []
    for ring in range(1, 4 * n):
        in_ring = min(ring, 4 * n - ring, n)  # cells in a quarter of the ring
        cells = np.arange(1, 4 * in_ring + 1)
        if in_ring < n:
            rots.append((cells - 0.5) * (math.pi / 2) / in_ring)
        else:
            offset = 1.0 if (ring + n) % 2 else 0.5
            rots.append((cells - offset) * math.pi * 0.75 * _step(n))
        tilts.append(_tilt(ring, n))
        counts.append(len(cells))
    return np.repeat(tilts, counts), np.concatenate(rots)


def _step(n: int) -> float:
    """Return the difference of height z between two rings that are not in a cap."""
    return 2 * n * (4.0 / (12 * n * n))


def _tilt(ring: int, n: int) -> float:
    """Return the tilt of a ring. By `math`, whose bits do not depend on how many are asked for."""
    north, from_pole = ring < 2 * n, min(ring, 4 * n - ring)
    if from_pole >= n:
        return math.acos((2 * n - ring) * _step(n))
    below = from_pole * from_pole * (4.0 / (12 * n * n))  # the pole
    z = 1.0 - below if north else below - 1.0
    if abs(z) > NEAR_POLE:
        return math.atan2(math.sqrt(below * (2.0 - below)), z)
    return math.acos(z)


def cell_vectors(resolution: int) -> NDArray[np.float64]:
    """Return the centres of all cells as unit vectors x y z, (12 n^2, 3)."""
    tilt, rot = cell_angles(resolution)
    across = np.sin(tilt)
    return np.stack([across * np.cos(rot), across * np.sin(rot), np.cos(tilt)], axis=1)


def cell_of(resolution: int, vectors: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the number of the cell that each vector (..., 3) points to, (...)."""
    n = resolution
    x, y, z = np.moveaxis(np.asarray(vectors, np.float64), -1, 0)
    length, across = np.sqrt(x * x + y * y + z * z), np.hypot(x, y)
    z, across = z / length, across / length
    quarters = np.arctan2(y, x) / (math.pi / 2) % 4.0
    return np.asarray(
        np.where(np.abs(z) <= CAP, _belt_cell(n, z, quarters), _cap_cell(n, z, across, quarters))
    )


def _belt_cell(n: int, z: NDArray[np.float64], quarters: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the cells of directions between the caps, which two families of lines enclose."""
    along, height = n * (0.5 + quarters), n * z * 0.75
    rising, falling = (along - height).astype(np.int64), (along + height).astype(np.int64)
    ring = n + 1 + rising - falling  # from the northern cap's edge, 1 .. 2 n + 1
    shifted = 1 - ring % 2
    place = (rising + falling - n + shifted + 1 + 8 * n) // 2 % (4 * n)
    return np.asarray(2 * n * (n - 1) + (ring - 1) * 4 * n + place)


def _cap_cell(
    n: int, z: NDArray[np.float64], across: NDArray[np.float64], quarters: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the cells of directions in the caps.

    across   distance of the unit vector from the axis
    """
    height = np.abs(z)
    outward = n * np.where(
        height < NEAR_POLE, np.sqrt(3.0 * (1.0 - height)), across / np.sqrt((1.0 + height) / 3.0)
    )
    inside = quarters % 1.0
    rising = (inside * outward).astype(np.int64)
    falling = ((1.0 - inside) * outward).astype(np.int64)
    ring = rising + falling + 1  # from the pole
    place = (quarters * ring).astype(np.int64)
    north, south = 2 * ring * (ring - 1) + place, 12 * n * n - 2 * ring * (ring + 1) + place
    return np.asarray(np.where(z > 0, north, south))


def resolution_of_cells(count: int) -> int:
    """Return the resolution of the grid of this many cells."""
    return math.isqrt(count // 12)


def coarser(values: NDArray[np.floating], resolution: int) -> NDArray[np.float64]:
    """Return the means of the values of all cells, (12 m^2,), in the cells of a coarser grid."""
    finest = resolution_of_cells(len(values))
    cells = cell_of(resolution, cell_vectors(finest))
    sums = np.bincount(cells, values, minlength=12 * resolution**2)
    return np.asarray(sums / (finest // resolution) ** 2)
