"""Soft expectation maximisation over a grid: each image is back-projected in all its poses.

The posterior probability of a pose (orientation and shift) of an image is proportional to
exp(2 cross - quadratic) times the prior of the shift, with the terms of `alignment`'s score.
Nothing is pruned before the weights are known: the log-likelihoods of all poses are matrix
products, and so is the sum of all images with these weights. So orientations, not images, are
inserted.

The slice half a turn in the image plane away is the complex conjugate. So the products of the real
and of the imaginary parts, added and subtracted, serve two orientations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem.alignment import Poses, Reference, joined, phases, shift_grid, slices_of
from mpipar.kernels import pose_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.fourier import Components

COLUMNS_PER_PRODUCT: Final = 512
ROWS_PER_PRODUCT: Final = 1024
"""Shape of one matrix product: its two results stay in the processor's cache while they are turned
into log-likelihoods."""
HALF_TURN: Final = np.diag([-1.0, -1.0, 1.0])
NEGLIGIBLE: Final = 0.03
"""An orientation is not back-projected for a group of images if each gives it less than this
fraction of an even weight. So an image loses at most this fraction of its weight."""


@dataclass(frozen=True)
class SoftPlan:
    """The grid of one soft iteration.

    radius             cycles per box of the components that tell poses
    insertion_radius   cycles per box of the components that are back-projected
    step               degrees between orientations
    reach              largest shift, pixels
    shift_step         pixels between shifts
    spread             standard deviation of the prior of a shift along one axis, pixels
    free_scale         whether the grey scale of the reference is fitted to each image and pose
    """

    radius: int
    insertion_radius: int
    step: float
    reach: float
    shift_step: float
    spread: float
    free_scale: bool


@dataclass(frozen=True)
class SoftPoses:
    """What the posterior of each image says.

    poses      (b,) the most probable orientation, whatever the shift, and its best shift; the
               score is the pose's log-likelihood as in `alignment`: cross - quadratic / 2
    peak       (b,) probability of the most probable pose
    evidence   (b,) log-likelihood ratio of the reference in an unknown pose to no particle at all
    offset     (b,) posterior mean of the squared shift, pixels^2
    """

    poses: Poses
    peak: NDArray[np.float64]
    evidence: NDArray[np.float64]
    offset: NDArray[np.float64]


@dataclass(frozen=True)
class Expectation:
    """A block of images in all their poses.

    found       what is known of each image
    rotations   (r, 3, 3) orientations of the grid that have weight
    values      (r, v, 3) float32: the sums over images and shifts, weighted by the posterior, of
                CTF X / noise (real, imaginary part) and CTF^2 / noise
    explained   (w,) sum over images of the expected power that the reference explains, over noise;
                for the components that tell poses
    """

    found: SoftPoses
    rotations: NDArray[np.float64]
    values: NDArray[np.float32]
    explained: NDArray[np.float64]


class GridPosterior:
    """The posterior over a grid of orientations and shifts, for blocks of images."""

    def __init__(
        self,
        reference: Reference,
        orientations: NDArray[np.float32],
        plan: SoftPlan,
        wanted: Components,
    ) -> None:
        """Take the slices of the reference.

        orientations   (m, 3, 3); the half-turned ones are understood
        wanted         components out to plan.insertion_radius
        """
        self._plan, self._wanted, self._box = plan, wanted, reference.box
        self._orientations = orientations
        self._count = wanted.within(plan.radius)
        flat = slices_of(reference, orientations, wanted.frequencies[: self._count])
        flat[:, :2] = 0.0  # zero frequency holds the background's offset, not the particle
        self._real = np.ascontiguousarray(flat[:, 0::2])
        self._imaginary = np.ascontiguousarray(flat[:, 1::2])
        self._power = self._real**2 + self._imaginary**2
        self._grid = shift_grid(plan.reach, plan.shift_step)
        self._prior = log_prior(self._grid, plan.spread)

    def expect(self, data: NDArray[np.float32], centres: NDArray[np.float64]) -> Expectation:
        """Return a block of images in all their poses.

        data      (b, v, 3) from `alignment.weigh`
        centres   (b, 2) shifts in pixels about which the grid of shifts lies
        """
        group = max(1, COLUMNS_PER_PRODUCT // len(self._grid))
        m, v = len(self._real), data.shape[1]
        sums = np.zeros((2, m, v), np.float32)
        weights = np.zeros((m, v), np.float32)
        found = []
        for first in range(0, len(data), group):
            part = slice(first, first + group)
            found.append(self._expect_group(data[part], centres[part], sums, weights))
        rows = np.flatnonzero(weights.any(axis=1))
        values = np.stack([sums[0, rows], sums[1, rows], weights[rows]], axis=2)
        known = values[:, : self._count]
        cross = self._real[rows] * known[..., 0] + self._imaginary[rows] * known[..., 1]
        power = self._power[rows] * known[..., 2]
        explained = (2.0 * cross - power).sum(axis=0, dtype=np.float64)
        rotations = self._orientations[rows].astype(np.float64)
        return Expectation(_joined(found), rotations, values, explained)

    def evidence(
        self, data: NDArray[np.float32], centres: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the evidence (b,) of `SoftPoses` alone, for images as in `expect`."""
        group = max(1, COLUMNS_PER_PRODUCT // len(self._grid))
        parts = []
        for first in range(0, len(data), group):
            part = data[first : first + group]
            columns = self._columns(part, centres[first : first + group])
            own, turned, largest = self._log_likelihoods(part, columns)
            by_row, totals = self._weights(own, turned, largest)
            parts.append(evidence_of(largest, totals, by_row.shape[1]))
        return np.concatenate(parts)

    def _weights(
        self, first: NDArray[np.float32], second: NDArray[np.float32], largest: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Make log-likelihoods weights; return these by orientation (2, m, b), and all, (b,)."""
        by_row = np.empty((2, len(first), len(largest)), np.float32)
        totals = np.zeros(len(largest))
        high = np.repeat(largest, len(self._grid))
        pose_weights.exponentiate(first, second, high, by_row[0], by_row[1], totals)
        return by_row, totals

    def _expect_group(
        self,
        data: NDArray[np.float32],
        centres: NDArray[np.float64],
        sums: NDArray[np.float32],
        weights: NDArray[np.float32],
    ) -> SoftPoses:
        """Add a group of images to the sums and weights of each orientation."""
        columns = self._columns(data, centres)
        first, second, largest = self._log_likelihoods(data, columns)
        by_row, totals = self._weights(first, second, largest)
        by_row /= totals.astype(np.float32)
        either = by_row[0] + by_row[1]
        rows = np.flatnonzero(either.max(axis=1) >= NEGLIGIBLE / (2 * len(first)))
        scale = np.repeat(1.0 / totals, len(self._grid)).astype(np.float32)
        own, turned = first[rows] * scale, second[rows] * scale
        sums[0, rows] += (own + turned) @ columns[0].T
        sums[1, rows] += (own - turned) @ columns[1].T
        weights[rows] += either[rows] @ data[:, :, 2]
        return self._found(by_row, first, second, (largest, totals), centres)

    def _columns(
        self, data: NDArray[np.float32], centres: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Return real and imaginary parts of the images at all shifts, (2, v, b s)."""
        images = (data[..., 0] + np.complex64(1j) * data[..., 1])[:, None, :]
        shifts = centres[:, None, :] + self._grid[None]
        moved = images * phases(shifts, self._wanted.frequencies, self._box)
        flat = moved.reshape(-1, moved.shape[2]).T
        return np.stack([flat.real, flat.imag])

    def _log_likelihoods(
        self, data: NDArray[np.float32], columns: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return those of all orientations (m, b s), of the half-turned ones, the largest (b,)."""
        m, b = len(self._real), len(data)
        first = np.empty((m, columns.shape[2]), np.float32)
        second = np.empty_like(first)
        largest = np.full(b, -np.inf, np.float32)
        prior = np.tile(self._prior, b)
        count = self._count
        power = np.ascontiguousarray(data[:, :count, 2].T)
        for start in range(0, m, ROWS_PER_PRODUCT):
            part = slice(start, start + ROWS_PER_PRODUCT)
            np.matmul(self._real[part], columns[0, :count], out=first[part])
            np.matmul(self._imaginary[part], columns[1, :count], out=second[part])
            quadratic = self._power[part] @ power
            pose_weights.log_likelihoods(
                first[part], second[part], quadratic, prior, self._plan.free_scale, largest
            )
        return first, second, largest

    def _found(
        self,
        by_row: NDArray[np.float32],
        first: NDArray[np.float32],
        second: NDArray[np.float32],
        high: tuple[NDArray[np.float32], NDArray[np.float64]],
        centres: NDArray[np.float64],
    ) -> SoftPoses:
        """Return what the weights say of each image."""
        largest, totals = high
        b, s = len(totals), len(self._grid)
        images = np.arange(b)
        turned, row = np.divmod(by_row.reshape(-1, b).argmax(axis=0), len(first))
        weights = np.where(
            turned[:, None] > 0,
            second.reshape(-1, b, s)[row, images],
            first.reshape(-1, b, s)[row, images],
        )
        best = weights.argmax(axis=1)
        # the weight is exp(log-likelihood + prior - largest)
        score = largest + np.log(weights[images, best]) - self._prior[best]
        rotations = self._orientations[row].astype(np.float64)
        rotations[turned > 0] = rotations[turned > 0] @ HALF_TURN
        squared = (self._grid**2).sum(axis=1)
        shares = np.zeros((b, s))
        for weight in (first, second):
            shares += weight.reshape(-1, b, s).sum(axis=0)
        offset = (shares / totals[:, None]) @ squared
        evidence = evidence_of(largest, totals, len(first))
        poses = Poses(rotations, centres + self._grid[best], 0.5 * score.astype(np.float64))
        return SoftPoses(poses, 1.0 / totals, evidence, offset)


def log_prior(grid: NDArray[np.float64], spread: float) -> NDArray[np.float32]:
    """Return the logarithm of the prior probability (s,) of shifts: a Gaussian, on a grid."""
    exponent = -(grid**2).sum(axis=1) / (2.0 * spread**2)
    return np.asarray(exponent - math.log(np.exp(exponent).sum()), np.float32)


def evidence_of(
    largest: NDArray[np.float32], totals: NDArray[np.float64], rows: int
) -> NDArray[np.float64]:
    """Return the log-likelihood ratio (b,): the mean over all orientations, each as likely."""
    return np.asarray(largest + np.log(totals) - math.log(2 * rows))


def _joined(parts: list[SoftPoses]) -> SoftPoses:
    names = ("peak", "evidence", "offset")
    rest = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
    return SoftPoses(joined(*(part.poses for part in parts)), *rest)
