"""The references of the next iteration: one for each fold, a part of a half set, without that part.

A reference that an image is in shows some of that image's own noise, turned as the image was when
it was put in. So the image matches that pose best, right or wrong: with 600 images in a half set
the own noise outweighs what a weak image says of its orientation, and poses settle where they are
(Stewart & Grigorieff 2004 call it noise bias). Half sets alone do not help: each image is in the
reference of its own half. With folds no image ever meets its own noise.

References are solved in a box that is as small as their detail allows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

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
from mpipar.programs.fold_sums import LARGEST_SUMS, added_up, parts_of, sums_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.reconstruction import HalfSums
    from mpipar.programs.dataset import Dataset
    from mpipar.programs.fold_sums import FoldSums

ROOM: Final = 8
"""Shells beyond their detail that the box of references has room for: a soft mask mixes shells."""


def sums_are_folded(data: Dataset, radius: int) -> bool:
    """Return whether workers keep sums by fold that go out to `radius` cycles per box."""
    count = int(data.fold.max()) + 1
    return count > 1 and 2 * count * sums_bytes(radius) <= LARGEST_SUMS


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

    whole = [solved(half) for half in sums.halves]  # not at once: each takes much memory
    if not sums.parts:
        return np.stack([finished(whole[0].copy(), whole[1]), finished(whole[1], whole[0])])
    found = []
    for half, other in ((1, whole[1]), (2, whole[0])):
        total = added_up(sums.parts, half)
        found += [finished(without(total, part), other) for part in parts_of(sums.parts, half)]
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
