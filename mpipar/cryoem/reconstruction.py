"""Back-projection into exact integer sums, and the map that is solved from the sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem.fourier import (
    OVERSAMPLING,
    ROWS,
    Components,
    shells_by_square,
    undo_falloff,
    volume_from_rows,
)
from mpipar.cryoem.rotations import SAME
from mpipar.errors import ProtocolError
from mpipar.kernels import insertion, volume_passes

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLICES_PER_VOXEL = 8
"""Bound on the sum of trilinear weights that one slice can add to one voxel: 5.7 voxels^2 of
plane have at most 4 samples, and Friedel mates double that."""
LARGEST_SUM_BITS = 62
UNIT: Final = 2**12
"""Trilinear weights of slices that are added up by orientation are multiples of 1 / UNIT. The sums
by orientation have as many bits fewer, of 62 less those of 8 slices per particle: enough that of a
million particles, each gives something to each of 10^5 orientations."""
LARGEST_EXPONENT = 1000  # of a scale: a float64 holds 2^1023


@dataclass(frozen=True)
class FixedPoint:
    """Integers per unit of value and of weight: powers of two, so that scaling back is exact."""

    value: float
    weight: float


def fixed_point(largest_value: float, largest_weight: float, particles: int) -> FixedPoint:
    """Return the scales with which no sum over `particles` slices can reach 2^62.

    largest_value   bound on |CTF X / noise| of any component of any image
    largest_weight  bound on CTF^2 / noise
    """

    def scale(largest: float) -> float:
        bits = math.log2(max(largest, 1e-300)) + math.log2(SLICES_PER_VOXEL * max(particles, 1))
        return 2.0 ** min(LARGEST_SUM_BITS - 1 - math.ceil(bits), LARGEST_EXPONENT)

    return FixedPoint(scale(largest_value), scale(largest_weight))


def sums_shape(radius: int) -> tuple[int, int, int, int]:
    """Return the shape (d, d, h, 3) of sums for slices out to `radius` cycles per box."""
    reach = OVERSAMPLING * radius + 2
    return 2 * reach + 1, 2 * reach + 1, reach + 2, 3


def empty_sums(radius: int) -> NDArray[np.int64]:
    """Return zero sums for slices out to `radius` cycles per box.

    returns  (d, d, h, 3) int64, see `kernels.insertion`
    """
    return np.zeros(sums_shape(radius), np.int64)


def insert(
    sums: NDArray[np.int64],
    values: NDArray[np.float32],
    rotations: NDArray[np.float64],
    wanted: Components,
    scales: FixedPoint,
) -> None:
    """Add slices to `sums` in place.

    sums       (d, d, h, 3) from `empty_sums`
    values     (b, v, 3) from `alignment.weigh`, of images that are moved back by their shifts
    rotations  (b, 3, 3) map coordinate = rotation @ image coordinate
    """
    count = values.shape[1]
    frequencies = np.ascontiguousarray(wanted.frequencies[:count] * OVERSAMPLING)
    pair = np.array([scales.value, scales.weight])
    insertion.insert_slices(
        np.ascontiguousarray(values), np.ascontiguousarray(rotations), frequencies, pair, sums
    )


class OrientationSums:
    """Sums of slices by orientation, for a grid of orientations that many slices have.

    They are whole numbers, and so is what `inserted` makes of them: the result for several such
    sums, added up, is the same bits whichever slices each of them was given.
    """

    def __init__(
        self, orientations: NDArray[np.floating], wanted: Components, scales: FixedPoint
    ) -> None:
        """Take a grid of orientations (m, 3, 3) and the components (v) that slices have."""
        self._orientations, self._wanted, self._scales = orientations, wanted, scales
        self._totals = np.zeros((3, len(orientations), len(wanted.frequencies)), np.int64)

    def add(self, values: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Add slices (3, n, v), as in `insert` but for the axes, of the orientations `rows`."""
        pair = np.array([self._scales.value / UNIT, self._scales.weight / UNIT])
        insertion.add_whole(np.ascontiguousarray(values), rows, pair, self._totals)

    def inserted(self, radius: int) -> NDArray[np.int64]:
        """Return the sums of `empty_sums(radius)` with all slices inserted."""
        sums = empty_sums(radius)
        frequencies = np.ascontiguousarray(self._wanted.frequencies * OVERSAMPLING)
        turned = np.ascontiguousarray(self._orientations, np.float64)
        insertion.insert_whole(self._totals, turned, frequencies, UNIT, sums)
        return sums


@dataclass(frozen=True)
class HalfSums:
    """The sums of one half set of particles, added up over the symmetry.

    values       (d, d, h, 3) float32: real and imaginary part of the sum of CTF X / noise, and the
                 sum of CTF^2 / noise, the weight
    mean_weight  (s,) over the voxels of each shell
    box          pixels along each side of the map
    """

    values: NDArray[np.float32]
    mean_weight: NDArray[np.float64]
    box: int

    @classmethod
    def of(cls, values: NDArray[np.float32], box: int) -> HalfSums:
        """Return the sums of these values."""
        last = values.shape[0] // 2 // OVERSAMPLING
        totals = np.zeros((last + 1, 2))
        volume_passes.add_up_weights(values, shells_by_square(last, OVERSAMPLING), totals)
        return cls(values, totals[:, 0] / np.maximum(totals[:, 1], 1.0), box)


