"""One iteration as pure steps on rank 0: references out, sums in, the next state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mpipar.cryoem import alignment, noise, reconstruction, resolution, rotations
from mpipar.cryoem.alignment import Poses, SearchPlan
from mpipar.cryoem.fourier import components, filter_shells, lowpass_gain
from mpipar.cryoem.solvent import solvent_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mpipar.cryoem.reconstruction import FixedPoint, HalfSums
    from mpipar.cryoem.search_plan import Sampling
    from mpipar.programs.stages import AlignResult, ImageGeometry

Item = TypeVar("Item")
Result = TypeVar("Result")

JOINED_RESOLUTION = 40.0
"""Angstrom: coarser detail is shared by both references: it keeps them in one frame (as RELION)."""

JUMP = 1.5
"""Grid steps by which an orientation must change to count as another one."""
SETTLING_ITERATION = 4
"""The first iteration whose search may confirm a pose: by then the reference is the data's own."""


@dataclass(frozen=True)
class Dataset:
    """What stays the same through a refinement; rank 0 only.

    symmetry  (g, 3, 3) operators
    sphere    (n, n, n) soft mask of the particle's diameter
    mask      (n, n, n) the user's, or None: it follows the map
    half      (p,) 1 or 2; offset, gain (p,)
    largest   (s,) bound on any amplitude of a shell, gains applied; largest_ctf on any contrast
    blocks    particle indices of each block, all of one half
    """

    geometry: ImageGeometry
    sampling: Sampling
    symmetry: NDArray[np.float64]
    sphere: NDArray[np.float32]
    mask: NDArray[np.float32] | None
    half: NDArray[np.int8]
    offset: NDArray[np.float64]
    gain: NDArray[np.float64]
    largest: NDArray[np.float64]
    largest_ctf: float
    blocks: tuple[NDArray[np.int64], ...]
    seed: int


@dataclass(frozen=True)
class RefineState:
    """What one iteration hands to the next: everything a resumed run needs, bit for bit.

    poses        of all particles; score -inf before the first
    references   (2, n, n, n) float32 half maps, regularised and masked
    noise        (2, s) power per shell; correlation (n // 2 + 1,) FSC inside the mask
    resolution   Angstrom, and its shell
    settled      (p,) poses that a search has confirmed
    jumped       fraction of particles whose orientation changed by more than a grid step
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


@dataclass(frozen=True)
class Maps:
    """Raw half maps (2, n, n, n), mask of the FSC, map of all particles; FSC curves (s,)."""

    halves: NDArray[np.float32]
    mask: NDArray[np.float32]
    combined: NDArray[np.float32]
    unmasked: NDArray[np.float64]
    masked: NDArray[np.float64]
    corrected: NDArray[np.float64]


def fixed_point(data: Dataset, state: RefineState) -> FixedPoint:
    """Scales with which this iteration's sums cannot overflow."""
    weight = 1.0 / state.noise.min(axis=0)
    bound = float((data.largest * weight).max() * data.largest_ctf)
    count = int(max(np.count_nonzero(data.half == half) for half in (1, 2)))
    return reconstruction.fixed_point(bound, float(weight.max() * data.largest_ctf**2), count)


def shared_arrays(
    data: Dataset, state: RefineState, plan: SearchPlan
) -> dict[str, NDArray[np.generic]]:
    """What every worker gets once for the iteration."""
    shared: dict[str, NDArray[np.generic]] = {"noise": state.noise}
    for half in (1, 2):
        reference = alignment.make_reference(state.references[half - 1], plan.radius)
        shared[f"reference{half}"] = reference.transform
    if plan.exhaustive:
        seed = np.random.SeedSequence(data.seed, spawn_key=(state.iteration + 1,))
        shared["orientations"] = rotations.orientation_grid(plan.step, data.symmetry, seed)
    return shared


def collect_poses(data: Dataset, results: list[AlignResult], state: RefineState) -> Poses:
    """New poses of all particles, in the order of the particle list."""
    poses = Poses(state.poses.rotations.copy(), state.poses.shifts.copy(), state.poses.score.copy())
    for rows, result in zip(data.blocks, results, strict=True):
        poses.rotations[rows], poses.shifts[rows] = result.poses.rotations, result.poses.shifts
        poses.score[rows] = result.poses.score
    return poses


def updated_noise(
    data: Dataset, results: list[AlignResult], radius: int, state: RefineState
) -> NDArray[np.float64]:
    """Noise spectra (2, s) from residuals; shells that were not looked at keep theirs."""
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


