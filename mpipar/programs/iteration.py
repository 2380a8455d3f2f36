"""One iteration on rank 0, in pure steps: stage and tasks out, results in, the next state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mpipar.cryoem import (
    noise,
    orientation_grids,
    pose_spread,
    reconstruction,
    resolution,
    rotations,
)
from mpipar.cryoem.alignment import Poses, SearchPlan
from mpipar.cryoem.fourier import components, lowpass_gain, volume_transform
from mpipar.cryoem.matches import Matches
from mpipar.cryoem.solvent import solvent_mask
from mpipar.programs import fold_sums, folds
from mpipar.programs.block_rows import ParticleRows
from mpipar.programs.dataset import first_shifts
from mpipar.programs.stages import AlignStage
from mpipar.runtime.stage import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.cryoem.ctf import CtfParameters
    from mpipar.cryoem.reconstruction import FixedPoint, HalfSums
    from mpipar.programs.dataset import Dataset, Start
    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.soft_stage import SoftResult
    from mpipar.programs.stages import AlignResult
    from mpipar.runtime.reports import RunResult

Item = TypeVar("Item")
Result = TypeVar("Result")

JOINING_EDGE = 2
"""Shells beyond the start's filter that the shared ones still reach."""
JUMP = 1.5
"""Grid steps by which an orientation must change to count as changed."""
CLEAR = 0.8
"""Mean probability of the most probable poses from which on these are searched for quickly."""
MASKED = 0.1
"""Fraction of particles that may still change their orientation when references begin to be masked
by their own shape. The shape of a map whose poses are not found is that of noise."""
UNSETTLED = 2
"""Searches over all orientations that cannot confirm a pose: poses still change with the map."""


@dataclass(frozen=True)
class RefineState:
    """What one iteration hands to the next: all that a resumed run needs, bit for bit.

    poses            of all particles; the score is -inf before the first iteration
    references       (2 f, m, m, m) float32, regularised and masked, of all folds of half set 1,
                     then of 2, see `folds`; before the first iteration (2, n, n, n), the model
    noise            (2, s) power per shell of each half set
    correlation      (n // 2 + 1,) FSC inside the mask
    resolution       A
    resolved_shell   the shell of that resolution
    settled          (p,) whether a search over all orientations has confirmed the pose
    jumped           fraction of particles whose orientation changed by more than a grid step
    drift            median way of the particles' rims, over the resolution; 0 in soft iterations
    before           the references of the iteration before, while iterations are soft;
                     else (0,)
    peak             (p,) probability of each particle's most probable pose, in the last soft
                     iteration; of those that took no part, the mean of the others
    evidence         mean log-likelihood ratio per particle to no particle, in that iteration
    spread           pixels: standard deviation of the shifts along one axis; None: not known yet
    matches          of all particles with the last references, at their new poses
    """

    iteration: int
    poses: Poses
    references: NDArray[np.float32]
    noise: NDArray[np.float64]
    correlation: NDArray[np.float64]
    resolution: float
    resolved_shell: int
    settled: NDArray[np.bool_]
    jumped: float
    drift: float
    before: NDArray[np.float32]
    peak: NDArray[np.float64]
    evidence: float
    spread: float | None
    matches: Matches


@dataclass(frozen=True)
class Maps:
    """The maps of an iteration and their correlation.

    halves      (2, n, n, n) half maps as solved, not masked
    mask        (n, n, n) the mask of the FSC
    combined    (n, n, n) map of all particles
    unmasked    (s,) FSC without a mask
    masked      (s,) FSC inside the mask
    corrected   (s,) FSC inside the mask, corrected for the mask's own correlation
    mark        what everybody who sees the maps must know; empty: nothing
    """

    halves: NDArray[np.float32]
    mask: NDArray[np.float32]
    combined: NDArray[np.float32]
    unmasked: NDArray[np.float64]
    masked: NDArray[np.float64]
    corrected: NDArray[np.float64]
    mark: str = field(default="", kw_only=True)


def first_state(
    inputs: RefineInputs, data: Dataset, spectra: NDArray[np.float64], start: Start
) -> RefineState:
    """Return the state before the first iteration: no pose is known, both references are the model.

    spectra   (2, s) first noise spectra
    """
    count, box = inputs.particles.count, inputs.box
    shifts = first_shifts(inputs.particles)
    poses = Poses(np.broadcast_to(np.eye(3), (count, 3, 3)).copy(), shifts, np.full(count, -np.inf))
    shell = data.start_shell
    references = np.stack([start.model * data.sphere] * 2)
    correlation = lowpass_gain(box, shell).astype(np.float64)
    settled, matches = np.zeros(count, bool), Matches.unknown(count)
    return RefineState(
        iteration=0,
        poses=poses,
        references=references,
        noise=spectra,
        correlation=correlation,
        resolution=start.resolution,
        resolved_shell=shell,
        settled=settled,
        jumped=1.0,
        drift=0.0,
        before=np.zeros(0, np.float32),
        peak=np.zeros(count),
        evidence=0.0,
        spread=None,
        matches=matches,
    )


