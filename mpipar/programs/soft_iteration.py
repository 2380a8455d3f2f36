"""One soft iteration on rank 0, in pure steps, and the test whether the images hold any signal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem import orientation_grids, reconstruction, resolution
from mpipar.cryoem.fourier import filter_shells, lowpass_gain
from mpipar.programs import fold_sums, folds, iteration
from mpipar.programs.soft_stage import SoftStage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.cryoem.alignment import Poses
    from mpipar.cryoem.ctf import CtfParameters
    from mpipar.cryoem.posterior import SoftPlan
    from mpipar.cryoem.reconstruction import FixedPoint
    from mpipar.programs.dataset import Dataset
    from mpipar.programs.iteration import Maps, RefineState
    from mpipar.programs.soft_stage import SoftResult
    from mpipar.runtime.reports import RunResult
    from mpipar.runtime.stage import Task

MOMENTUM: Final = 0.7
"""Share of its last change that a reference goes on by: expectation maximisation takes small steps
where the images say little, and this halves their number (Nesterov 1983)."""
NO_SIGNAL: Final = "NO SIGNAL FOUND: this map shows the initial model and noise"
HELD_OUT: Final = 400  # particles, about, with which signal is looked for
CERTAIN: Final = 3.0
"""Standard errors by which signal must show. In sets of noise the gain lay at 0.4 +- 1.3 of them,
at most at 2.1; in images of the particle of which no more could be told, of SNR 0.05, at 2.3."""
LEAST_GAIN: Final = 0.03
"""Mean log-likelihood ratio per particle that signal must have: 60 images of noise had 0.011 by 2.0
standard errors, more images up to 0.002; 200 of SNR 0.05 that could just be refined had 0.06."""
FINE_START, COARSER = 25.0, 40.0
"""A: a user whose start is finer than the first is told to begin with the second."""
COARSE_SHAPE: Final = 0.5
"""Mean log-likelihood ratio per particle from which images hold the coarse shape. Noise gave up to
0.04, and that by some standard errors: what the half maps share holds a little of each image's own
noise. Images of SNR 0.05 gave 13, noise with a background like a disc 5."""


@dataclass(frozen=True)
class Signal:
    """How much better the halves' references predict images that these have not seen.

    coarse         mean log-likelihood ratio per particle of the references without detail beyond
                   the start's filter to no particle at all
    coarse_error   its standard error
    gain           mean log-likelihood ratio of the references to those without that detail
    error          its standard error
    """

    coarse: float
    coarse_error: float
    gain: float
    error: float

    def verdict(self, start: float, folder: str) -> str:
        """Return what a user is told if there is no signal.

        start   A, that the model is filtered to
        """
        seen = (
            "they hold something of the model's coarse shape (the particle, or a background that "
            "is like it), but too little to tell orientations"
            if self.coarse > max(COARSE_SHAPE, CERTAIN * self.coarse_error)
            else "as far as can be told they hold no particle like the model at all"
        )
        advice = (
            "what a model brings along cannot be told from what the images hold: a coarser start "
            f"(--lowpass {COARSER:.0f}) lets them show it"
            if start < FINE_START
            else "a finer start (--lowpass), if the model supports it, or more particles may help"
        )
        return (
            f"no signal found: no detail finer than the {start:.0f} A of the filtered model in "
            f"which the images agree (log-likelihood gain {self.gain:.1g} +- {self.error:.1g} per "
            f"particle that the map has not seen); {seen}. No resolution is claimed, and the maps "
            f"in {folder} are marked as without signal. Check particles, contrast (--contrast), "
            f"pixel size and model; {advice}"
        )

    @property
    def found(self) -> bool:
        """Whether there is detail beyond the start's filter that the images agree on."""
        return self.gain > max(LEAST_GAIN, CERTAIN * self.error)


def soft_stage(data: Dataset, state: RefineState, plan: SoftPlan) -> SoftStage:
    """Return the iteration's stage."""
    return SoftStage(data.geometry, plan, soft_fixed_point(data, state), data.devices)


def soft_fixed_point(data: Dataset, state: RefineState) -> FixedPoint:
    """Return the scales with which sums of images inside discs cannot overflow.

    A disc mixes the components of an image: none is larger afterwards than the largest of all was,
    times the sum of the amplitudes of the disc's own.
    """
    disc = data.geometry.disc()
    mixed = float(np.abs(np.fft.fft2(disc)).sum()) / disc.size
    weight = 1.0 / float(state.noise.min())
    largest = float(data.largest.max()) * mixed * weight * data.largest_ctf
    count = int(max(np.count_nonzero(data.half == half) for half in (1, 2)))
    return reconstruction.fixed_point(largest, weight * data.largest_ctf**2, count)