def turns_of(data: Dataset, before: Poses, after: Poses) -> NDArray[np.float64]:
    """Degrees between each particle's orientations, mates being equal; 180 where none was known."""
    mates = np.einsum("gij,pjk->gpik", data.symmetry, after.rotations)
    change = rotations.angle_between(mates, before.rotations[None]).min(axis=0)
    turns: NDArray[np.float64] = np.where(np.isfinite(before.score), change, 180.0)
    return turns


def for_both(work: Callable[[Item], Result], halves: Sequence[Item]) -> list[Result]:
    """Do the same for both half sets at once: rank 0's cores are idle while the workers wait."""
    with ThreadPoolExecutor(len(halves)) as threads:
        return list(threads.map(work, halves))


def sums_of(
    data: Dataset, sums: Mapping[str, NDArray[np.int64]], scales: FixedPoint
) -> tuple[HalfSums, HalfSums]:
    """The workers' integer sums as numerator and weight of each half map."""

    def scaled(half: int) -> HalfSums:
        box = data.geometry.box
        return reconstruction.half_sums(sums[f"half{half}"], scales, data.symmetry, box)

    first, second = for_both(scaled, (1, 2))
    return first, second


def maps_of(data: Dataset, halves: tuple[HalfSums, HalfSums], radius: int, iteration: int) -> Maps:
    """Half maps, their correlation, and the map of all particles."""
    raw = np.stack(for_both(lambda sums: reconstruction.solve(sums, None, radius), halves))
    unmasked = resolution.fourier_shell_correlation(raw[0], raw[1])
    mask = data.mask if data.mask is not None else _mask_of(data, raw, unmasked)
    masked = resolution.fourier_shell_correlation(raw[0] * mask, raw[1] * mask)
    seed = np.random.SeedSequence(data.seed, spawn_key=(iteration, 1))
    corrected = resolution.corrected_correlation(raw[0], raw[1], mask, seed, unmasked, masked)
    # 2 FSC / (1 + FSC): what half-set correlation says of the full set (Rosenthal & Henderson 2003)
    positive = np.clip(corrected, 0.0, 1.0)
    combined = reconstruction.solve(halves[0] + halves[1], 2 * positive / (1 + positive), radius)
    return Maps(raw, mask, combined, unmasked, masked, corrected)


def _mask_of(
    data: Dataset, raw: NDArray[np.float32], unmasked: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The mask that follows the map."""
    pixel_size = data.geometry.pixel_size
    reached = resolution.resolution_of(
        unmasked, resolution.GOLD_STANDARD, data.geometry.box, pixel_size
    )
    return solvent_mask(raw.mean(axis=0), data.sphere, pixel_size, reached)


def references_of(
    data: Dataset, halves: tuple[HalfSums, HalfSums], maps: Maps, radius: int, resolved_shell: int
) -> NDArray[np.float32]:
    """Regularised, masked half maps for the next alignment; low shells shared."""
    trusted = maps.corrected.copy()
    trusted[min(resolved_shell + 4, len(trusted)) :] = 0.0
    solved = for_both(lambda sums: reconstruction.solve(sums, trusted, radius), halves)
    geometry = data.geometry
    joined_shell = min(geometry.box * geometry.pixel_size / JOINED_RESOLUTION, resolved_shell - 2.0)
    low = lowpass_gain(geometry.box, joined_shell)
    mean = filter_shells((solved[0] + solved[1]) * np.float32(0.5), low)
    return np.stack([(mean + filter_shells(volume, 1.0 - low)) * maps.mask for volume in solved])


def next_state(
    data: Dataset,
    state: RefineState,
    plan: SearchPlan,
    radius: int,
    results: list[AlignResult],
    halves: tuple[HalfSums, HalfSums],
) -> tuple[RefineState, Maps]:
    """Everything that follows from an iteration's results."""
    poses = collect_poses(data, results, state)
    maps = maps_of(data, halves, radius, state.iteration + 1)
    filled = np.where(np.arange(len(maps.corrected)) <= radius, maps.corrected, 0.0)
    resolved = resolution.last_resolved_shell(filled, resolution.GOLD_STANDARD)
    box, pixel_size = data.geometry.box, data.geometry.pixel_size
    reached = resolution.resolution_of(filled, resolution.GOLD_STANDARD, box, pixel_size)
    turned = turns_of(data, state.poses, poses)
    may_settle = plan.exhaustive and state.iteration + 1 >= SETTLING_ITERATION
    settled = state.settled | ((turned <= JUMP * plan.step) & may_settle)
    new = replace(
        state,
        iteration=state.iteration + 1,
        poses=poses,
        references=references_of(data, halves, maps, radius, resolved),
        noise=updated_noise(data, results, radius, state),
        correlation=maps.corrected,
        resolution=reached,
        resolved_shell=resolved,
        settled=settled,
        jumped=float(np.mean(turned > JUMP * plan.step)),
    )
    return new, maps