def fixed_point(data: Dataset, state: RefineState) -> FixedPoint:
    """Return the scales with which this iteration's integer sums cannot overflow."""
    weight = 1.0 / state.noise.min(axis=0)
    bound = float((data.largest * weight).max() * data.largest_ctf)
    count = int(max(np.count_nonzero(data.half == half) for half in (1, 2)))
    return reconstruction.fixed_point(bound, float(weight.max() * data.largest_ctf**2), count)


def align_stage(
    data: Dataset, state: RefineState, plan: SearchPlan, *, complete: bool
) -> AlignStage:
    """Return the iteration's stage; `complete`: every shell up to Nyquist is back-projected."""
    radius = data.sampling.insertion_radius(plan.radius, complete)
    first_independent = data.start_shell + JOINING_EDGE  # coarser shells are shared
    scales = fixed_point(data, state)
    return AlignStage(data.geometry, plan, radius, scales, data.devices, first_independent)


def shared_arrays(
    data: Dataset, state: RefineState, plan: SearchPlan
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays that every worker gets once for the iteration; AlignStage names them."""
    shared = {"noise": state.noise, **folds.transforms(state.references, plan.radius)}
    if not plan.free_scale:  # else likelihoods are not known
        drawn = np.random.SeedSequence(data.seed, spawn_key=(state.iteration + 1, 2))
        shared["deviates"] = pose_spread.deviates(drawn)
    if plan.exhaustive:
        seed = np.random.SeedSequence(data.seed, spawn_key=(state.iteration + 1,))
        shared["orientations"] = orientation_grids.orientation_grid(
            plan.step, data.symmetry, seed, half_turn=True
        )
    return shared


def align_tasks(
    data: Dataset, ctf: CtfParameters, state: RefineState, insertion_radius: int
) -> list[Task]:
    """Return one task per block for AlignStage, with its particles' CTF and last poses."""
    tasks, folded = [], folds.sums_are_folded(data, insertion_radius)
    served_as = data.served_as or range(len(data.blocks))
    for number, (block, rows) in enumerate(zip(served_as, data.blocks, strict=True)):
        poses = Poses(
            state.poses.rotations[rows], state.poses.shifts[rows], state.poses.score[rows]
        )
        payload = ParticleRows(
            int(data.half[rows[0]]),
            ctf.take(rows),
            data.offset[rows],
            data.gain[rows],
            poses,
            state.settled[rows],
            int(data.fold[rows[0]]),
            folded,
        )
        tasks.append(Task(number, block, payload))
    return tasks


def collect_poses(data: Dataset, found: Sequence[Poses], state: RefineState) -> Poses:
    """Return the new poses of all particles, from those of each block, in the list's order."""
    poses = Poses(state.poses.rotations.copy(), state.poses.shifts.copy(), state.poses.score.copy())
    for rows, block in zip(data.blocks, found, strict=True):
        poses.rotations[rows], poses.shifts[rows] = block.rotations, block.shifts
        poses.score[rows] = block.score
    return poses


def collect_matches(data: Dataset, results: list[AlignResult]) -> Matches:
    """Return the matches of all particles, in the order of the particle list."""
    parts = [(rows, result.matches) for rows, result in zip(data.blocks, results, strict=True)]
    return Matches.joined(parts, len(data.half))


def updated_noise(
    data: Dataset, results: Sequence[AlignResult | SoftResult], radius: int, state: RefineState
) -> NDArray[np.float64]:
    """Return noise spectra (2, s) from residuals; shells beyond `radius` keep the old values."""
    wanted = components(data.geometry.box, radius)
    spectra = state.noise.copy()
    for half in (1, 2):
        mine = [
            (len(rows), result.residual)
            for rows, result in zip(data.blocks, results, strict=True)
            if data.half[rows[0]] == half
        ]
        total = np.sum([residual for _, residual in mine], axis=0)
        spectra[half - 1, : radius + 1] = noise.spectrum(total, sum(n for n, _ in mine), wanted)
    return np.asarray(spectra)


def orientation_changes(data: Dataset, before: Poses, after: Poses) -> NDArray[np.float64]:
    """Return how far each particle turned, (p,) degrees; 180 where no orientation was known.

    Of the symmetry mates of the new orientation the nearest to the old one counts.
    """
    mates = np.einsum("gij,pjk->gpik", data.symmetry, after.rotations)
    nearest = rotations.angle_between(mates, before.rotations[None]).min(axis=0)
    changes: NDArray[np.float64] = np.where(np.isfinite(before.score), nearest, 180.0)
    return changes


def maps_of(
    data: Dataset,
    halves: tuple[HalfSums, HalfSums],
    radius: int,
    iteration: int,
    mask: NDArray[np.float32] | None = None,
) -> Maps:
    """Solve the half maps and the map of all particles, and correlate the half maps.

    mask   of the FSC; None: the user's, or one made from the map
    """

    def solved(sums: HalfSums) -> NDArray[np.float32]:
        return reconstruction.solve(sums, None, radius)

    raw = np.stack(fold_sums.for_both(solved, halves))
    transforms = fold_sums.for_both(volume_transform, list(raw))
    filled = np.arange(data.geometry.box // 2 + 1) <= radius  # a mask mixes shells into others
    unmasked = filled * resolution.correlation_of_transforms(*transforms)
    if mask is None:
        mask = data.mask if data.mask is not None else _mask_of(data, transforms, unmasked)
    masked = filled * resolution.masked_correlation(list(raw), mask)
    seed = np.random.SeedSequence(data.seed, spawn_key=(iteration, 1))
    corrected = resolution.corrected_correlation(transforms, mask, seed, unmasked, masked)
    # 2 FSC / (1 + FSC): what half-set correlation says of the full set (Rosenthal & Henderson 2003)
    positive = np.clip(corrected, 0.0, 1.0)
    of_all = 2 * positive / (1 + positive)
    combined = reconstruction.solve(halves[0], of_all, radius, other=halves[1])
    return Maps(raw, mask, combined, unmasked, masked, filled * corrected)


def _mask_of(
    data: Dataset, transforms: Sequence[NDArray[np.complex64]], unmasked: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return a mask made from the maps themselves, given the half maps' transforms and FSC."""
    mean = np.float32(0.5) * (transforms[0] + transforms[1])
    return solvent_mask(mean, data.sphere, data.geometry.pixel_size, _reached(data, unmasked))


def _reached(data: Dataset, correlation: NDArray[np.float64]) -> float:
    """Return the resolution of an FSC, in A."""
    box, pixel_size = data.geometry.box, data.geometry.pixel_size
    return resolution.resolution_of(correlation, resolution.GOLD_STANDARD, box, pixel_size)


def _of_known(changes: NDArray[np.float64], before: Poses) -> NDArray[np.float64]:
    """Return the changes (p,) of particles whose pose was known; all, if none was."""
    known = np.isfinite(before.score)
    return changes[known] if known.any() else changes


def _rim_way(data: Dataset, turn: float) -> float:
    """Return the way in A of a particle's rim that turns by so many degrees."""
    return math.radians(turn) * (data.geometry.radius * data.geometry.pixel_size)


def next_state(
    data: Dataset, state: RefineState, stage: AlignStage, outcome: RunResult, searches: int
) -> tuple[RefineState, Maps]:
    """Return the next state and the maps, from what the stage's run has given.

    searches   iterations before this one that searched all orientations for the best pose
    """
    assert isinstance(outcome.totals, fold_sums.FoldTotals)
    plan, radius = stage.plan, stage.insertion_radius
    sums = outcome.totals.finished(data.symmetry, data.geometry.box)
    poses = collect_poses(data, [result.poses for result in outcome.results], state)
    maps = maps_of(data, sums.halves, radius, state.iteration + 1)
    resolved = resolution.last_resolved_shell(maps.corrected, resolution.GOLD_STANDARD)
    turned = orientation_changes(data, state.poses, poses)
    seen = _of_known(turned, state.poses)
    jumped = float(np.mean(seen > JUMP * plan.step))
    may_settle = plan.exhaustive and searches >= UNSETTLED
    settled = state.settled | ((turned <= JUMP * plan.step) & may_settle)
    trusted = maps.corrected.copy()
    trusted[min(resolved + 4, len(trusted)) :] = 0.0
    references = folds.references_of(
        data,
        sums,
        trusted,
        (radius, resolved),
        _reached(data, maps.unmasked) if jumped <= MASKED else None,
    )
    reached = _reached(data, maps.corrected)
    new = replace(
        state,
        iteration=state.iteration + 1,
        poses=poses,
        references=references,
        noise=updated_noise(data, outcome.results, radius, state),
        correlation=maps.corrected,
        resolution=reached,
        resolved_shell=resolved,
        settled=settled,
        jumped=jumped,
        drift=_rim_way(data, float(np.median(seen))) / reached,
        before=np.zeros(0, np.float32),
        matches=collect_matches(data, outcome.results),
    )
    return new, maps
