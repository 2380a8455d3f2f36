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

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem import alignment
from mpipar.cryoem.alignment import Poses, Reference, joined, phases, shift_grid, slices_of
from mpipar.cryoem.rotations import HALF_TURN
from mpipar.kernels import pose_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.cryoem.fourier import Components

COLUMNS_PER_PRODUCT: Final = 512
ROWS_PER_PRODUCT: Final = 1024
"""Shape of one matrix product: its two results stay in the processor's cache while they are turned
into log-likelihoods."""
LOST: Final = 2e-3
"""Power over noise that the slices of an orientation may lose when all are written as sums of a few
patterns. Noise in an image makes log-likelihoods wrong by 1.4 times its square root at most, that
is by 0.06 times a normal deviate; CTFs and the mean over orientations make that 0.03."""
LOST_OF_ONE: Final = 1e-5
"""The same as a fraction of the slices' power, where the grey scale is free."""
MOST_PATTERNS: Final = 0.8  # per component; with more, the slices themselves are multiplied
SAMPLED: Final = 8  # one slice of so many is looked at to find out how many patterns are needed
LOST_WEIGHT: Final = 5e-5
"""Share of the power of flat posteriors that is lost when these are written as sums of a few
patterns of shifts: less than a hundredth of the weights, as a deviate."""
WEIGHTS_SAMPLED: Final = 8
"""One orientation of so many is looked at to find these patterns. A posterior is flat if these
orientations are more than there are shifts, even of the likeliest ones alone."""
FEWER: Final = 0.6  # patterns per shift; with more, the weights themselves are multiplied
NEGLIGIBLE: Final = 0.03
"""An orientation is not back-projected for an image, or for none of a group, if each gives it less
than this fraction of an even weight. So an image loses at most this fraction of its weight."""
OWN_ROWS: Final = 0.25
"""Images are back-projected one by one, each in its own orientations, if these are less than this
fraction of those of the group."""


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
    rows        (r,) numbers of the orientations of the grid that have weight
    values      (3, r, v) float32: the sums over images and shifts, weighted by the posterior, of
                CTF X / noise (real, imaginary part) and CTF^2 / noise
    explained   (w,) sum over images of the expected power that the reference explains, over noise;
                for the components that tell poses
    """

    found: SoftPoses
    rows: NDArray[np.int64]
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
        weights: NDArray[np.float32],
    ) -> None:
        """Take the slices of the reference.

        orientations   (m, 3, 3); the half-turned ones are understood
        wanted         components out to plan.insertion_radius
        weights        (v,) 1 / noise of these
        """
        self._plan, self._wanted, self._box = plan, wanted, reference.box
        self._orientations = orientations
        self._count = wanted.within(plan.radius)
        flat = slices_of(reference, orientations, wanted.frequencies[: self._count])
        flat[:, :2] = 0.0  # zero frequency holds the background's offset, not the particle
        self._real = np.ascontiguousarray(flat[:, 0::2])
        self._imaginary = np.ascontiguousarray(flat[:, 1::2])
        self._power = self._real**2 + self._imaginary**2
        known = weights[: self._count]
        lost = LOST * np.ones(len(flat))
        if plan.free_scale:
            lost = LOST_OF_ONE * (self._power @ known)
        self._factors = [compressed(part, known, lost) for part in (self._real, self._imaginary)]
        self._grid = shift_grid(plan.reach, plan.shift_step)
        self._prior = log_prior(self._grid, plan.spread)

    def expect(self, data: NDArray[np.float32], centres: NDArray[np.float64]) -> Expectation:
        """Return a block of images in all their poses.

        data      (b, v, 3) from `alignment.weigh`
        centres   (b, 2) shifts in pixels about which the grid of shifts lies
        """
        m, v = len(self._real), data.shape[1]
        sums = np.zeros((3, m, v), np.float32)
        groups = self._groups(len(data))
        found = [self._expect_group(data[part], centres[part], sums) for part in groups]
        rows = np.flatnonzero(sums[2].any(axis=1))
        values = sums if len(rows) == m else np.ascontiguousarray(sums[:, rows])
        explained = np.zeros(self._count)
        pose_weights.explain(values, rows, self._real, self._imaginary, self._power, explained)
        return Expectation(_joined(found), rows, values, explained)

    def evidence(
        self, data: NDArray[np.float32], centres: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the evidence (b,) of `SoftPoses` alone, for images as in `expect`."""
        parts = []
        for part in self._groups(len(data)):
            columns = self._columns(data[part], centres[part])
            parts.append(self._weights(data[part], columns).evidence(len(self._real)))
        return np.concatenate(parts)

    def _groups(self, count: int) -> list[slice]:
        """Cut a block of images into those that are multiplied at once."""
        groups = math.ceil(count / max(1, COLUMNS_PER_PRODUCT // len(self._grid)))
        ends = np.linspace(0, count, groups + 1).astype(int).tolist()
        return [slice(*pair) for pair in itertools.pairwise(ends)]

    def _expect_group(
        self, data: NDArray[np.float32], centres: NDArray[np.float64], sums: NDArray[np.float32]
    ) -> SoftPoses:
        """Add a group of images to the sums of each orientation, (3, m, v)."""
        columns = self._columns(data, centres)
        weights = self._weights(data, columns)
        poses = self._poses(weights, centres)
        by_row = np.empty((len(weights.rows), len(data)), np.float32)
        shares = np.zeros(columns.shape[2])
        least = np.float32(NEGLIGIBLE / (2 * len(self._real)))
        first, second, rows, totals = weights.first, weights.second, weights.rows, weights.totals
        count = pose_weights.halve(first, second, rows, weights.sums, totals, least, by_row, shares)
        self._add(
            (first[:count], second[:count], by_row[:count]),
            rows[:count],
            (columns[0], columns[1], np.ascontiguousarray(data[:, :, 2].T)),
            sums,
        )
        offset = shares.reshape(len(data), -1) @ (self._grid**2).sum(axis=1)
        return SoftPoses(poses, 1.0 / totals, weights.evidence(len(self._real)), offset)

    def _add(
        self,
        weights: tuple[NDArray[np.float32], ...],
        rows: NDArray[np.int64],
        columns: tuple[NDArray[np.float32], ...],
        sums: NDArray[np.float32],
    ) -> None:
        """Add a group of images, with their weights in some rows, to the sums (3, m, v).

        weights   of real parts and imaginary parts (n, b s), and of contrast (n, b)
        columns   these: (v, b s) twice, and (v, b)
        """
        (first, second, by_row), (real, imaginary, contrast) = weights, columns
        kept = by_row >= NEGLIGIBLE / (2 * len(self._real))
        if np.count_nonzero(kept) < OWN_ROWS * kept.size:
            for b, own in enumerate(kept.T):
                of = slice(b * len(self._grid), (b + 1) * len(self._grid))
                chosen = np.flatnonzero(own)
                parts = first[chosen, of], second[chosen, of], by_row[chosen, b : b + 1]
                patterns = real[:, of], imaginary[:, of], contrast[:, b : b + 1]
                _add_products(parts, rows[chosen], patterns, sums)
            return
        if by_row.max() * WEIGHTS_SAMPLED * len(self._grid) < 1.0:
            first, real = self._fewer(first, real)
            second, imaginary = self._fewer(second, imaginary)
        _add_products((first, second, by_row), rows, (real, imaginary, contrast), sums)

    def _fewer(
        self, weights: NDArray[np.float32], columns: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Write weights (n, b s) as amounts (n, b r) of fewer sums (v, b r) of columns (v, b s).

        Where no orientation of an image is much likelier than others, all have similar shifts.
        """
        s = len(self._grid)
        patterns = principal(weights.reshape(len(weights), -1, s)[::WEIGHTS_SAMPLED])
        if len(patterns) > FEWER * s:
            return weights, columns
        amounts = weights.reshape(-1, s) @ patterns.T
        sums = columns.reshape(-1, s) @ patterns.T
        return amounts.reshape(len(weights), -1), sums.reshape(len(columns), -1)

    def _columns(
        self, data: NDArray[np.float32], centres: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Return real and imaginary parts of the images at all shifts, (2, v, b s)."""
        images = (data[..., 0] + np.complex64(1j) * data[..., 1])[:, None, :]
        shifts = centres[:, None, :] + self._grid[None]
        moved = images * phases(shifts, self._wanted.frequencies, self._box)
        flat = moved.reshape(-1, moved.shape[2]).T
        return np.stack([flat.real, flat.imag])

    def _weights(self, data: NDArray[np.float32], columns: NDArray[np.float32]) -> PoseWeights:
        """Return the weights of all orientations that have any, for a group of images."""
        m, b = len(self._real), len(data)
        rows = np.empty(m, np.int64)
        first = np.empty((m, columns.shape[2]), np.float32)
        second = np.empty_like(first)
        largest = np.full(b, -np.inf, np.float32)
        highest = np.empty((m, b), np.float32)
        prior = np.tile(self._prior, b)
        power = np.ascontiguousarray(data[:, : self._count, 2].T)
        (real, real_patterns), (imaginary, imaginary_patterns) = self._factors
        moved = real_patterns @ columns[0, : self._count]
        turned = imaginary_patterns @ columns[1, : self._count]
        count = 0
        for start in range(0, m, ROWS_PER_PRODUCT):
            part = slice(start, start + ROWS_PER_PRODUCT)
            one, two, high = real[part] @ moved, imaginary[part] @ turned, highest[part]
            quadratic = self._power[part] @ power
            pose_weights.log_likelihoods(one, two, quadratic, prior, self._plan.free_scale, high)
            count = pose_weights.keep_likely(
                one, two, high, largest, start, rows, first, second, count
            )
        totals = np.zeros(b)
        sums = np.empty((2, count, b), np.float32)
        count = pose_weights.exponentiate(
            first, second, rows[:count], highest, largest, sums, totals
        )
        sums = np.ascontiguousarray(sums[:, :count])
        return PoseWeights(rows[:count], first[:count], second[:count], sums, largest, totals)

    def _poses(self, weights: PoseWeights, centres: NDArray[np.float64]) -> Poses:
        """Return the most probable poses."""
        b, s = len(centres), len(self._grid)
        images = np.arange(b)
        turned, place = np.divmod(weights.sums.reshape(-1, b).argmax(axis=0), len(weights.rows))
        by_shift = np.where(
            turned[:, None] > 0,
            weights.second.reshape(-1, b, s)[place, images],
            weights.first.reshape(-1, b, s)[place, images],
        )
        best = by_shift.argmax(axis=1)
        # the weight is exp(log-likelihood + prior - largest)
        score = weights.largest + np.log(by_shift[images, best]) - self._prior[best]
        rotations = self._orientations[weights.rows[place]].astype(np.float64)
        rotations[turned > 0] = rotations[turned > 0] @ HALF_TURN
        return Poses(rotations, centres + self._grid[best], 0.5 * score.astype(np.float64))


@dataclass(frozen=True)
class PoseWeights:
    """The weights of poses of a group of images, relative to the best pose of each.

    rows            (n,) numbers of the orientations that have weight
    first, second   (n, b s) those of the orientation and of the half-turned one, at each shift
    sums            (2, n, b) these summed over shifts
    largest         (b,) log-likelihood and logarithm of the prior of the best pose
    totals          (b,) all weights of an image, added up
    """

    rows: NDArray[np.int64]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    sums: NDArray[np.float32]
    largest: NDArray[np.float32]
    totals: NDArray[np.float64]

    def evidence(self, orientations: int) -> NDArray[np.float64]:
        """Return the log-likelihood ratio (b,): the mean over orientations, each as likely."""
        return np.asarray(self.largest + np.log(self.totals) - math.log(2 * orientations))


def compressed(
    slices: NDArray[np.float32], weights: NDArray[np.float32], lost: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Write slices (m, w) as amounts (m, r) of patterns (r, w), with as few patterns as will do.

    Particles are compact and references smooth, so slices of all orientations resemble each other.

    weights   (w,) 1 / noise
    lost      (m,) power over noise that each slice may lose
    """
    scale = np.sqrt(weights.astype(np.float64))
    scaled = slices * scale.astype(np.float32)
    _, patterns = np.linalg.eigh((scaled.T @ scaled).astype(np.float64))
    patterns = np.ascontiguousarray(patterns[:, ::-1].T)  # those with most power first
    amounts = scaled @ patterns.T.astype(np.float32)
    some = amounts[::SAMPLED].astype(np.float64)
    left = np.cumsum((some**2)[:, ::-1], axis=1)[:, ::-1]
    count = int(np.count_nonzero((left > lost[::SAMPLED, None]).any(axis=0)))
    if count > MOST_PATTERNS * slices.shape[1]:
        return slices, np.eye(slices.shape[1], dtype=np.float32)
    used = np.asarray(patterns[:count] / scale, np.float32)
    return np.ascontiguousarray(amounts[:, :count]), used


def _add_products(
    weights: tuple[NDArray[np.float32], ...],
    rows: NDArray[np.int64],
    columns: tuple[NDArray[np.float32], ...],
    sums: NDArray[np.float32],
) -> None:
    """Add products of weights (n, c) and columns (v, c) to rows of each of the sums (3, m, v)."""
    for start in range(0, len(rows), ROWS_PER_PRODUCT):
        part = slice(start, start + ROWS_PER_PRODUCT)
        for own, column, total in zip(weights, columns, sums, strict=True):
            pose_weights.add_rows(own[part] @ column.T, rows[part], total)


def principal(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return orthonormal patterns (r, s) of which almost all of the values (n, b, s) are sums.

    The images (b) count the same, however much power their values have.
    """
    powers = np.einsum("nbs,nbs->b", values, values)
    equal = values * (1.0 / np.sqrt(powers + alignment.TINY))[:, None]
    flat = equal.reshape(-1, values.shape[2])
    shares, patterns = np.linalg.eigh((flat.T @ flat).astype(np.float64))
    count = int(np.count_nonzero(np.cumsum(shares) > LOST_WEIGHT * shares.sum()))
    return np.asarray(patterns[:, len(shares) - count :].T, np.float32, order="C")


def log_prior(grid: NDArray[np.float64], spread: float) -> NDArray[np.float32]:
    """Return the logarithm of the prior probability (s,) of shifts: a Gaussian, on a grid."""
    exponent = -(grid**2).sum(axis=1) / (2.0 * spread**2)
    return np.asarray(exponent - math.log(np.exp(exponent).sum()), np.float32)


def _joined(parts: list[SoftPoses]) -> SoftPoses:
    names = ("peak", "evidence", "offset")
    rest = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
    return SoftPoses(joined(*(part.poses for part in parts)), *rest)
