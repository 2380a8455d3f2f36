"""Finding the pose of particle images against a reference: a grid search, then a climb.

The score of a pose is its log-likelihood under coloured Gaussian noise: cross - quadratic / 2 with
cross = sum Re(conj(P) CTF X / noise) and quadratic = sum CTF^2 |P|^2 / noise over the components
of half the plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem.fourier import (
    OVERSAMPLING,
    Components,
    interpolation_falloff,
    volume_half_transform,
)
from mpipar.kernels import poses, scores, slices
from mpipar.kernels.poses import ClimbOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORIENTATIONS_PER_PRODUCT = 2048
COLUMNS_PER_PRODUCT = 1024
"""Shape of one matrix product: enough for BLAS, little enough that memory does not grow with the
block of images."""
TINY: Final = np.float32(1e-37)

SURVIVORS_BEHIND = 10.0
"""A pose whose log-likelihood is this far behind after the first climb is given up."""


@dataclass(frozen=True)
class Reference:
    """A volume prepared for slicing.

    transform  (d, d, h, 2) float32  see `kernels.slices`
    radius     int                   cycles per box out to which slices are good
    """

    transform: NDArray[np.float32]
    radius: int
    box: int


@dataclass(frozen=True)
class SearchPlan:
    """How wide and how fine one iteration looks.

    Radii are in cycles per box, lengths in pixels, angles in degrees.
    """

    coarse_radius: int
    middle_radius: int
    radius: int
    step: float
    shift_range: float
    shift_step: float
    candidates: int
    survivors: int
    free_scale: bool
    exhaustive: bool


@dataclass(frozen=True)
class Poses:
    """Poses of images, or several candidates for one image.

    rotations  (b, 3, 3) float64
    shifts     (b, 2) float64     pixels: where the particle lies in the image, from its centre
    score      (b,) float64       log-likelihood
    """

    rotations: NDArray[np.float64]
    shifts: NDArray[np.float64]
    score: NDArray[np.float64]


def make_reference(volume: NDArray[np.float32], radius: int) -> Reference:
    """Prepare a volume (n, n, n) for slicing out to `radius`, interpolation falloff undone."""
    box = volume.shape[0]
    sharpened = volume / interpolation_falloff(box, OVERSAMPLING)
    transform = volume_half_transform(sharpened, OVERSAMPLING, radius)
    return Reference(transform.view(np.float32).reshape(*transform.shape, 2), radius, box)


def slices_of(
    reference: Reference, rotations: NDArray[np.floating], wanted: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Central slices of a reference, (m, 2 v) float32: real and imaginary parts side by side.

    rotations  (m, 3, 3)
    wanted     (v, 2) float32   kx, ky in cycles per box
    """
    out = np.empty((len(rotations), 2 * len(wanted)), np.float32)
    turned = np.ascontiguousarray(rotations, np.float32)
    slices.extract_slices(
        reference.transform, turned, np.ascontiguousarray(wanted * OVERSAMPLING), out
    )
    return out


