"""The poses that an image may have, near those that fit it best, each with its probability.

A weak image tells its pose to a few degrees only. If it is put into the map at its best pose, its
error blurs the map; if it is put in at all poses, each with its probability, the map is the one
that is expected (the M-step of expectation maximisation). Near a best pose the likelihood is almost
a normal distribution, whose width is known from the climb. Poses are drawn from that, and weighted
by how likely they are in truth, over how likely they were to be drawn: importance sampling with
Laplace's approximation (Tierney & Kadane 1986; Geweke 1989).

An image that tells its pose well keeps its best one, with a weight of 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem.alignment import climb_options, distinct, first, near_best
from mpipar.cryoem.rotations import from_vectors, to_vectors
from mpipar.kernels import poses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.cryoem.alignment import Peaks, Poses, Reference, SearchPlan
    from mpipar.cryoem.fourier import Components

DRAWN: Final = 32
"""Poses that are drawn about one best pose."""
WIDER: Final = 1.15
"""They are drawn from a distribution wider than the likelihood's by this factor: tails count."""
WIDEST_TURN, WIDEST_MOVE = 15.0, 3.0
"""Standard deviations, degrees and pixels, of that distribution at most (before it is widened)."""
NEGLIGIBLE: Final = 1e-3
"""Probability below which a pose is left out."""
MOST_PEAKS: Final = 4
"""Best poses of one image about which poses are drawn."""
APART: Final = (4.0, 1.0)  # degrees, pixels: peaks nearer to a better one in both are none
NARROW: Final = 0.15
"""Periods of the finest detail used, by which the particle's parts may be displaced (root mean
square) for an image to count as one that tells its pose well: that detail loses a seventh."""
SPHERE: Final = 0.4  # mean square distance from an axis, over the square of the sphere's radius


@dataclass(frozen=True)
class WeightedPoses:
    """Poses of a block's images, one or several for each.

    image      (k,) int64            number of the image, rising
    rotations  (k, 3, 3) float64
    shifts     (k, 2) float64        pixels
    weight     (k,) float64          probability; of each image they add up to 1
    """

    image: NDArray[np.int64]
    rotations: NDArray[np.float64]
    shifts: NDArray[np.float64]
    weight: NDArray[np.float64]


def at_best(found: Poses) -> WeightedPoses:
    """Return one pose (b, ...) of each image, with all its weight."""
    count = len(found.score)
    return WeightedPoses(np.arange(count), found.rotations, found.shifts, np.ones(count))


def deviates(seed: np.random.SeedSequence) -> NDArray[np.float64]:
    """Return DRAWN points (k, 5) that have mean 0 and variance 1 in all directions, exactly."""
    drawn = np.random.default_rng(seed).normal(size=(DRAWN // 2, 5))
    points = np.concatenate([drawn, -drawn])
    factor = np.linalg.cholesky(points.T @ points / len(points))
    return np.asarray(np.linalg.solve(factor, points.T).T)


class PoseSpread:
    """Draws poses about the best ones of images, and weighs them; scores have a known scale."""

    def __init__(
        self,
        wanted: Components,
        plan: SearchPlan,
        radius: float,
        independent: float,
        points: NDArray[np.float64],
    ) -> None:
        """Take what all images have in common.

        wanted       the components that images have
        radius       of the particle, pixels
        independent  fraction of an image's components that count, see docs/methods.md, The disc
        points       (k, 5) from `deviates`
        """
        count = wanted.within(plan.radius)
        self._frequencies = wanted.frequencies[:count]
        self._plan, self._radius, self._points = plan, radius, points
        self._factor = 2.0 * independent  # of a score, to be a log-likelihood

    def about(
        self, reference: Reference, data: NDArray[np.float32], found: Sequence[Peaks]
    ) -> WeightedPoses:
        """Return the poses of each image, from the peaks that were found, best first.

        data   (b, v, 3) from `alignment.weigh`
        """
        images = [
            self._about_image(reference, image, peaks)
            for image, peaks in zip(data, found, strict=True)
        ]
        rotations, shifts, weight = (np.concatenate(part) for part in zip(*images, strict=True))
        counts = [len(weights) for _, _, weights in images]
        return WeightedPoses(np.repeat(np.arange(len(images)), counts), rotations, shifts, weight)

    def _about_image(
        self, reference: Reference, image: NDArray[np.float32], found: Peaks
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return rotations, shifts and weights of one image with data (v, 3)."""
        peaks = first(distinct(first(found, 2 * MOST_PEAKS), *APART), MOST_PEAKS)
        peaks = near_best(peaks, -math.log(NEGLIGIBLE) / self._factor)
        covariances = self._covariances(peaks)
        alone = len(peaks.score) == 1 and self._is_narrow(reference.box, covariances[0])
        if alone:
            return peaks.rotations[:1], peaks.shifts[:1], np.ones(1)
        factors = np.asarray(WIDER * np.linalg.cholesky(covariances), np.float64)
        rotations, shifts = self._drawn(peaks, factors)
        scores = np.empty(len(rotations))
        options = climb_options(self._plan, reference.box, 0)
        inner = np.ascontiguousarray(image[: len(self._frequencies)])
        poses.score_poses(
            reference.transform, self._frequencies, inner, options, rotations, shifts, scores
        )
        weight = self._factor * scores - log_density(peaks, factors, rotations, shifts)
        weight = np.exp(weight - weight.max())
        kept = weight > NEGLIGIBLE * weight.sum()
        return rotations[kept], shifts[kept], weight[kept] / weight[kept].sum()

    def _covariances(self, peaks: Peaks) -> NDArray[np.float64]:
        """Return the covariance (k, 5, 5) of the pose about each peak."""
        widest = np.array([math.radians(WIDEST_TURN)] * 3 + [WIDEST_MOVE] * 2)
        precision = self._factor * peaks.curvature + np.diag(widest**-2.0)
        return np.asarray(np.linalg.inv(precision))

    def _is_narrow(self, box: int, covariance: NDArray[np.float64]) -> bool:
        """Whether poses of this covariance (5, 5) blur nothing of the detail that is used."""
        variances = np.diag(covariance)
        moved = SPHERE * self._radius**2 * variances[:3].sum() + variances[3:].sum()
        return bool(math.sqrt(moved) * self._plan.radius / box < NARROW)

    def _drawn(
        self, peaks: Peaks, factors: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw rotations and shifts about each peak, from the factors of covariances."""
        steps = self._points @ factors.transpose(0, 2, 1)
        rotations = peaks.rotations[:, None] @ from_vectors(steps[..., :3])
        shifts = peaks.shifts[:, None] + steps[..., 3:]
        return rotations.reshape(-1, 3, 3), shifts.reshape(-1, 2)


def log_density(
    peaks: Peaks,
    factors: NDArray[np.float64],
    rotations: NDArray[np.float64],
    shifts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the logarithm of how densely poses (k) were drawn, but for a constant: (k,).

    factors   (p, 5, 5) lower triangular, of the covariance about each peak
    """
    turned = to_vectors(peaks.rotations.transpose(0, 2, 1)[:, None] @ rotations)
    steps = np.concatenate([turned, shifts - peaks.shifts[:, None]], axis=2)
    points = np.linalg.solve(factors, steps.transpose(0, 2, 1))
    volumes = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(
        np.logaddexp.reduce(-0.5 * (points**2).sum(axis=1) - volumes[:, None], axis=0)
    )
