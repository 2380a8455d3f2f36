"""The solvent mask: the part of a map that is molecule, with a soft edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mpipar.cryoem.fourier import filter_shells, lowpass_gain
from mpipar.cryoem.masks import soft_edge

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
    volume: NDArray[np.floating], sphere: NDArray[np.float32], pixel_size: float, resolution: float
) -> NDArray[np.float32]:
    """Return a soft mask about the density of a map, never outside `sphere`.

    volume       (n, n, n) map, unmasked
    sphere       (n, n, n) soft mask that the molecule is known to lie in
    pixel_size   Angstrom
    resolution   Angstrom, of the map
    returns      (n, n, n), 0 to 1; `sphere` itself where the density does not stand out
    """
    box = volume.shape[0]
    cutoff = min(COARSEST, max(FINEST, 1.5 * resolution, 4.0 * pixel_size))
    smooth = filter_shells(volume, lowpass_gain(box, box * pixel_size / cutoff)) * sphere
    dense = smooth > THRESHOLD * smooth.max()
    parts, count = ndimage.label(dense)
    if count == 0:
        return sphere
    sizes = np.bincount(parts.ravel())[1:]
    molecule = np.isin(parts, np.flatnonzero(sizes >= SMALLEST_PART * sizes.max()) + 1)
    distance = ndimage.distance_transform_edt(~molecule)
    widening = max(MARGIN_PIXELS, MARGIN / pixel_size)
    mask = soft_edge(distance, widening, EDGE_PIXELS) * sphere
    return mask if mask.sum() < USEFUL * sphere.sum() else sphere
