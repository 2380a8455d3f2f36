"""The solvent mask: the part of a map that is molecule, with a soft edge."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mpipar.cryoem.fourier import lowpass_gain, multiply_shells, volume_of_transform
from mpipar.cryoem.masks import soft_edge
from mpipar.kernels import volume_passes

if TYPE_CHECKING:
    from numpy.typing import NDArray

COARSEST, FINEST = 40.0, 15.0
"""Angstrom: for the mask, the map is low-passed to 1.5 x its resolution, within these limits."""
THRESHOLD = 0.08
"""Fraction of the map's highest density that still counts as molecule."""
SMALLEST_PART = 0.05
"""Unconnected pieces smaller than this fraction of the largest are noise."""
MARGIN_PIXELS, MARGIN = 3.0, 8.0
"""Pixels and Angstrom: the mask extends beyond the molecule by the larger of the two."""
EDGE_PIXELS = 5.0
USEFUL = 0.8
"""A mask that keeps more than this fraction of the sphere is of no use: the sphere is taken."""


def solvent_mask(
    transform: NDArray[np.complex64],
    sphere: NDArray[np.float32],
    pixel_size: float,
    resolution: float,
) -> NDArray[np.float32]:
    """Return a soft mask about the density of a map, never outside `sphere`.

    transform    (n, n, n // 2 + 1) of the map, unmasked; used up
    sphere       (n, n, n) soft mask that the molecule is known to lie in
    pixel_size   Angstrom
    resolution   Angstrom, of the map
    returns      (n, n, n), 0 to 1; `sphere` itself where the density does not stand out
    """
    box = sphere.shape[0]
    cutoff = min(COARSEST, max(FINEST, 1.5 * resolution, 4.0 * pixel_size))
    multiply_shells(transform, lowpass_gain(box, box * pixel_size / cutoff))
    smooth = volume_of_transform(transform, box)
    smooth *= sphere
    dense = smooth > THRESHOLD * smooth.max()
    del smooth
    if not dense.any():
        return sphere
    widening = max(MARGIN_PIXELS, MARGIN / pixel_size)
    reach = math.ceil(widening + EDGE_PIXELS)
    part = _bounds(dense, reach)
    squared = squared_distances(_large_parts(dense[part]), reach)
    by_square = soft_edge(np.sqrt(np.arange((reach + 1) ** 2 + 1)), widening, EDGE_PIXELS)
    mask = np.zeros_like(sphere)
    mask[part] = by_square[squared] * sphere[part]
    return mask if mask.sum() < USEFUL * sphere.sum() else sphere


def _bounds(dense: NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    """Return the part of a volume that holds all that is dense, and a margin where there is one."""
    bounds = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(dense.any(axis=others))
        bounds.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1))
    return tuple(bounds)


def _large_parts(dense: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the unconnected pieces that are more than noise."""
    parts, _ = ndimage.label(dense)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # what is not dense
    return np.asarray((sizes >= SMALLEST_PART * sizes.max())[parts])


def squared_distances(inside: NDArray[np.bool_], reach: int) -> NDArray[np.int32]:
    """Return the squared distance in voxels of each voxel from the nearest one that is inside.

    inside   (z, y, x)
    reach    voxels; where the distance is larger, the result is (reach + 1)^2
    """
    rows, squared = np.empty(inside.shape, np.int32), np.empty(inside.shape, np.int32)
    volume_passes.squared_distances(inside.view(np.uint8), reach, rows, squared)
    return squared
