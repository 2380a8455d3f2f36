"""What is wrong with a refinement, told from its own numbers and maps: alarms for the user.

An alarm is said only if it is sure. Each threshold lies between what good runs and failed ones gave
on sets of known truth; docs/refine.md has these numbers.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem import masks
from mpipar.cryoem.fourier import filter_shells, lowpass_gain
from mpipar.cryoem.orientation_spread import directional_resolution, spread_of
from mpipar.cryoem.symmetry_check import CONVINCING, symmetry_correlation
from mpipar.programs.convergence import LOCAL, SEARCH, STILL
from mpipar.programs.dataset import start_of
from mpipar.programs.quality import quality_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mpipar.cryoem.orientation_spread import DirectionalResolution, OrientationSpread
    from mpipar.cryoem.particle_quality import ParticleQuality
    from mpipar.programs.convergence import FinishedIteration
    from mpipar.programs.dataset import Dataset
    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.iteration import Maps, RefineState
    from mpipar.settings import RefineSettings

SHELLS_BEYOND, RATIO_BEYOND = 1.5, 1.1
"""The start reaches a shell beyond its cutoff (the filter's edge). A map of more detail has to be
resolved by so many shells more than the cutoff, and by this factor."""
STILL_MOVING: Final = 0.1
"""Fraction of particles that may still turn in the last search over all orientations."""
FEWEST_SEARCHES: Final = 2  # in the first one, all particles turn
STILL_DRIFTING: Final = 2 * STILL
"""Way of the particles' rims in the last iteration, over the resolution."""
POORLY_SPREAD: Final = 0.5
"""Efficiency of a spread of orientations below which half of the particles are of no use."""
INVERTED: Final = -0.3
"""Correlation of the map with the start below which one of the two is inverted."""
ALIKE_AT_START, PAST_DOUBT = 0.8, 2.5
"""Correlation with the start, at its resolution, below which the map has become something else. If
the map has so many times the start's detail, it has found its way from a poor start, as from half
of the molecule,"""
UNEVEN: Final = 0.85
"""unless the efficiency of its orientations is below this. Poses that all follow one wrong model
give half maps that agree to a third of the start's detail, too, but the images match few sides of
such a map: 0.71 to 0.78, against 0.96 and more where a ball, half or a third of the molecule, or
another one, were the model and the poses came out right."""
SHAPE: Final = 30.0
"""Angstrom, or a quarter of the diameter if that is less: what counts as shape, not as detail."""
FAR_FROM_CENTRE: Final = 0.07
"""Of the diameter, between the centre of the box and the map's centre of mass, or its middle."""
RIM: Final = 0.02  # of the density along an axis, on either side
CUT_OFF: Final = 0.1
"""Fraction of the map's density that may lie outside of the particle's sphere."""
WIDTH: Final = 96  # of a line, in characters
COARSE: Final = 40.0
"""Angstrom to which a map is filtered before its density is looked at, at least."""


@dataclass(frozen=True)
class Alarm:
    """A short name, and a sentence: what was seen, what it means, what to do."""

    name: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}"


@dataclass(frozen=True)
class StartingModel:
    """What the refinement began from.

    volume       (n, n, n) the filtered model
    resolution   A, of that
    symmetric    correlation of the model with its symmetry mates; 1 without symmetry
    """

    volume: NDArray[np.float32]
    resolution: float
    symmetric: float = 1.0


@dataclass(frozen=True)
class RunEvidence:
    """What is known at the end of an iteration.

    history            of all finished iterations, oldest first
    finished           whether no iteration follows
    resolution         A, of the map
    start              the model
    combined           (n, n, n) the map of all particles, not masked
    pixel_size, radius   A; of the sphere that the particle lies in
    spread             of the orientations; None if there are too few
    directions         resolution by direction; None where it was not measured
    quality            of the particles; None where it was not measured
    signal             whether the images hold any beyond the start; else the map shows noise
    """

    history: Sequence[FinishedIteration]
    finished: bool
    resolution: float
    start: StartingModel
    combined: NDArray[np.float32]
    pixel_size: float
    radius: float
    spread: OrientationSpread | None = None
    directions: DirectionalResolution | None = None
    quality: ParticleQuality | None = None
    signal: bool = True

    @property
    def settled(self) -> bool:
        """Whether the search over all orientations has ended."""
        return self.finished or bool(self.history and _is_local(self.history[-1]))


