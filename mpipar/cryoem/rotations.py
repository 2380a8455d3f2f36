"""Rotations: Euler angles in RELION's convention, and even grids over all orientations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mpipar.cryoem.symmetry import in_asymmetric_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

POLAR = 1e-9
"""Below this sine of the tilt, rot and psi turn about the same axis: then rot is 0."""
WIDEST_GAP = 0.7
"""A view direction that is farther than this from all in the grid, in grid steps, is added."""
HALF_TURN: Final = np.diag([-1.0, -1.0, 1.0])
"""Half a turn in the image plane, as a right factor: the slice becomes its own conjugate."""


def from_euler(angles: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the matrices Rz(rot) Ry(tilt) Rz(psi): map coordinate = R @ image coordinate.

    angles   (p, 3) rot, tilt, psi in degrees
    returns  (p, 3, 3)
    """
    return np.asarray(Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix(), np.float64)


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


def orientation_grid(
    step: float,
    symmetry: NDArray[np.float64],
    seed: np.random.SeedSequence,
    *,
    half_turn: bool = False,
) -> NDArray[np.float32]:
    """Return orientations about `step` degrees apart that cover one asymmetric unit.

    View directions are a HEALPix grid (Gorski et al. 2005), in-plane angles are even. The whole
    grid is turned by a random rotation of at most half a step, so that over the iterations no
    direction is preferred.

    step      degrees
    symmetry  (g, 3, 3) operators of the point group
    half_turn whether to leave out those half a turn in the image plane from another
    returns   (o, 3, 3) float32
    """
    import healpy

    resolution = max(1, round(math.degrees(math.sqrt(4 * math.pi / 12)) / step))
    tilt, rot = healpy.pix2ang(resolution, np.arange(12 * resolution**2))
    turns = max(1, round(360.0 / step))
    whole = 2.0 * math.pi
    if half_turn:
        turns, whole = max(1, round(180.0 / step)), math.pi
    random = np.random.default_rng(seed)
    axis = random.normal(size=3)
    jitter = Rotation.from_rotvec(
        axis / np.linalg.norm(axis) * math.radians(step) * random.uniform(0, 0.5)
    ).as_matrix()
    views = from_euler(np.degrees(np.stack([rot, tilt, np.zeros_like(rot)], axis=1)))
    views = jitter @ views
    views = views[_without_gaps(views[:, :, 2], symmetry, step)]
    psi = (np.arange(turns) + random.uniform()) * whole / turns
    spin = Rotation.from_rotvec(psi[:, None] * np.array([0.0, 0.0, 1.0])).as_matrix()
    return np.ascontiguousarray((views[:, None] @ spin[None]).reshape(-1, 3, 3), dtype=np.float32)


def _without_gaps(
    directions: NDArray[np.float64], symmetry: NDArray[np.float64], step: float
) -> NDArray[np.int64]:
    """Return which view directions (m, 3) to keep so that these and their mates leave no gap.

    These are all directions in one asymmetric unit. Mates across the border of the unit need not
    continue the grid, so directions too far from all kept ones and their mates are added. That
    matters where the unit is not much wider than a step.
    """
    kept = in_asymmetric_unit(directions, symmetry)
    farthest = 2.0 * math.sin(math.radians(WIDEST_GAP * step) / 2)
    distance: NDArray[np.float64] = np.full(len(directions), np.inf)
    if kept.any():
        mates = (directions[kept] @ symmetry.transpose(0, 2, 1)).reshape(-1, 3)
        distance = np.asarray(cKDTree(mates).query(directions)[0])
    for row in np.flatnonzero(distance > farthest):
        if distance[row] > farthest:
            kept[row] = True
            to_mates = directions[:, None] - symmetry @ directions[row]
            distance = np.minimum(distance, np.sqrt((to_mates**2).sum(axis=2)).min(axis=1))
    return np.flatnonzero(kept)
