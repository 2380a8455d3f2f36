"""The search for the poses of particle images against a reference: on a grid, then by climbing.

The score of a pose is cross - quadratic / 2 with cross = sum Re(conj(P) CTF X / noise) and
quadratic = sum CTF^2 |P|^2 / noise over the components of half the plane. It is a log-likelihood
under coloured Gaussian noise if `noise` is the variance of a real part; a refinement's is twice
that, so that its scores are half the log-likelihood (`docs/methods.md`, Score).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from mpipar.cryoem.fourier import (
    OVERSAMPLING,
    Components,
    undo_falloff,
    volume_half_transform,
)
from mpipar.cryoem.rotations import with_half_turns
from mpipar.kernels import poses, scores, slices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from mpipar.kernels.poses import ClimbOptions

ORIENTATIONS_PER_PRODUCT = 2048
COLUMNS_PER_PRODUCT = 1024
"""Shape of one matrix product: enough for BLAS, little enough that memory does not grow with the
block of images."""
TINY: Final = np.float32(1e-37)

SURVIVORS_BEHIND = 10.0
"""A pose whose score is behind the best by more than this, after the first climb, is dropped."""


@dataclass(frozen=True)
class Reference:
    """A volume prepared for slicing.

    transform  (d, d, h, 2) float32  see `kernels.slices`
    radius     cycles per box: the transform has all that slices out to this radius read
    box        pixels along each side of the volume
    """

    transform: NDArray[np.float32]
    radius: int
    box: int


@dataclass(frozen=True)
class SearchPlan:
    """The extent and the steps of the search for poses in one iteration.

    coarse_radius  cycles per box: what the grid search uses
    middle_radius  cycles per box: what the climb from the grid's candidates uses
    radius         cycles per box: what the last climb uses
    step           degrees between orientations of the grid
    shift_range    pixels from the centre, or from the previous shift
    shift_step     pixels between shifts of the grid
    candidates     orientations of each image that the grid search returns
    survivors      of these, how many are climbed from a second time
    free_scale     whether the grey scale of the reference is fitted to each image
    exhaustive     whether all orientations are searched; else climbs start from the previous poses
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
    score      (b,) float64       see above
    """

    rotations: NDArray[np.float64]
    shifts: NDArray[np.float64]
    score: NDArray[np.float64]

    def take(self, rows: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """Return some of the poses."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Peaks(Poses):
    """Poses at which climbs have ended.

    curvature  (b, 5, 5) float64  how fast the score falls: by -1/2 z A z at a distance z, three
                                  rotations about the image's axes in radians and two shifts
    """

    curvature: NDArray[np.float64]


Found = TypeVar("Found", bound=Poses)


def make_reference(volume: NDArray[np.float32], radius: int) -> Reference:
    """Prepare a volume for slicing; the falloff by interpolation is undone.

    volume  (n, n, n), axes z y x
    radius  cycles per box out to which slices will be taken
    """
    box = volume.shape[0]
    sharpened = np.array(volume, np.float32)
    undo_falloff(sharpened, OVERSAMPLING)
    transform = volume_half_transform(sharpened, OVERSAMPLING, radius)
    return Reference(transform.view(np.float32).reshape(*transform.shape, 2), radius, box)