def soft_arrays(
    data: Dataset, state: RefineState, plan: SoftPlan
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays that every worker gets once for the iteration; SoftStage names them."""
    references = state.references
    if len(state.before):
        references = references + np.float32(MOMENTUM) * (references - state.before)
    shared = folds.transforms(references, plan.radius)
    return {**shared, "noise": state.noise, "orientations": _orientations(data, state, plan)}


def _orientations(data: Dataset, state: RefineState, plan: SoftPlan) -> NDArray[np.float32]:
    seed = np.random.SeedSequence(data.seed, spawn_key=(state.iteration + 1,))
    return orientation_grids.orientation_grid(plan.step, data.symmetry, seed, half_turn=True)


def soft_tasks(
    data: Dataset,
    ctf: CtfParameters,
    state: RefineState,
    plan: SoftPlan,
    centres: NDArray[np.float64],
) -> list[Task]:
    """Return one task per block for SoftStage.

    centres   (p, 2) pixels: where the particle list says that the particles lie
    """
    unmoved = replace(state.poses, shifts=centres)
    return iteration.align_tasks(data, ctf, replace(state, poses=unmoved), plan.insertion_radius)


def soft_next_state(
    data: Dataset, state: RefineState, stage: SoftStage, outcome: RunResult
) -> tuple[RefineState, Maps]:
    """Return the next state and the maps, from what the stage's run has given.

    data   with the blocks that took part
    """
    assert isinstance(outcome.totals, fold_sums.FoldTotals)
    radius = stage.plan.insertion_radius
    box, pixel_size = data.geometry.box, data.geometry.pixel_size
    sums = outcome.totals.finished(data.symmetry, data.geometry.box)
    maps = iteration.maps_of(data, sums.halves, radius, state.iteration + 1, mask=data.sphere)
    trusted = maps.masked
    resolved = resolution.last_resolved_shell(trusted, resolution.GOLD_STANDARD)
    reached = resolution.resolution_of(trusted, resolution.GOLD_STANDARD, box, pixel_size)
    poses, peak, evidence, offset = _collect(data, outcome.results, state)
    mine = np.sort(np.concatenate(data.blocks))
    turned = iteration.orientation_changes(data, state.poses, poses)[mine]
    new = replace(
        state,
        iteration=state.iteration + 1,
        poses=poses,
        references=folds.references_of(data, sums, trusted, (radius, resolved), None),
        before=state.references if state.iteration else state.before,
        noise=iteration.updated_noise(data, outcome.results, radius, state),
        correlation=trusted,
        resolution=max(reached, box * pixel_size / data.start_shell),  # until signal is found
        resolved_shell=max(min(resolved, radius), data.start_shell),
        jumped=float(np.mean(turned > iteration.JUMP * stage.plan.step)),
        peak=peak,
        evidence=evidence,
        spread=math.sqrt(offset / 2.0),
    )
    return new, maps


def _collect(
    data: Dataset, results: Sequence[SoftResult], state: RefineState
) -> tuple[Poses, NDArray[np.float64], float, float]:
    """Return poses and peaks of all particles, in the list's order; mean evidence and offset."""
    poses = iteration.collect_poses(data, [result.found.poses for result in results], state)
    peak, evidence, offset = (np.full(len(poses.score), np.nan) for _ in range(3))
    for rows, result in zip(data.blocks, results, strict=True):
        found = result.found
        peak[rows], evidence[rows], offset[rows] = found.peak, found.evidence, found.offset
    weighed = np.isfinite(peak)
    peak[~weighed] = peak[weighed].mean()
    return poses, peak, float(evidence[weighed].mean()), float(offset[weighed].mean())


def held_out_arrays(
    data: Dataset, state: RefineState, maps: Maps, plan: SoftPlan
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays for HeldOutStage: references without anything of the other half set."""
    box = data.geometry.box
    gain = np.clip(state.correlation, 0.0, 1.0)
    low = lowpass_gain(box, data.start_shell + 1.0)
    others = np.stack([filter_shells(maps.halves[2 - n], gain) * data.sphere for n in (1, 2)])
    coarser = np.stack([filter_shells(other, low) for other in others])
    coarse = folds.transforms(coarser, plan.radius)
    shared = folds.transforms(others, plan.radius)
    shared |= {"coarse1": coarse["reference1"], "coarse2": coarse["reference2"]}
    return {**shared, "noise": state.noise, "orientations": _orientations(data, state, plan)}


def held_out_tasks(data: Dataset, tasks: Sequence[Task]) -> list[Task]:
    """Return some of the tasks, evenly from both half sets, numbered anew."""
    size = max(1, len(data.half) // len(data.blocks))
    count = min(len(tasks), max(2, math.ceil(HELD_OUT / size)))
    chosen = np.unique(np.linspace(0, len(tasks) - 1, count).astype(int))
    return [replace(tasks[place], id=number) for number, place in enumerate(chosen.tolist())]


def signal_of(results: Sequence[NDArray[np.float64]]) -> Signal:
    """Return what HeldOutStage's results say."""
    evidence = np.concatenate(results)
    coarse, gain = evidence[:, 1], evidence[:, 0] - evidence[:, 1]
    root = math.sqrt(len(gain))
    return Signal(
        float(coarse.mean()),
        float(coarse.std()) / root,
        float(gain.mean()),
        float(gain.std()) / root,
    )