@dataclass(frozen=True)
class Findings:
    """The maps of an iteration, what else is known, and the alarms that this is enough for."""

    maps: Maps
    evidence: RunEvidence
    alarms: tuple[Alarm, ...]

    def in_short(self) -> str:
        """Return the alarms' names as the end of a sentence; nothing if there are none."""
        names = ", ".join(alarm.name for alarm in self.alarms)
        return f", with warnings: {names}" if names else ""

    def block(self, indent: str = "  ") -> list[str]:
        """Return the alarms as lines that fit a terminal, under a heading; none without alarms."""
        lines = ["warnings:"] if self.alarms else []
        for alarm in self.alarms:
            lines += textwrap.wrap(
                str(alarm), WIDTH, initial_indent=indent, subsequent_indent=2 * indent
            )
        return lines

    def heading(self) -> str:
        """Return the block as comments at the head of a text file."""
        return "".join(f"# {line}\n" for line in self.block())


def starting_model(
    inputs: RefineInputs, settings: RefineSettings, symmetry: NDArray[np.float64]
) -> StartingModel:
    """Return the model as the first iteration used it.

    symmetry   (g, 3, 3) operators
    """
    start = start_of(inputs, settings, len(symmetry))
    symmetric = symmetry_correlation(inputs.model, symmetry) if len(symmetry) > 1 else 1.0
    return StartingModel(start.model, start.resolution, symmetric)


def search_has_just_ended(history: Sequence[FinishedIteration]) -> bool:
    """Whether the last iteration is the first that did not search all orientations."""
    last_two = list(history[-2:])
    return any(map(_is_search, last_two[:-1])) and _is_local(last_two[-1])


def _is_search(step: FinishedIteration) -> bool:
    """Whether all orientations were searched for the best one."""
    return step.kind == SEARCH


def _is_local(step: FinishedIteration) -> bool:
    """Whether orientations were looked for near the last ones only."""
    return step.kind == LOCAL


def look(
    data: Dataset,
    state: RefineState,
    maps: Maps,
    history: Sequence[FinishedIteration],
    start: StartingModel,
    *,
    finished: bool,
) -> Findings:
    """Return what an iteration has to be alarmed about; at the end, also by direction."""
    pixel_size = data.geometry.pixel_size
    directions = quality = None
    if finished:
        quality = quality_of(data, state)
        first, second = (half * maps.mask for half in maps.halves)
        directions = directional_resolution(first, second, pixel_size, correlation_by_mask(maps))
    evidence = RunEvidence(
        history=history,
        finished=finished,
        resolution=state.resolution,
        start=start,
        combined=maps.combined,
        pixel_size=pixel_size,
        radius=data.geometry.radius * pixel_size,
        spread=spread_of(state.poses.rotations, data.symmetry),
        directions=directions,
        quality=quality,
        signal=not maps.mark,
    )
    return Findings(maps, evidence, tuple(alarms_of(evidence)))


def correlation_by_mask(maps: Maps) -> NDArray[np.float64]:
    """Return what was taken off the masked FSC: corrected = (masked - it) / (1 - it), per shell."""
    left = np.maximum(1.0 - maps.corrected, 1e-6)
    return np.asarray(np.clip((maps.masked - maps.corrected) / left, 0.0, 1.0))


def alarms_of(evidence: RunEvidence) -> list[Alarm]:
    """Return the alarms that are sure; none before poses have settled.

    Without signal, poses and map are those of noise, and tell nothing of what is wrong: a map of
    noise was the negative of its model (correlation -0.67). The model may still be judged.
    """
    if not evidence.settled:
        return []
    if not evidence.signal:
        return [alarm for alarm in [_wrong_symmetry(evidence)] if alarm is not None]
    checks: tuple[Callable[[RunEvidence], Alarm | None], ...] = (
        _not_past_the_start,
        _still_moving,
        _poorly_spread,
        _junk,
        _wrong_symmetry,
        # where the density of a map that has gone wrong lies says nothing more
        lambda evidence: _map_and_start(evidence) or _off_centre(evidence),
    )
    return [alarm for check in checks if (alarm := check(evidence)) is not None]