def slices_of(
    reference: Reference, rotations: NDArray[np.floating], frequencies: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return central slices of a reference.

    rotations    (m, 3, 3)        map coordinate = rotation @ image coordinate
    frequencies  (v, 2) float32   kx, ky in cycles per box
    returns      (m, 2 v) float32: real and imaginary part of each component, side by side
    """
    out = np.empty((len(rotations), 2 * len(frequencies)), np.float32)
    turned = np.ascontiguousarray(rotations, np.float32)
    slices.extract_slices(
        reference.transform, turned, np.ascontiguousarray(frequencies * OVERSAMPLING), out
    )
    return out


def weigh(
    images: NDArray[np.complex64], ctf: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weight the transforms of images with their CTF and the noise, for scoring.

    images   (b, v) complex64
    ctf      (b, v) float32
    weights  (v,) or (b, v) float32: 1 / noise
    returns  (b, v, 3) float32: CTF X / noise (real, imaginary part) and CTF^2 / noise
    """
    data = np.empty((*images.shape, 3), np.float32)
    filtered = images * (ctf * weights)
    data[..., 0], data[..., 1] = filtered.real, filtered.imag
    data[..., 2] = ctf * ctf * weights
    return data


def shift_grid(reach: float, step: float) -> NDArray[np.float64]:
    """Return the points of a square grid within a disc, the centre first.

    reach    radius of the disc, pixels
    step     of the grid, pixels
    returns  (s, 2) pixels
    """
    n = math.floor(reach / step + 1e-9)
    x = np.arange(-n, n + 1) * step
    grid = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    length = np.hypot(grid[:, 0], grid[:, 1])
    order = np.lexsort((grid[:, 1], grid[:, 0], length))
    return np.asarray(grid[order[: np.count_nonzero(length <= reach + 1e-9)]])


def phases(
    shifts: NDArray[np.floating], frequencies: NDArray[np.float32], box: int
) -> NDArray[np.complex64]:
    """Return the factors exp(2 pi i k shift / box) that move a particle back by its shift.

    shifts       (..., 2) pixels
    frequencies  (v, 2) float32   kx, ky in cycles per box, whole numbers
    returns      (..., v)
    """
    flat = np.ascontiguousarray(np.reshape(shifts, (-1, 2)), np.float64)
    factors = np.empty((len(flat), len(frequencies)), np.complex64)
    poses.shift_factors(flat, np.ascontiguousarray(frequencies), box, factors)
    return factors.reshape(*np.shape(shifts)[:-1], len(frequencies))


class GridSearch:
    """The search over a fixed list of orientations, whose slices are kept for all images."""

    def __init__(
        self,
        reference: Reference,
        orientations: NDArray[np.float32],
        plan: SearchPlan,
        wanted: Components,
    ):
        """Take the slices of the reference.

        orientations   (m, 3, 3); the half-turned ones are understood
        """
        self._count = wanted.within(plan.coarse_radius)
        self._frequencies = wanted.frequencies[: self._count]
        flat = slices_of(reference, orientations, self._frequencies)
        self._real = np.ascontiguousarray(flat[:, 0::2])
        self._imaginary = np.ascontiguousarray(flat[:, 1::2])
        self._orientations = with_half_turns(orientations)
        self._plan = plan
        self._box = reference.box
        self._grid = shift_grid(plan.shift_range, plan.shift_step)

    def best_candidates(
        self, data: NDArray[np.float32], centres: NDArray[np.float64]
    ) -> list[Poses]:
        """Return the best orientations of each image, not close to each other, with their shifts.

        data     (b, v, 3) from `weigh`
        centres  (b, 2) shifts in pixels about which to search
        returns  for each image at most `candidates` poses, best first
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
        """Return the score (o, b) of each orientation at its best shift, and that shift's index."""
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
        b, s, v, m = data.shape[0], len(self._grid), self._count, len(self._real)
        power = np.ascontiguousarray(data[:, :v, 2].T)
        images = (data[:, :v, 0] + 1j * data[:, :v, 1])[:, None, :]
        shifts = centres[:, None, :] + self._grid[None]
        moved = images * phases(shifts, self._frequencies, self._box)
        columns = moved.reshape(b * s, v).T
        first, second = np.ascontiguousarray(columns.real), np.ascontiguousarray(columns.imag)
        score = np.empty((2, m, b), np.float32)
        which = np.empty((2, m, b), np.int16)
        for start in range(0, m, ORIENTATIONS_PER_PRODUCT):
            part = slice(start, start + ORIENTATIONS_PER_PRODUCT)
            real, imaginary = self._real[part], self._imaginary[part]
            cross = np.empty((2, len(real), b), np.float32)
            places = np.empty(cross.shape, np.int16)
            scores.best_over_shifts(real @ first, imaginary @ second, cross, places)
            quadratic = (real**2 + imaginary**2) @ power
            score[:, part] = grid_score(cross, quadratic, self._plan.free_scale)
            which[:, part] = places
        return score.reshape(2 * m, b), which.reshape(2 * m, b)


def grid_score(
    cross: NDArray[np.float32], quadratic: NDArray[np.float32], free_scale: bool
) -> NDArray[np.float32]:
    """Return the score from its two terms; with a free scale, at the best scale."""
    if not free_scale:
        return np.asarray(cross - np.float32(0.5) * quadratic)
    # divided before squaring: the square of a large grey scale would not fit
    positive = np.maximum(cross, 0) / np.sqrt(np.maximum(quadratic, TINY))
    return np.asarray(np.float32(0.5) * positive * positive)


def climb_options(plan: SearchPlan, box: int, steps: int) -> ClimbOptions:
    """Return how far a climb may go in one step and in all, in at most so many steps."""
    return poses.ClimbOptions(
        oversampling=OVERSAMPLING,
        box=box,
        steps=steps,
        free_scale=plan.free_scale,
        longest_turn=math.radians(max(plan.step, 1.0)) * 0.7,
        longest_move=float(plan.shift_step),
        largest_shift=1.5 * plan.shift_range + 2.0,
    )


def climb(
    reference: Reference,
    wanted: Components,
    data: NDArray[np.float32],
    start: Poses,
    plan: SearchPlan,
    depth: tuple[int, int],
) -> Peaks:
    """Improve poses of one image by damped Gauss-Newton steps.

    wanted   the components that `data` has
    data     (v, 3) of this image, from `weigh`
    depth    radius in cycles per box of the components used, and at most how many steps
    returns  the poses of `start`, improved, best first
    """
    radius, steps = depth
    count = wanted.within(radius)
    rotations = np.array(start.rotations, np.float64, order="C")
    shifts = np.array(start.shifts, np.float64, order="C")
    result, curvature = np.empty((len(rotations), 3)), np.empty((len(rotations), 5, 5))
    options = climb_options(plan, reference.box, steps)
    frequencies, image = wanted.frequencies[:count], np.ascontiguousarray(data[:count])
    poses.climb(
        reference.transform, frequencies, image, options, rotations, shifts, result, curvature
    )
    order = np.argsort(-result[:, 0], kind="stable")
    return Peaks(rotations, shifts, result[:, 0], curvature).take(order)


def find_poses(
    reference: Reference,
    wanted: Components,
    data: NDArray[np.float32],
    previous: Poses,
    plan: SearchPlan,
    search: tuple[GridSearch, NDArray[np.bool_]] | None,
) -> list[Peaks]:
    """Find the poses that fit each image of a block best: a list for each, best first.

    wanted    the components that `data` has
    data      (b, v, 3) from `weigh`
    previous  (b, ...) poses of the last iteration; always a candidate once there was one (its
              score is above -inf)
    search    the search over all orientations and which images (b,) need it; the others climb from
              their previous pose
    """
    candidates: dict[int, Poses] = {}
    if search is not None and search[1].any():
        rows = np.flatnonzero(search[1])
        picked = search[0].best_candidates(data[rows], previous.shifts[rows])
        candidates = dict(zip(rows.tolist(), picked, strict=True))
    found = []
    for b in range(data.shape[0]):
        start = previous.take(slice(b, b + 1))
        if b in candidates:
            depth = (plan.middle_radius, 4)
            tops = climb(reference, wanted, data[b], candidates[b], plan, depth)
            tops = near_best(first(distinct(tops), plan.survivors), SURVIVORS_BEHIND)
            start = joined(tops, start) if np.isfinite(previous.score[b]) else tops
        found.append(climb(reference, wanted, data[b], start, plan, (plan.radius, 10)))
    return found


def best_of(found: Sequence[Poses]) -> Poses:
    """Return the first pose of each list."""
    return joined(*(first(image, 1) for image in found))


def first(found: Found, count: int) -> Found:
    """Return the first few of a list of poses."""
    return found.take(slice(count))


def near_best(found: Found, behind: float) -> Found:
    """Return the poses of a list, best first, whose score is less than `behind` below the best."""
    return first(found, max(1, int(np.count_nonzero(found.score > found.score[0] - behind))))


def joined(*lists: Poses) -> Poses:
    """Return several lists of poses as one."""
    names = ("rotations", "shifts", "score")
    return Poses(*(np.concatenate([getattr(found, name) for found in lists]) for name in names))


def distinct(found: Found, angle: float = 0.5, distance: float = 0.25) -> Found:
    """Drop poses within `angle` degrees and `distance` pixels of a better pose.

    found   best first
    """
    same_angle = 8.0 * math.sin(math.radians(angle) / 2) ** 2
    turned = ((found.rotations[:, None] - found.rotations[None]) ** 2).sum(axis=(2, 3))
    moved = ((found.shifts[:, None] - found.shifts[None]) ** 2).sum(axis=2)
    near = (turned < same_angle) & (moved < distance**2)
    keep = ~np.tril(near, k=-1).any(axis=1)
    return found.take(keep)
