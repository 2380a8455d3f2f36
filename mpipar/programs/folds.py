"""The references of the next iteration: one for each fold, a part of a half set, without that part.

A reference that an image is in shows some of that image's own noise, turned as the image was when
it was put in. So the image matches that pose best, right or wrong: with 600 images in a half set
the own noise outweighs what a weak image says of its orientation, and poses settle where they are
(Stewart & Grigorieff 2004 call it noise bias). Half sets alone do not help: each image is in the
reference of its own half. With folds no image ever meets its own noise.

References are solved in a box that is as small as their detail allows.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import scipy.fft

from mpipar.cryoem import alignment, reconstruction
from mpipar.cryoem.fourier import (
    blend_shells,
    lowpass_gain,
    volume_of_transform,
    volume_transform,
)
from mpipar.cryoem.masks import soft_sphere
from mpipar.cryoem.resampling import resample_volume
from mpipar.cryoem.solvent import solvent_mask
from mpipar.programs.block_rows import MASK_EDGE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.cryoem.reconstruction import FixedPoint, HalfSums
    from mpipar.programs.dataset import Dataset
    from mpipar.runtime.stage import Sums

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGEST_SUMS: Final = 1e9
"""Bytes of the sums of all folds together; where they would be more, there is one fold."""
ROOM: Final = 8
"""Shells beyond their detail that the box of references has room for: a soft mask mixes shells."""


def sums_are_folded(data: Dataset, radius: int) -> bool:
    """Return whether workers keep sums by fold that go out to `radius` cycles per box."""
    count = int(data.fold.max()) + 1
    return count > 1 and 2 * count * sums_bytes(radius) <= LARGEST_SUMS


def sums_bytes(radius: int) -> float:
    """Return the bytes of one fold's sums out to `radius` cycles per box."""
    return 8.0 * math.prod(reconstruction.sums_shape(radius))


@dataclass(frozen=True)
class FoldSums:
    """What the workers have added up in an iteration.

    parts    whole numbers, by name, of each fold; empty, where there is one
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


def sums_of(data: Dataset, parts: Sums, scales: FixedPoint) -> FoldSums:
    """Add up the workers' sums of all folds.

    parts   whole numbers, by name; those that are not needed any longer are taken out
    """
    halves, box = [], data.geometry.box
    for half in (1, 2):
        total = added_up(parts, half)
        if f"half{half}" in parts:
            del parts[f"half{half}"]
        halves.append(reconstruction.half_sums(total, scales, data.symmetry, box))
    return FoldSums(parts, scales, (halves[0], halves[1]))


def added_up(sums: Mapping[str, NDArray[np.int64]], half: int) -> NDArray[np.int64]:
    """Return the sums of all folds of a half set."""
    total, *others = _parts(sums, half)
    for part in others:
        total = total + part
    return total


def _parts(sums: Mapping[str, NDArray[np.int64]], half: int) -> list[NDArray[np.int64]]:
    """Return the sums of each fold of a half set, in order."""
    name = f"half{half}"
    return [sums[key] for key in sorted(sums) if key.partition(".")[0] == name]


def reference_box(box: int, radius: int) -> int:
    """Return the box of references with detail out to `radius` cycles per box."""
    size = scipy.fft.next_fast_len(2 * (radius + ROOM), real=True)
    return min(box, size + size % 2)


def references_of(
    data: Dataset,
    sums: FoldSums,
    correlation: NDArray[np.float64],
    shells: tuple[int, int],
    mask_resolution: float | None,
) -> NDArray[np.float32]:
    """Return the references of all folds of half set 1, then of 2: (2 f, m, m, m).

    A fold's reference is solved from all others of its half set; from the half set itself, if that
    is one fold. It shares with the other half set what is coarser than the start's filter, so that
    they stay aligned to each other. What is finer is never shared: it would agree in both half maps
    even if the images were noise.

    correlation       of the half maps, for the Wiener term
    shells            cycles per box of the sums; the last shell that is resolved
    mask_resolution   A, of the map for a mask that is made from each reference itself. One that is
                      made from both, or before, would make them agree where there is nothing but
                      noise. None: the sphere, or the user's mask
    """
    radius, resolved = shells
    box = reference_box(data.geometry.box, radius)
    low = lowpass_gain(box, min(float(data.start_shell), resolved - 2.0))

    def solved(half: HalfSums) -> NDArray[np.complex64]:
        volume = reconstruction.solve(replace(half, box=box), correlation, radius)
        return volume_transform(volume)

    def without(total: NDArray[np.int64], part: NDArray[np.int64]) -> NDArray[np.complex64]:
        return solved(reconstruction.half_sums(total - part, sums.scales, data.symmetry, box))

    def finished(own: NDArray[np.complex64], other: NDArray[np.complex64]) -> NDArray[np.float32]:
        mask = _mask(data, own, box, mask_resolution)
        blend_shells(own, other, 0.5 * low)
        return volume_of_transform(own, box) * mask

    whole = for_both(solved, sums.halves)
    if not sums.parts:
        return np.stack([finished(whole[0].copy(), whole[1]), finished(whole[1], whole[0])])
    found = []
    for half, other in ((1, whole[1]), (2, whole[0])):
        total = added_up(sums.parts, half)
        found += [finished(without(total, part), other) for part in _parts(sums.parts, half)]
    return np.stack(found)


def _mask(
    data: Dataset, transform: NDArray[np.complex64], box: int, resolution: float | None
) -> NDArray[np.float32]:
    """Return the mask of a reference in its box, given the reference's transform."""
    full = data.geometry.box
    pixel_size = data.geometry.pixel_size * full / box
    if data.mask is not None:
        resampled = resample_volume(data.mask, data.geometry.pixel_size, pixel_size, box)
        return np.asarray(np.clip(resampled, 0.0, 1.0))
    smaller = box / full
    sphere = soft_sphere(box, data.geometry.radius * smaller, MASK_EDGE * smaller)
    if resolution is None:
        return sphere
    return solvent_mask(transform.copy(), sphere, pixel_size, resolution)


def transforms(references: NDArray[np.float32], radius: int) -> dict[str, NDArray[np.generic]]:
    """Return what workers slice: `reference1, reference2`, (f, d, d, h, 2), one for each fold."""
    count = len(references) // 2
    made = [alignment.make_reference(volume, radius).transform for volume in references]
    if count == 1:  # large ones are not copied
        return {"reference1": made[0][None], "reference2": made[1][None]}
    return {"reference1": np.stack(made[:count]), "reference2": np.stack(made[count:])}