def _not_past_the_start(evidence: RunEvidence) -> Alarm | None:
    """At the end only: a search over all orientations may still bring detail."""
    width = evidence.combined.shape[0] * evidence.pixel_size
    begun = width / evidence.start.resolution
    enough = max(begun + SHELLS_BEYOND, begun * RATIO_BEYOND)
    if not evidence.finished or width / evidence.resolution > enough:
        return None
    return Alarm(
        "resolution not past the start",
        f"the resolution, {evidence.resolution:.1f} A, is not clearly past the "
        f"{evidence.start.resolution:.0f} A that the model was filtered to: nothing in the map "
        "is shown to come from the images. Look whether they hold this molecule (class averages), "
        "and begin from another or a less filtered model (--lowpass)",
    )


def _still_moving(evidence: RunEvidence) -> Alarm | None:
    """Local iterations cannot turn a pose far, so the last search over all orientations counts."""
    searches = [step for step in evidence.history if _is_search(step)]
    last_local = [step for step in evidence.history[-1:] if _is_local(step)]
    if len(searches) >= FEWEST_SEARCHES and searches[-1].jumped > STILL_MOVING:
        seen = (
            f"in the last search over all orientations {searches[-1].jumped:.0%} of the particles "
            "still turned by more than 1.5 steps of the search (at most 4 % where poses are found)"
        )
    elif evidence.finished and any(step.drift > STILL_DRIFTING for step in last_local):
        seen = (
            "in the last iteration half of the particles still moved their rims by "
            f"{last_local[0].drift:.0%} of the resolution or more ({STILL:.0%} where a refinement "
            "ends by itself)"
        )
    else:
        return None
    return Alarm(
        "poses still moving",
        f"{seen}: their poses are not found, and the resolution that is given may be too good. A "
        "better model, more iterations (--iter) or more particles may help",
    )


def _poorly_spread(evidence: RunEvidence) -> Alarm | None:
    spread, directions = evidence.spread, evidence.directions
    if spread is None or spread.efficiency >= POORLY_SPREAD:
        return None
    empty = f", and {spread.empty:.0%} of the directions have no data" if spread.empty else ""
    by_direction = (
        f"; the resolution is {directions.best:.1f} A in the best direction and "
        f"{directions.worst:.1f} A in the worst"
        if directions is not None
        else ""
    )
    return Alarm(
        "orientations poorly spread",
        f"the particles show few sides of the molecule: {spread.efficiency:.0%} of them would do "
        f"as well if they were evenly spread{empty}{by_direction}. The map is smeared in the worst "
        "direction. Tilt the stage, change the grid or the detergent, or thin out the common view; "
        "if the specimen has no such view, the model is wrong, and so are the poses",
    )


def _junk(evidence: RunEvidence) -> Alarm | None:
    """At the end only: what is not yet aligned well matches as noise does."""
    quality = evidence.quality
    if quality is None or not (said := quality.sentence()):
        return None
    if quality.like_noise:
        # a held-out half map without detail beyond the start says nothing of poses
        if not quality.in_noise_peak and _not_past_the_start(evidence):
            return None
        return Alarm("particles match like noise", f"{said}: neither poses nor map can be trusted")
    return Alarm(
        "junk among the particles",
        f"{said}. particles.star names them (rlnParticleFigureOfMerit below 0.5), and "
        "particles.png shows how well they are told apart. Leave them out and refine again",
    )


def _wrong_symmetry(evidence: RunEvidence) -> Alarm | None:
    """The map shows any symmetry that was imposed; what the model shows is evidence."""
    if evidence.start.symmetric >= CONVINCING:
        return None
    return Alarm(
        "symmetry not shown",
        "the model hardly shows the symmetry that was imposed (correlation "
        f"{evidence.start.symmetric:.2f} with its mates; {CONVINCING:g} and more where it is "
        "right). The map has it because it was imposed, and its resolution says nothing for it. "
        "Refine without --sym, and look whether the map shows it by itself",
    )


