"""Whether half maps agree by more than chance, where few independent voxels are left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
import scipy.stats
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mpipar.cryoem.fourier import filter_shells
from mpipar.cryoem.resampling import resample_volume
from mpipar.cryoem.resolution import sums_over_shells

if TYPE_CHECKING:
    from numpy.typing import NDArray

FALSE_ALARMS = 0.001
"""Rate at which half maps without common signal are taken to agree, at most."""
DECOYS = 24
"""Turned copies of the noise that say how far chance agreement goes."""
MARGIN = 2
"""Shells that the soft edge of a filter reaches beyond its own."""
EMPTY = 1e-9
"""Shells with less than this part of the strongest shell's power hold rounding errors only."""
SMALLEST_BOX = 64
"""Larger boxes are cut to this many pixels or eight times the shell asked about: finer shells do
not help to see whether there is anything beyond it."""


def significant_shell(
    halves: NDArray[np.floating],
    mask: NDArray[np.floating],
    order: int,
    beyond: int,
    alarms: float = FALSE_ALARMS,
) -> int:
    """Return the last shell up to which half maps agree beyond chance; `beyond` if none does.

    halves  (2, n, n, n), not masked
    mask    (n, n, n), 0 to 1
    order   of the symmetry group that the maps obey
    beyond  shells up to this one and `MARGIN` more do not count: what the half maps were given in
            common, such as the filter of their start
    alarms  rate of half maps without common signal for which more than `beyond` is returned

    The score of some shells is S = sum n FSC / sqrt(sum n^2 v), with n voxels in a shell and v =
    sum |a|^2 |b|^2 / (sum |a|^2 sum |b|^2), the variance that its FSC has if all voxels are
    independent: 1 / n for even noise, more where few voxels have most of the power, as with
    preferred orientations. They are not independent: mask and soft poses mix neighbours, and
    symmetry repeats each voxel g times. How much that matters is measured, not assumed: the noise,
    half1 - half2, is scored against turned copies of itself, which share its statistics and no
    signal. S / sqrt(g mean of S^2 over J decoys) has Student's distribution, taken with J / 2
    degrees of freedom: the decoys, turned copies of one noise, are not J independent ones. Few
    voxels, masks and symmetry thus need no count of independent voxels (which van Heel & Schatz
    2005, J. Struct. Biol. 151, estimate from the volumes of object and box).

    On half maps of pure noise (even, of 100 to 600 images in even and in preferred orientations,
    of soft poses; without a mask, in a sphere, in a tight mask; C1 and higher symmetry) the rate
    was the promised one, or lower with symmetry. Agreement beyond chance is not yet signal: poses
    that followed one reference make noise agree, too.

    Tested are the first 1, 2, 4, 8 ... shells and all, each at `alarms` divided by their number
    (Bonferroni). Where shells agree, the test is repeated beyond them.
    """
    found, start = beyond, beyond + MARGIN
    halves, mask = _cut(halves, mask, beyond)
    # taken out before the mask, which would mix them into the shells that are asked about
    counted = (np.arange(len(mask) // 2 + 1) > start).astype(np.float64)
    finer = np.stack([filter_shells(half, counted) for half in halves])
    agreement = _agreement(finer, mask)[..., : _last_filled_shell(halves) + 1]
    while step := _agreeing(agreement[..., start + 1 :], order, alarms):
        found = start = start + step
    return found


def _cut(
    halves: NDArray[np.floating], mask: NDArray[np.floating], beyond: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return half maps and mask with larger pixels, where the box has many more than needed."""
    box = len(mask)
    smaller = max(SMALLEST_BOX, 8 * beyond)
    if smaller >= box:
        return np.asarray(halves, np.float32), np.asarray(mask, np.float32)
    cut = [resample_volume(volume, 1.0, box / smaller, smaller) for volume in (*halves, mask)]
    return np.stack(cut[:2]), cut[2]


def _last_filled_shell(halves: NDArray[np.float32]) -> int:
    """Return the last shell with data: a mask mixes those before it into empty ones."""
    power = np.abs(scipy.fft.rfftn(np.asarray(halves[0], np.float64))) ** 2
    shells = sums_over_shells(power, len(power))
    return int(np.flatnonzero(shells >= EMPTY * shells.max())[-1])


def _agreement(halves: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return sums per shell of the half maps and of the decoys: (1 + decoys, 2, shells).

    Entry 0 along the second axis is n FSC, entry 1 its variance if all voxels are independent.
    """
    noise = halves[0] - halves[1]
    transforms = [scipy.fft.rfftn(volume * mask) for volume in (*halves, noise)]
    pairs = [_shells(transforms[0], transforms[1], len(mask))]
    centre = np.full(3, len(mask) // 2)
    quaternions = np.random.default_rng(0).normal(size=(DECOYS, 4))
    for turn in Rotation.from_quat(quaternions).as_matrix():
        decoy = ndimage.affine_transform(noise, turn, offset=centre - turn @ centre, order=1)
        pairs.append(_shells(transforms[2], scipy.fft.rfftn(decoy * mask), len(mask)))
    return np.stack(pairs)


def _shells(
    first: NDArray[np.complexfloating], second: NDArray[np.complexfloating], box: int
) -> NDArray[np.float64]:
    power1, power2 = (np.abs(half.astype(np.complex128)) ** 2 for half in (first, second))
    terms = ((first * second.conj()).real, power1, power2, power1 * power2, np.ones(power1.shape))
    product, sum1, sum2, both, voxels = (sums_over_shells(term, box) for term in terms)
    total = np.maximum(sum1 * sum2, 1e-300)
    return np.stack([voxels * product / np.sqrt(total), voxels**2 * both / total])


def _agreeing(agreement: NDArray[np.float64], order: int, alarms: float) -> int:
    """Return the smallest number of first shells that agree beyond chance, 0 if none does."""
    shells = agreement.shape[-1]
    windows = [2**power for power in range(shells.bit_length()) if 2**power < shells] + [shells]
    for window in windows if shells else []:
        sums, variance = agreement[..., :window].sum(axis=-1).T
        scores = sums / np.sqrt(np.maximum(variance, 1e-300))
        spread = np.sqrt(order * np.mean(scores[1:] ** 2))
        # identical halves have no noise
        score = scores[0] / max(spread, 1e-9)
        if scipy.stats.t.sf(score, DECOYS / 2) < alarms / len(windows):
            return int(window)
    return 0
