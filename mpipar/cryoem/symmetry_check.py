"""Whether a volume shows a point group, and in which of its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mpipar.cryoem.symmetry import operators, settings_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONVINCING = 0.6
"""Correlation of a volume with its symmetry mates from which on it counts as symmetric."""
MATES_COMPARED = 6
ROUND = 0.05
"""A volume is a ball if its variation at equal distances from the centre is below this fraction of
its whole variation: what could be compared comes from the voxels."""


def symmetry_correlation(volume: NDArray[np.floating], group: NDArray[np.float64]) -> float:
    """Return the mean correlation of a volume with itself turned by operators of a group.

    The volume is smoothed and compared inside the inscribed sphere, without its mean at each
    distance from the centre, which has every symmetry. At most a few operators, spread over the
    group, are tried.

    volume   (n, n, n)
    group    (g, 3, 3)
    returns  -1 to 1; also 1 if the volume is a ball
    """
    n = volume.shape[0]
    step = max(1, n // 48)  # symmetry shows at low resolution
    smooth = ndimage.gaussian_filter(np.asarray(volume, np.float32), 0.7 * step)
    small = smooth[::step, ::step, ::step]
    centre = (n // 2) / step
    distance = np.sqrt(((np.indices(small.shape) - centre) ** 2).sum(axis=0))
    inside = distance <= n / step / 2 - 1
    uneven = small - _mean_at(distance, small)
    if uneven[inside].std() < ROUND * small[inside].std():
        return 1.0
    tried = np.linspace(1, len(group) - 1, min(MATES_COMPARED, len(group) - 1))
    correlations = []
    for operator in group[np.unique(tried.astype(int))]:
        turn = operator[::-1, ::-1]  # array axes are z y x
        offset = centre - turn @ np.full(3, centre)
        mate = ndimage.affine_transform(uneven, turn, offset=offset, order=1)
        correlations.append(np.corrcoef(uneven[inside], mate[inside])[0, 1])
    return float(np.mean(correlations))


def _mean_at(distance: NDArray[np.float64], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return at each voxel the mean of all values at about the same distance."""
    shell = np.rint(distance).astype(np.int64)
    sums = np.bincount(shell.ravel(), values.ravel())
    mean = sums / np.maximum(np.bincount(shell.ravel()), 1)
    return np.asarray(mean[shell], np.float32)


def fitting_setting(volume: NDArray[np.floating], name: str) -> tuple[str, float]:
    """Return the setting of a point group that a volume shows best, and the correlation.

    The usual setting is kept unless its correlation is below CONVINCING and that of another one is
    not. For C1 the correlation is 1.
    """
    settings = settings_of(name)
    if len(operators(settings[0])) == 1:
        return settings[0], 1.0
    found = [(setting, symmetry_correlation(volume, operators(setting))) for setting in settings]
    best = max(found, key=lambda pair: pair[1])
    return best if found[0][1] < CONVINCING <= best[1] else found[0]
