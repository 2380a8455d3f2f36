"""Even grids over all orientations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mpipar.cryoem.healpix import cell_angles
from mpipar.cryoem.rotations import from_euler
from mpipar.cryoem.symmetry import in_asymmetric_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDEST_GAP: Final = 0.7
"""A view direction that is farther than this from all in the grid, in grid steps, is added."""


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
    resolution = max(1, round(math.degrees(math.sqrt(4 * math.pi / 12)) / step))
    tilt, rot = cell_angles(resolution)
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