def _map_and_start(evidence: RunEvidence) -> Alarm | None:
    """Compare the map with the model inside the sphere, at the model's resolution or coarser.

    Their shapes are compared: two structures of one molecule may differ in all finer detail.
    """
    cutoff = max(evidence.start.resolution, min(SHAPE, evidence.radius / 2))
    gain = _gain(evidence, cutoff)
    inside = _distance(evidence) <= evidence.radius
    now, then = (
        filter_shells(volume, gain)[inside].astype(np.float64)
        for volume in (evidence.combined, evidence.start.volume)
    )
    if not (now.std() > 0 and then.std() > 0):
        return None
    alike = float(np.corrcoef(now, then)[0, 1])
    if alike < INVERTED:
        return Alarm(
            "wrong contrast",
            f"the map is the negative of the model (correlation {alike:.2f}): the images or the "
            "model have inverted contrast. Look at both, and give --contrast invert or as-is",
        )
    uneven = evidence.spread is not None and evidence.spread.efficiency < UNEVEN
    found = evidence.start.resolution >= PAST_DOUBT * evidence.resolution and not uneven
    if alike < ALIKE_AT_START and not found:
        return Alarm(
            "not the start any more",
            f"at {cutoff:.0f} A the map has become something else than the "
            f"model (correlation {alike:.2f}; 0.9 and more where the model is right): the model "
            "may be of another molecule, or of another scale or contrast than the images. Compare "
            "the map with the model, and begin again from a model that is made of these images",
        )
    return None


def _off_centre(evidence: RunEvidence) -> Alarm | None:
    """Look at the dense part of the map, filtered to 40 A, or coarser as the start."""
    cutoff = max(COARSE, evidence.start.resolution)
    smooth = filter_shells(evidence.combined, _gain(evidence, cutoff))
    distance = _distance(evidence)
    smooth[distance > (evidence.combined.shape[0] / 2 - 1) * evidence.pixel_size] = 0.0
    if not smooth.max() > 0:
        return None
    dense = masks.dense_part(smooth)
    outside = float(dense[distance > evidence.radius].sum())
    if outside > CUT_OFF:
        return Alarm(
            "map cut off",
            f"{outside:.0%} of the map's density lies outside of the particle's diameter, "
            f"{2 * evidence.radius:.0f} A, and is cut off: give a larger --diameter, or a model "
            "that is centred",
        )
    centres = (masks.centre_of_mass(dense), _middle(dense))
    # a molecule with a stalk is centred by one of the two, not by both
    off = min(float(np.linalg.norm(centre)) for centre in centres) * evidence.pixel_size
    if off <= FAR_FROM_CENTRE * 2 * evidence.radius:
        return None
    return Alarm(
        "centre off",
        f"the map lies {off:.0f} A off the centre of the box "
        f"({off / (2 * evidence.radius):.0%} of the diameter): the resolution is hardly worse for "
        "that, but the diameter is too large, and the origins are not the particles' centres. "
        "Begin again from a centred model",
    )


def _middle(dense: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x, y, z of the middle of a density, (3,) pixels from the voxel n // 2; the sum is 1.

    It is half-way between the places that leave 2 % of the density on one side.
    """
    middles = []
    for axes in ((0, 1), (0, 2), (1, 2)):
        sums = np.cumsum(dense.sum(axis=axes))
        middles.append(np.searchsorted(sums, (RIM, 1.0 - RIM)).mean() - dense.shape[0] // 2)
    return np.array(middles)


def _gain(evidence: RunEvidence, cutoff: float) -> NDArray[np.float32]:
    box = evidence.combined.shape[0]
    return lowpass_gain(box, box * evidence.pixel_size / cutoff)


def _distance(evidence: RunEvidence) -> NDArray[np.float64]:
    """Return each voxel's distance from the centre of the box in A."""
    box = evidence.combined.shape[0]
    x = (np.arange(box) - box // 2) * evidence.pixel_size
    squares = x * x
    return np.asarray(np.sqrt(squares[:, None, None] + squares[:, None] + squares))