def weigh(
    images: NDArray[np.complex64], ctf: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What scoring needs of images.

    returns  (b, v, 3) float32: CTF X / noise (real, imaginary part) and CTF^2 / noise
    """
    data = np.empty((*images.shape, 3), np.float32)
    filtered = images * (ctf * weights)
    data[..., 0], data[..., 1] = filtered.real, filtered.imag
    data[..., 2] = ctf * ctf * weights
    return data


def shift_grid(reach: float, step: float) -> NDArray[np.float64]:
    """Points of a square grid within a disc, (s, 2) pixels; the centre first."""
    n = math.floor(reach / step + 1e-9)
    x = np.arange(-n, n + 1) * step
    grid = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    length = np.hypot(grid[:, 0], grid[:, 1])
    order = np.lexsort((grid[:, 1], grid[:, 0], length))
    return np.asarray(grid[order[: np.count_nonzero(length <= reach + 1e-9)]])


def phases(
    shifts: NDArray[np.floating], wanted: NDArray[np.float32], box: int
) -> NDArray[np.complex64]:
    """Factors exp(2 pi i k shift / box) that move a particle back by its shift, (..., v).

    shifts  (..., 2) pixels
    wanted  (v, 2) float32   kx, ky in cycles per box
    """
    turns = np.asarray(shifts, np.float64) @ wanted.T.astype(np.float64) * (2.0 * math.pi / box)
    return np.asarray(np.exp(1j * turns), np.complex64)


class GridSearch:
    """Scores a fixed list of orientations against blocks of images; keeps the slices."""

    def __init__(
        self,
        reference: Reference,
        orientations: NDArray[np.float32],
        plan: SearchPlan,
        wanted: Components,
    ):
        self._count = wanted.within(plan.coarse_radius)
        self._frequencies = wanted.frequencies[: self._count]
        self._slices = slices_of(reference, orientations, self._frequencies)
        self._orientations = orientations
        self._plan = plan
        self._box = reference.box
        self._grid = shift_grid(plan.shift_range, plan.shift_step)

    def best_candidates(
        self, data: NDArray[np.float32], centres: NDArray[np.float64]
    ) -> list[Poses]:
        """The best orientations of each image, well apart from each other, each at its best shift.

        data     (b, v, 3) from `weigh`
        centres  (b, 2) shifts in pixels about which to search
        """
        score, which = self._score(data, centres)
        picks = np.empty(self._plan.candidates, np.int64)
        longest = min(len(self._orientations), 40 * self._plan.candidates)
        same = 1.0 + 2.0 * math.cos(math.radians(1.2 * self._plan.step))
        found = []
        for b in range(data.shape[0]):
            top = np.argpartition(-score[:, b], longest - 1)[:longest]
            top = top[np.lexsort((top, -score[top, b]))]
            kept = picks[: scores.pick_distinct(top, self._orientations, same, picks)]
            shifts = centres[b] + self._grid[which[kept, b]]
            rotations = self._orientations[kept].astype(np.float64)
            found.append(
                Poses(rotations, np.ascontiguousarray(shifts), score[kept, b].astype(np.float64))
            )
        return found

    def _score(
        self, data: NDArray[np.float32], centres: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Score (o, b) of each orientation at its best shift, and which shift that was."""
        group = max(1, COLUMNS_PER_PRODUCT // len(self._grid))
        parts = [
            self._score_group(data[first : first + group], centres[first : first + group])
            for first in range(0, len(data), group)
        ]
        score, which = zip(*parts, strict=True)
        return np.concatenate(score, axis=1), np.concatenate(which, axis=1)

    def _score_group(
        self, data: NDArray[np.float32], centres: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        b, s, v = data.shape[0], len(self._grid), self._count
        power = np.ascontiguousarray(data[:, :v, 2].T)
        images = (data[:, :v, 0] + 1j * data[:, :v, 1])[:, None, :]
        shifts = centres[:, None, :] + self._grid[None]
        shifted = np.ascontiguousarray(images * phases(shifts, self._frequencies, self._box))
        columns = np.ascontiguousarray(shifted.reshape(b * s, v).view(np.float32).T)
        score = np.empty((len(self._slices), b), np.float32)
        which = np.empty((len(self._slices), b), np.int16)
        for start in range(0, len(self._slices), ORIENTATIONS_PER_PRODUCT):
            part = slice(start, start + ORIENTATIONS_PER_PRODUCT)
            rows = self._slices[part]
            cross = np.empty((len(rows), b), np.float32)
            scores.best_over_shifts(rows @ columns, cross, which[part])
            squared = rows * rows
            quadratic = (squared[:, 0::2] + squared[:, 1::2]) @ power
            score[part] = grid_score(cross, quadratic, self._plan.free_scale)
        return score, which


def grid_score(
    cross: NDArray[np.float32], quadratic: NDArray[np.float32], free_scale: bool
) -> NDArray[np.float32]:
    """Log-likelihood from its two terms; if the scale is free, at the reference's best one."""
    if not free_scale:
        return np.asarray(cross - np.float32(0.5) * quadratic)
    # divided before squaring: the square of a large grey scale would not fit
    positive = np.maximum(cross, 0) / np.sqrt(np.maximum(quadratic, TINY))
    return np.asarray(np.float32(0.5) * positive * positive)


def climb(
    reference: Reference,
    wanted: Components,
    data: NDArray[np.float32],
    start: Poses,
    plan: SearchPlan,
    depth: tuple[int, int],
) -> Poses:
    """Improve poses of one image by damped Gauss-Newton steps; best pose first.

    data     (v, 3) of this image, from `weigh`
    depth    radius of the components used, and at most how many steps
    returns  the poses of `start`, improved and sorted by score
    """
    radius, steps = depth
    count = wanted.within(radius)
    rotations = np.array(start.rotations, np.float64, order="C")
    shifts = np.array(start.shifts, np.float64, order="C")
    result = np.empty((len(rotations), 3))
    options = ClimbOptions(
        oversampling=OVERSAMPLING,
        box=reference.box,
        steps=steps,
        free_scale=plan.free_scale,
        longest_turn=math.radians(max(plan.step, 1.0)) * 0.7,
        longest_move=float(plan.shift_step),
        largest_shift=1.5 * plan.shift_range + 2.0,
    )
    image = np.ascontiguousarray(data[:count])
    poses.climb(
        reference.transform, wanted.frequencies[:count], image, options, rotations, shifts, result
    )
    order = np.argsort(-result[:, 0], kind="stable")
    return Poses(rotations[order], shifts[order], result[order, 0])


def find_poses(
    reference: Reference,
    wanted: Components,
    data: NDArray[np.float32],
    previous: Poses,
    plan: SearchPlan,
    search: tuple[GridSearch, NDArray[np.bool_]] | None,
) -> Poses:
    """The best pose of each image of a block, (b, ...).

    data      (b, v, 3) from `weigh`
    previous  (b, ...) poses of the last iteration; always a candidate once there was one (its
              score is above -inf)
    search    the search over all orientations and which images (b,) need it; the others climb from
              their previous pose
    """
    candidates: dict[int, Poses] = {}
    if search is not None and search[1].any():
        rows = np.flatnonzero(search[1])
        found = search[0].best_candidates(data[rows], previous.shifts[rows])
        candidates = dict(zip(rows.tolist(), found, strict=True))
    best = []
    for b in range(data.shape[0]):
        start = Poses(
            previous.rotations[b : b + 1], previous.shifts[b : b + 1], previous.score[b : b + 1]
        )
        if b in candidates:
            depth = (plan.middle_radius, 4)
            tops = climb(reference, wanted, data[b], candidates[b], plan, depth)
            tops = within(first(distinct(tops), plan.survivors), SURVIVORS_BEHIND)
            start = joined(tops, start) if np.isfinite(previous.score[b]) else tops
        best.append(first(climb(reference, wanted, data[b], start, plan, (plan.radius, 10)), 1))
    return joined(*best)


def first(found: Poses, count: int) -> Poses:
    """The first few of a list of poses."""
    return Poses(found.rotations[:count], found.shifts[:count], found.score[:count])


def within(found: Poses, behind: float) -> Poses:
    """Those poses of a sorted list whose score is less than `behind` below the best."""
    return first(found, max(1, int(np.count_nonzero(found.score > found.score[0] - behind))))


def joined(*lists: Poses) -> Poses:
    """Several lists of poses as one."""
    names = ("rotations", "shifts", "score")
    return Poses(*(np.concatenate([getattr(found, name) for found in lists]) for name in names))


def distinct(found: Poses, angle: float = 0.5, distance: float = 0.25) -> Poses:
    """Drop poses that climbed to the same top as a better one.

    The same top: within `angle` degrees and `distance` pixels.
    """
    same_angle = 8.0 * math.sin(math.radians(angle) / 2) ** 2
    apart = ((found.rotations[:, None] - found.rotations[None]) ** 2).sum(axis=(2, 3))
    moved = ((found.shifts[:, None] - found.shifts[None]) ** 2).sum(axis=2)
    near = (apart < same_angle) & (moved < distance**2)
    keep = ~np.tril(near, k=-1).any(axis=1)
    return Poses(found.rotations[keep], found.shifts[keep], found.score[keep])
