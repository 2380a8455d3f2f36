"""The search for poses on a GPU: the twin of `mpipar.cryoem.alignment`, for whole blocks at once.

A few things are done in another way. Products of the grid search may be rounded (TF32). The walk
over the best orientations ends with the list of all, not of the best 960. Sums are added in another
order. So poses agree with the processor's but for rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem.alignment import (
    SURVIVORS_BEHIND,
    Poses,
    SearchPlan,
    climb_options,
    shift_grid,
)
from mpipar.cryoem.device.device_images import THREADS
from mpipar.cryoem.device.device_memory import ROWS_PER_PRODUCT
from mpipar.cryoem.fourier import OVERSAMPLING
from mpipar.kernels.device import device_climb, device_scores, device_slices
from mpipar.kernels.device.device_code import blocks_for, launch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.cryoem.device.device_images import DeviceComponents

ALIGNED = 8
"""Components are padded to a multiple of it: the units for TF32 read whole groups of 16 bytes."""
FEW_COMPONENTS = 1024
"""Up to so many components, fewer threads climb from each pose, so that more poses fit a GPU."""
FEW_THREADS, MANY_THREADS = 64, 128
NEAR_ANGLE, NEAR_DISTANCE = 0.5, 0.25
"""Degrees and pixels, as in `alignment.distinct`."""


@dataclass(frozen=True)
class DeviceReference:
    """A reference on a device.

    flat    the transform (d, d, h, 2) float32 as one flat array
    shape   d, h
    box     pixels along each side of the volume
    """

    accelerator: Accelerator
    flat: Any
    shape: tuple[int, int]
    box: int


def reference_on(
    accelerator: Accelerator, transform: NDArray[np.float32], box: int
) -> DeviceReference:
    """Copy the transform of a `Reference` to the device."""
    flat = accelerator.to_device(transform).reshape(-1)
    return DeviceReference(accelerator, flat, (transform.shape[0], transform.shape[2]), box)


def slices_of(
    reference: DeviceReference, rotations: Any, frequencies: Any, width: int | None = None
) -> Any:
    """Return central slices, (m, v) complex64, at frequencies (v, 2) in cycles per box.

    width  if given, so many components are returned of each; those beyond v are 0
    """
    xp = reference.accelerator.xp
    out = xp.zeros((len(rotations), width or len(frequencies), 2), np.float32)
    launch(
        device_slices.extract_slices,
        blocks_for(len(rotations) * len(frequencies), THREADS),
        THREADS,
        (
            reference.flat,
            reference.shape,
            rotations.astype(np.float32),
            frequencies * np.float32(OVERSAMPLING),
            out,
        ),
    )
    return out.view(np.complex64)[..., 0]


@dataclass
class DevicePoses:
    """Poses on the device, of any shape.

    rotations  (..., 3, 3) float64
    shifts     (..., 2) float64
    score      (...) float64
    owners     (...) int32: the row of the block's data that each pose is for; -1: no pose
    curvature  (..., 5, 5) float64: how fast the score falls, see `alignment.Peaks`; 0 before a
               climb
    """

    rotations: Any
    shifts: Any
    score: Any
    owners: Any
    curvature: Any

    @classmethod
    def of(cls, xp: Any, rotations: Any, shifts: Any, owners: Any) -> Self:
        """Return poses that nothing is known of yet."""
        shape = owners.shape
        return cls(rotations, shifts, xp.zeros(shape), owners, xp.zeros((*shape, 5, 5)))

    def taken(self, places: tuple[Any, ...]) -> Self:
        """Return the poses at some places."""
        names = ("rotations", "shifts", "score", "owners", "curvature")
        return type(self)(*(getattr(self, name)[places] for name in names))


class DeviceGridSearch:
    """The twin of `alignment.GridSearch`; the slices stay on the device."""

    def __init__(
        self,
        reference: DeviceReference,
        orientations: NDArray[np.float32],
        plan: SearchPlan,
        wanted: DeviceComponents,
    ):
        self._accelerator = accelerator = reference.accelerator
        self._plan = plan
        self._box = reference.box
        self._orientations = accelerator.to_device(np.asarray(orientations, np.float32))
        self._frequencies = wanted.frequencies[: wanted.host.within(plan.coarse_radius)]
        self._width = -(-len(self._frequencies) // ALIGNED) * ALIGNED
        slices = slices_of(reference, self._orientations, self._frequencies, self._width)
        self._slices = slices.view(np.float32)
        self._power = slices.real**2 + slices.imag**2
        self._grid = accelerator.to_device(shift_grid(plan.shift_range, plan.shift_step))

    def best_candidates(self, data: Any, centres: Any) -> DevicePoses:
        """Return the best orientations of each image, (b, k), best first, with their shifts.

        data     (b, v, 3) from `weigh`
        centres  (b, 2) shifts in pixels about which to search
        """
        xp, plan = self._accelerator.xp, self._plan
        score, which = self._score(data, centres)
        picks = xp.empty((len(data), plan.candidates), np.int32)
        same = 1.0 + 2.0 * math.cos(math.radians(1.2 * plan.step))
        launch(
            device_scores.pick_distinct,
            len(data),
            device_scores.PICKERS,
            (score, self._orientations, same, picks),
        )
        kept = xp.maximum(picks, 0)
        rotations = self._orientations[kept].astype(np.float64)
        moves = self._grid[xp.take_along_axis(which, kept, axis=1).astype(np.int64)]
        shifts = xp.ascontiguousarray(centres[:, None, :] + moves)
        rows = xp.arange(len(data), dtype=np.int32)[:, None]
        return DevicePoses.of(xp, rotations, shifts, either(xp, picks, rows))

    def _score(self, data: Any, centres: Any) -> tuple[Any, Any]:
        """Return the score (b, o) of each orientation at its best shift, and that shift's index."""
        xp, shifts = self._accelerator.xp, len(self._grid)
        images, count = len(data), len(self._frequencies)
        rows = xp.zeros((images, shifts, self._width, 2), np.float32)
        launch(
            device_scores.shift_images,
            blocks_for(images * shifts * count, THREADS),
            THREADS,
            (data, centres, self._grid, self._frequencies, self._box, rows),
        )
        power = xp.zeros((images, self._width), np.float32)
        power[:, :count] = data[:, :count, 2]
        quadratic = self._accelerator.coarse_product(power, self._power.T)
        score = xp.empty((images, len(self._slices)), np.float32)
        which = xp.empty(score.shape, np.int16)
        group = max(1, ROWS_PER_PRODUCT // shifts)
        for start in range(0, images, group):
            part = slice(start, start + group)
            self._best_shifts(rows[part], quadratic[part], score[part], which[part])
        return score, which

    def _best_shifts(self, rows: Any, quadratic: Any, score: Any, which: Any) -> None:
        """Fill score and best shift of some images from their data at each shift (b, s, k, 2)."""
        images, shifts = rows.shape[:2]
        products = self._accelerator.coarse_product(
            rows.reshape(images * shifts, -1), self._slices.T
        )
        launch(
            device_scores.best_over_shifts,
            blocks_for(score.size, THREADS),
            THREADS,
            (
                products.reshape(images, shifts, -1),
                quadratic,
                self._plan.free_scale,
                score,
                which,
            ),
        )


def either(xp: Any, picks: Any, rows: Any) -> Any:
    """Return rows where something was picked, else -1; int32."""
    return xp.where(picks >= 0, rows, np.int32(-1))


def climb(
    reference: DeviceReference,
    wanted: DeviceComponents,
    data: Any,
    start: DevicePoses,
    plan: SearchPlan,
    depth: tuple[int, int],
) -> None:
    """Improve poses in place, as `alignment.climb`, all at once; they keep their order.

    data    (b, w, 3) of the images
    start   where there is no pose, its score becomes -infinity
    """
    radius, steps = depth
    count = wanted.host.within(radius)
    options = climb_options(plan, reference.box, steps)
    threads = FEW_THREADS if count <= FEW_COMPONENTS else MANY_THREADS
    launch(
        device_climb.climb,
        start.owners.size,
        threads,
        (
            (reference.flat, *reference.shape),
            wanted.frequencies[:count],
            data,
            start.owners.reshape(-1),
            options,
            radius,
            (start.rotations.reshape(-1, 3, 3), start.shifts.reshape(-1, 2)),
            start.score.reshape(-1),
            start.curvature.reshape(-1, 5, 5),
        ),
        device_climb.shared_bytes(radius, threads),
    )


def find_poses(
    reference: DeviceReference,
    wanted: DeviceComponents,
    data: Any,
    previous: Poses,
    plan: SearchPlan,
    search: tuple[DeviceGridSearch, NDArray[np.bool_]] | None,
) -> DevicePoses:
    """Find the poses that fit each image best, (b, n): the twin of `alignment.find_poses`.

    They are in the order in which their climbs began.
    """
    accelerator = reference.accelerator
    xp, images = accelerator.xp, len(data)
    searched = np.zeros(images, bool) if search is None else search[1]
    places = plan.survivors + 1 if searched.any() else 1
    starts = DevicePoses.of(
        xp,
        xp.zeros((images, places, 3, 3)),
        xp.zeros((images, places, 2)),
        xp.full((images, places), -1, np.int32),
    )
    if search is not None and searched.any():
        which = np.flatnonzero(searched).astype(np.int32)
        tops = survivors(reference, wanted, data, previous.shifts[which], plan, (search[0], which))
        rows = accelerator.to_device(which)
        for name in ("rotations", "shifts", "owners"):
            getattr(starts, name)[rows, : plan.survivors] = getattr(tops, name)
    usable = np.flatnonzero(np.isfinite(previous.score) | ~searched).astype(np.int32)
    rows = accelerator.to_device(usable)
    starts.owners[rows, -1] = rows
    starts.rotations[:, -1] = accelerator.to_device(previous.rotations)
    starts.shifts[:, -1] = accelerator.to_device(previous.shifts)
    climb(reference, wanted, data, starts, plan, (plan.radius, 10))
    return starts


def best_of(xp: Any, found: DevicePoses) -> DevicePoses:
    """Return the best pose (b) of each image of those found (b, n); of equals the first."""
    best = xp.empty(len(found.score), np.int32)
    blocks = blocks_for(len(best), THREADS)
    launch(device_scores.best_of_starts, blocks, THREADS, (found.score, best))
    return found.taken((xp.arange(len(best)), best))


def survivors(
    reference: DeviceReference,
    wanted: DeviceComponents,
    data: Any,
    centres: NDArray[np.float64],
    plan: SearchPlan,
    search: tuple[DeviceGridSearch, NDArray[np.int32]],
) -> DevicePoses:
    """Search the grid, climb from its candidates, and return the best of each image, (r, n).

    centres  (r, 2) shifts about which to search
    search   the search, and the rows of `data` (r,) that need it
    """
    accelerator, which = reference.accelerator, search[1]
    xp, rows = accelerator.xp, accelerator.to_device(which)[:, None]
    found = search[0].best_candidates(data[rows[:, 0]], accelerator.to_device(centres))
    found.owners = either(xp, found.owners, rows)
    climb(reference, wanted, data, found, plan, (plan.middle_radius, 4))
    kept = xp.empty((len(which), plan.survivors), np.int32)
    limits = (8.0 * math.sin(math.radians(NEAR_ANGLE) / 2) ** 2, NEAR_DISTANCE**2, SURVIVORS_BEHIND)
    launch(
        device_scores.keep_best,
        blocks_for(len(which), FEW_THREADS),
        FEW_THREADS,
        (found.rotations, found.shifts, found.score, limits, kept),
    )
    best = found.taken((xp.arange(len(which))[:, None], xp.maximum(kept, 0)))
    best.owners = either(xp, kept, rows)
    return best
