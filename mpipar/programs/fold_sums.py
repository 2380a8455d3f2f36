"""The sums of half sets and of their folds on rank 0: taken as they come, scaled, added up."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from mpipar.cryoem import reconstruction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.cryoem.reconstruction import FixedPoint, HalfSums
    from mpipar.runtime.stage import Sums

Item = TypeVar("Item")
Result = TypeVar("Result")

HALVES: Final = ("half1", "half2")
"""Names of the sums of half sets that are one fold; else a point and the fold's number follow."""
LARGEST_SUMS: Final = 1e9
"""Bytes of the sums of all folds together; where they would be more, there is one fold."""


def sums_bytes(radius: int) -> float:
    """Return the bytes of one fold's sums out to `radius` cycles per box."""
    return 8.0 * math.prod(reconstruction.sums_shape(radius))


class FoldTotals:
    """What takes the workers' sums on rank 0: those of half sets are scaled as they come.

    parts    whole numbers, by name, of each fold
    values   (d, d, h, 3) float32 of each half set that is one fold, by name
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], scales: FixedPoint) -> None:
        self.parts: Sums = {}
        self.values: dict[str, NDArray[np.float32]] = {}
        self.scales = scales
        for name, shape in shapes.items():
            if name in HALVES:
                self.values[name] = np.empty(shape, np.float32)
            else:
                self.parts[name] = np.empty(shape, np.int64)

    def take(self, name: str, start: int, piece: NDArray[np.int64]) -> None:
        """Take elements from `start` on of a sum, flattened."""
        if name in self.parts:
            self.parts[name].reshape(-1)[start : start + len(piece)] = piece
        else:
            reconstruction.scale_back(piece, start, self.scales, self.values[name])

    def finished(self, symmetry: NDArray[np.float64], box: int) -> FoldSums:
        """Return the sums, added up over the symmetry; the values are handed over.

        symmetry  (g, 3, 3)
        box       pixels along each side of the maps
        """

        def half(number: int) -> HalfSums:
            values = self.values.pop(HALVES[number - 1], None)
            if values is not None:
                return reconstruction.averaged(values, symmetry, box)
            total = added_up(self.parts, number)
            return reconstruction.half_sums(total, self.scales, symmetry, box)

        first, second = for_both(half, (1, 2))
        return FoldSums(self.parts, self.scales, (first, second))


@dataclass(frozen=True)
class FoldSums:
    """What the workers have added up in an iteration.

    parts    whole numbers, by name, of each fold; empty, where half sets are one fold
    scales   integers per unit of these
    halves   numerator and weight of each half map
    """

    parts: Mapping[str, NDArray[np.int64]]
    scales: FixedPoint
    halves: tuple[HalfSums, HalfSums]


def for_both(work: Callable[[Item], Result], halves: Sequence[Item]) -> list[Result]:
    """Do the same work for both half sets at once, on a thread each."""
    with ThreadPoolExecutor(len(halves)) as threads:
        return list(threads.map(work, halves))


def added_up(sums: Mapping[str, NDArray[np.int64]], half: int) -> NDArray[np.int64]:
    """Return the sums of all folds of a half set."""
    total, *others = parts_of(sums, half)
    for part in others:
        total = total + part
    return total


def parts_of(sums: Mapping[str, NDArray[np.int64]], half: int) -> list[NDArray[np.int64]]:
    """Return the sums of each fold of a half set, in order."""
    name = HALVES[half - 1]
    return [sums[key] for key in sorted(sums) if key.partition(".")[0] == name]