def scale_back(
    piece: NDArray[np.int64], start: int, scales: FixedPoint, values: NDArray[np.float32]
) -> None:
    """Scale a piece of integer sums back.

    piece    (p,) int64 of sums from `insert`, flattened
    start    where it begins in them
    values   (d, d, h, 3) float32, in place
    raises   ProtocolError if a sum is beyond the bound that `fixed_point` promises
    """
    extremes = np.zeros(2, np.int64)
    units = 1.0 / np.array([scales.value, scales.value, scales.weight])
    volume_passes.scale_sums(piece, start, units, values.reshape(-1), extremes)
    for found in extremes.tolist():
        if abs(found) >= 2**LARGEST_SUM_BITS:
            place = start + int(np.flatnonzero(piece == found)[0])
            *voxel, part = (int(index) for index in np.unravel_index(place, values.shape))
            name = ("real", "imaginary", "weight")[part]
            raise ProtocolError(
                f"the back-projected sums have overflowed: {found} ({name}, voxel z y x {voxel}) "
                f"is not below 2^{LARGEST_SUM_BITS}; the bound of the images' values was too low"
            )


def averaged(values: NDArray[np.float32], symmetry: NDArray[np.float64], box: int) -> HalfSums:
    """Add Friedel mates at x = 0, and add up over the point group.

    values    (d, d, h, 3) from `scale_back`; used up
    symmetry  (g, 3, 3)
    """
    plane = values[:, :, 0]
    plane += plane[::-1, ::-1] * np.array([1, -1, 1], np.float32)
    radius = values.shape[0] // 2 - 1.0  # all that slices can have touched
    for coset in cosets(symmetry):
        total = values.copy()
        for operator in coset[1:]:
            insertion.add_rotated(values, np.ascontiguousarray(operator), radius, total)
        values = total
    return HalfSums.of(values, box)


def half_sums(
    sums: NDArray[np.int64], scales: FixedPoint, symmetry: NDArray[np.float64], box: int
) -> HalfSums:
    """Return the sums of a half set from integers (d, d, h, 3), see `scale_back` and `averaged`."""
    values = np.empty(sums.shape, np.float32)
    scale_back(sums.reshape(-1), 0, scales, values)
    return averaged(values, symmetry, box)


def cosets(group: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return short lists of operators: a product with one of each list is each of the group once.

    Averaging over one list after the other costs the sum of their lengths, not the product. The
    first list is a cyclic subgroup of the highest order, the second has one operator of each coset.
    """
    if len(group) == 1:
        return []
    cyclic = max((_powers(operator) for operator in group), key=len)
    representatives: list[NDArray[np.float64]] = []
    covered = np.empty((0, 3, 3))
    for operator in group:
        if not (np.abs(covered - operator).max(axis=(1, 2)) < SAME).any():
            representatives.append(operator)
            covered = np.concatenate([covered, operator @ np.array(cyclic)])
    return [np.array(part) for part in (cyclic, representatives) if len(part) > 1]


def _powers(operator: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    powers = [np.eye(3)]
    while np.abs((step := operator @ powers[-1]) - powers[0]).max() > SAME:
        powers.append(step)
    return powers


def solve(
    sums: HalfSums,
    correlation: NDArray[np.float64] | None,
    radius: int,
    other: HalfSums | None = None,
) -> NDArray[np.float32]:
    """Return the map (n, n, n) float32 that fits the sums best.

    correlation  FSC per shell; the Wiener term mean weight x (1 - FSC) / FSC is added to the
                 weights (Scheres 2012).
                 None gives the unregularised map, with a floor of 0.1 % of each shell's mean weight
    radius       cycles per box; frequencies beyond are zero
    other        sums of the other half set: the map is that of all particles
    """
    if correlation is None:
        ratio = np.full(radius + 1, 1e-3)
    else:
        bounded = np.clip(correlation[: radius + 1], 1e-3, 0.999)
        ratio = (1.0 - bounded) / bounded
        ratio = np.pad(ratio, (0, radius + 1 - len(ratio)), mode="edge")
    mean = sums.mean_weight + (other.mean_weight if other is not None else 0.0)
    floor = np.maximum(mean[: radius + 1] * ratio, 1e-30).astype(np.float32)
    damping = floor[shells_by_square(radius, OVERSAMPLING)]
    second = other.values if other is not None else sums.values[:0]
    side, height = sums.values.shape[1:3]
    block = np.empty((side, ROWS, height), np.complex64)

    def rows(part: slice) -> NDArray[np.complex64]:
        volume_passes.divide_by_weight(sums.values, second, damping, part.start, block)
        return block[:, : part.stop - part.start]

    volume = volume_from_rows(rows, (side, height), OVERSAMPLING, sums.box)
    undo_falloff(volume, OVERSAMPLING)
    return volume
