"""Signatures of images: short vectors that copies of an image share, whatever their grey scale.

A signature is made of Fourier components of low frequency that lie off the axes. It does not change
with the image's mean, scale or a ramp in the background, and only its sign changes with contrast.
Rounding to half floats, 16 or 8 bits, and binning by two, hardly change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.fourier import Components

COMPONENTS: Final = 16  # complex ones; their 32 numbers make a signature
LOWEST, HIGHEST = 3.0, 6.0
"""Cycles per box from which components are taken, and box over cycles up to which they are: the
particle's shape, which all images share, lies below, and what binning takes away lies above."""


def signatures(transforms: NDArray[np.complex64], wanted: Components) -> NDArray[np.float32]:
    """Return a unit vector for each image, (b, d); zeros for an image without any detail.

    transforms   (b, v) components of whole images
    """
    kx, ky = np.abs(wanted.frequencies).T
    off_axis = (kx >= 1) & (ky >= 1)
    inside = off_axis & (wanted.distance >= LOWEST) & (wanted.distance <= wanted.box / HIGHEST)
    places = np.flatnonzero(inside)
    if places.size < COMPONENTS:  # a small box
        places = np.flatnonzero(off_axis)[:COMPONENTS]
    spread = np.linspace(0, places.size - 1, min(COMPONENTS, places.size)).astype(np.int64)
    values = transforms[:, places[spread]].astype(np.complex128)
    vectors = np.concatenate([values.real, values.imag], axis=1)
    return unit_vectors(vectors).astype(np.float32)


def unit_vectors(vectors: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors (p, d) at length 1; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return np.asarray(scaled, np.float32)
