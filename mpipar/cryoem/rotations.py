"""Rotations as matrices, and as Euler angles in RELION's convention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

POLAR = 1e-9
"""Below this sine of the tilt, rot and psi turn about the same axis: then rot is 0."""
SAME: Final = 1e-6
"""Entries of two matrices that differ by less are equal but for rounding."""
HALF_TURN: Final = np.diag([-1.0, -1.0, 1.0])
"""Half a turn in the image plane, as a right factor: the slice becomes its own conjugate."""


def from_euler(angles: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the matrices Rz(rot) Ry(tilt) Rz(psi): map coordinate = R @ image coordinate.

    angles   (p, 3) rot, tilt, psi in degrees
    returns  (p, 3, 3)
    """
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix(), np.float64)


def from_vectors(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rotations (..., 3, 3) about vectors (..., 3), by their lengths in radians."""
    from scipy.spatial.transform import Rotation

    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix()
    return np.asarray(matrices.reshape(*vectors.shape, 3), np.float64)


def to_vectors(rotations: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the vectors (..., 3) of rotations (..., 3, 3), see `from_vectors`."""
    from scipy.spatial.transform import Rotation

    vectors = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_rotvec()
    return np.asarray(vectors.reshape(rotations.shape[:-1]), np.float64)


def to_euler(rotations: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the angles rot, tilt, psi in degrees, (p, 3), of matrices (p, 3, 3).

    rot and psi are in -180 .. 180, tilt in 0 .. 180; rot is 0 where tilt is 0 or 180.
    """
    r = np.asarray(rotations, np.float64)
    sine_of_tilt = np.hypot(r[:, 0, 2], r[:, 1, 2])
    tilt = np.arctan2(sine_of_tilt, r[:, 2, 2])
    rot = np.where(sine_of_tilt < POLAR, 0.0, np.arctan2(r[:, 1, 2], r[:, 0, 2]))
    # the middle row of Ry(tilt) Rz(psi), what is left after taking rot off: exact at any tilt
    sine, cosine = np.sin(rot), np.cos(rot)
    psi = np.arctan2(
        cosine * r[:, 1, 0] - sine * r[:, 0, 0], cosine * r[:, 1, 1] - sine * r[:, 0, 1]
    )
    return np.asarray(np.degrees(np.stack([rot, tilt, psi], axis=1)), np.float64)


def angle_between(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the angle in degrees between each of `first` and of `second`, both (..., 3, 3)."""
    # |R1 - R2|_F = sqrt(8) sin(angle / 2): accurate for small angles, where the trace is not
    distance = np.sqrt(((np.asarray(first, np.float64) - second) ** 2).sum(axis=(-2, -1)))
    return np.asarray(np.degrees(2.0 * np.arcsin(np.clip(distance / math.sqrt(8.0), 0.0, 1.0))))


def with_half_turns(orientations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return orientations (m, 3, 3), and behind them the half-turned ones: (2 m, 3, 3)."""
    return np.concatenate([orientations, orientations @ HALF_TURN.astype(np.float32)])
