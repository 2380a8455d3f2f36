"""Soft expectation maximisation on a GPU: the twin of `mpipar.cryoem.posterior`.

All orientations and shifts of some images are multiplied at once, and nothing is left out: neither
are slices written as sums of patterns nor orientations of little weight dropped. The products for
the log-likelihoods may be rounded (TF32), which makes each wrong by a thousandth of a normal
deviate or so; the sums of images are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem.alignment import Poses, shift_grid
from mpipar.cryoem.device.device_alignment import ALIGNED, slices_of
from mpipar.cryoem.device.device_images import THREADS
from mpipar.cryoem.device.device_memory import SOFT_ROWS
from mpipar.cryoem.fourier import OVERSAMPLING
from mpipar.cryoem.posterior import SoftPoses, log_prior
from mpipar.cryoem.reconstruction import UNIT, sums_shape
from mpipar.cryoem.rotations import HALF_TURN
from mpipar.kernels.device import device_pose_weights
from mpipar.kernels.device.device_code import blocks_for, launch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.cryoem.device.device_alignment import DeviceReference
    from mpipar.cryoem.device.device_images import DeviceComponents
    from mpipar.cryoem.posterior import SoftPlan
    from mpipar.cryoem.reconstruction import FixedPoint


@dataclass(frozen=True)
class DeviceExpectation:
    """A block of images in all their poses: see `posterior.Expectation`.

    values      (3, m, k) float32, k >= v: of all orientations
    explained   (w,) float64
    """

    found: SoftPoses
    values: Any
    explained: Any


@dataclass(frozen=True)
class _Weights:
    """The weights of all poses of some images, relative to the best pose of each.

    first, second   (b, s, m) of each orientation and of the half-turned one, at each shift
    sums            (b, 2, m) these summed over shifts
    largest         (b,) log-likelihood and logarithm of the prior of the best pose
    totals          (b,) float64: all weights of an image, added up
    """

    first: Any
    second: Any
    sums: Any
    largest: Any
    totals: Any


class DevicePosterior:
    """The twin of `posterior.GridPosterior`; the slices stay on the device.

    shifts   (s, 2) of the grid, pixels
    """

    def __init__(
        self,
        reference: DeviceReference,
        orientations: NDArray[np.float32],
        plan: SoftPlan,
        wanted: DeviceComponents,
    ) -> None:
        """Take the slices of the reference: see GridPosterior."""
        self._on = on = reference.accelerator
        self._plan, self._wanted, self._box = plan, wanted, reference.box
        self._orientations = on.to_device(np.asarray(orientations, np.float32))
        self._count = wanted.host.within(plan.radius)
        self._width = -(-len(wanted.frequencies) // ALIGNED) * ALIGNED
        inner = wanted.frequencies[: self._count]
        slices = slices_of(reference, self._orientations, inner, self._width)
        slices[:, 0] = 0.0  # zero frequency holds the background's offset, not the particle
        self._real = on.xp.ascontiguousarray(slices.real)
        self._imaginary = on.xp.ascontiguousarray(slices.imag)
        self._power = self._real**2 + self._imaginary**2
        self.shifts = shift_grid(plan.reach, plan.shift_step)
        self._grid = on.to_device(self.shifts)
        self._half_turn = on.to_device(HALF_TURN)
        self._prior = on.to_device(log_prior(self.shifts, plan.spread))

    def expect(self, data: Any, centres: Any) -> DeviceExpectation:
        """Return a block of images in all their poses: see GridPosterior.

        data      (b, v, 3) on the device
        centres   (b, 2) float64 likewise
        """
        xp = self._on.xp
        sums = xp.zeros((3, len(self._real), self._width), np.float32)
        size = max(1, SOFT_ROWS // len(self.shifts))
        parts = [
            self._expect_group(data[start : start + size], centres[start : start + size], sums)
            for start in range(0, len(data), size)
        ]
        found = [self._on.to_host(xp.concatenate(part)) for part in zip(*parts, strict=True)]
        rotations, shifts, score, peak, evidence, offset = found
        cross = self._real * sums[0] + self._imaginary * sums[1]
        explained = (np.float32(2.0) * cross - self._power * sums[2]).sum(axis=0, dtype=np.float64)
        poses = Poses(rotations, shifts, score)
        soft = SoftPoses(poses, peak, evidence, offset)
        return DeviceExpectation(soft, sums, explained[: self._count])

    def _expect_group(self, data: Any, centres: Any, sums: Any) -> tuple[Any, ...]:
        """Add some images to the sums (3, m, k); return what is known of each, as arrays."""
        xp = self._on.xp
        real, imaginary = self._rows(data, centres)
        weights = self._weights(data, real, imaginary)
        poses = self._poses(weights, centres)
        first, second = weights.first, weights.second
        launch(
            device_pose_weights.halve,
            blocks_for(first.size, THREADS),
            THREADS,
            (first, second, weights.totals),
        )
        columns = len(data) * len(self.shifts)
        sums[0] += xp.matmul(first.reshape(columns, -1).T, real)
        sums[1] += xp.matmul(second.reshape(columns, -1).T, imaginary)
        by_row = (weights.sums.sum(axis=1) / weights.totals[:, None]).astype(np.float32)
        count = data.shape[1]
        sums[2, :, :count] += xp.matmul(by_row.T, xp.ascontiguousarray(data[:, :, 2]))
        shares = first.sum(axis=2, dtype=np.float64)
        offset = shares @ (self._grid**2).sum(axis=1)
        evidence = weights.largest + xp.log(weights.totals) - math.log(2 * len(self._real))
        return (*poses, 1.0 / weights.totals, evidence, offset)

    def _rows(self, data: Any, centres: Any) -> tuple[Any, Any]:
        """Return real and imaginary parts of the images at all shifts, (b s, k) each."""
        xp, frequencies = self._on.xp, self._wanted.frequencies
        shape = (len(data) * len(self.shifts), self._width)
        real, imaginary = xp.zeros(shape, np.float32), xp.zeros(shape, np.float32)
        launch(
            device_pose_weights.move_images,
            blocks_for(shape[0] * len(frequencies), THREADS),
            THREADS,
            (data, centres, self._grid, frequencies, self._box, real, imaginary),
        )
        return real, imaginary

    def _weights(self, data: Any, real: Any, imaginary: Any) -> _Weights:
        """Return the weights of all poses of some images, given their rows."""
        xp, on = self._on.xp, self._on
        images, shifts = len(data), len(self.shifts)
        first = on.coarse_product(real, self._real.T).reshape(images, shifts, -1)
        second = on.coarse_product(imaginary, self._imaginary.T).reshape(images, shifts, -1)
        power = xp.ascontiguousarray(data[:, : self._count, 2])
        quadratic = xp.matmul(power, self._power[:, : self._count].T)
        highest = xp.empty((images, len(self._real)), np.float32)
        blocks = blocks_for(highest.size, THREADS)
        free = self._plan.free_scale
        arguments = (first, second, quadratic, self._prior, free, highest)
        launch(device_pose_weights.log_likelihoods, blocks, THREADS, arguments)
        largest = highest.max(axis=1)
        sums = xp.empty((images, 2, len(self._real)), np.float32)
        launch(device_pose_weights.exponentiate, blocks, THREADS, (first, second, largest, sums))
        return _Weights(first, second, sums, largest, sums.sum(axis=(1, 2), dtype=np.float64))

    def _poses(self, weights: _Weights, centres: Any) -> tuple[Any, Any, Any]:
        """Return the most probable orientations, whatever the shift, their best shifts, scores."""
        xp, count = self._on.xp, len(self._real)
        images = xp.arange(len(centres))
        best = weights.sums.reshape(len(centres), -1).argmax(axis=1)
        turned, place = best >= count, best % count
        by_shift = xp.where(
            turned[:, None], weights.second[images, :, place], weights.first[images, :, place]
        )
        shift = by_shift.argmax(axis=1)
        # the weight is exp(log-likelihood + prior - largest)
        score = weights.largest + xp.log(by_shift[images, shift]) - self._prior[shift]
        rotations = self._orientations[place].astype(np.float64)
        rotations = xp.where(turned[:, None, None], rotations @ self._half_turn, rotations)
        return rotations, centres + self._grid[shift], 0.5 * score.astype(np.float64)


class DeviceOrientationSums:
    """The twin of `reconstruction.OrientationSums`: whole numbers, on the device."""

    def __init__(
        self,
        accelerator: Accelerator,
        orientations: NDArray[np.floating],
        wanted: DeviceComponents,
        scales: FixedPoint,
    ) -> None:
        """Take a grid of orientations (m, 3, 3) and the components (v) that slices have."""
        self._on, self._wanted, self._scales = accelerator, wanted, scales
        self._orientations = accelerator.to_device(np.asarray(orientations, np.float64))
        shape = (3, len(orientations), len(wanted.frequencies))
        self._totals = accelerator.xp.zeros(shape, np.int64)

    def add(self, values: Any) -> None:
        """Add slices (3, m, k), k >= v, of all orientations."""
        pair = self._scales.value / UNIT, self._scales.weight / UNIT
        blocks = blocks_for(self._totals.size, THREADS)
        launch(device_pose_weights.add_whole, blocks, THREADS, (values, pair, self._totals))

    def inserted(self, radius: int) -> NDArray[np.int64]:
        """Return the sums of `empty_sums(radius)` with all slices inserted."""
        shape = sums_shape(radius)
        sums = self._on.xp.zeros(int(np.prod(shape)), np.int64)
        frequencies = self._wanted.frequencies
        launch(
            device_pose_weights.insert_whole,
            blocks_for(len(self._orientations) * len(frequencies), THREADS),
            THREADS,
            (
                self._totals,
                self._orientations,
                frequencies * np.float32(OVERSAMPLING),
                UNIT,
                (shape[0], shape[2]),
                sums,
            ),
        )
        return self._on.to_host(sums).reshape(shape)
