"""From checked input to a refinement's data set: half sets, blocks, the first look, references."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpipar.cryoem import masks, noise
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.ctf import CtfParameters
from mpipar.cryoem.fourier import components, filter_shells, largest_radius, lowpass_gain
from mpipar.cryoem.search_plan import Sampling, finer_for
from mpipar.errors import InputError
from mpipar.programs.iteration import Dataset, RefineState
from mpipar.programs.stages import MASK_EDGE, FirstLook, ImageGeometry, ParticleRows
from mpipar.runtime.stage import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet
    from mpipar.programs.inputs import RefineInputs
    from mpipar.settings import RefineSettings

BLOCKS_WANTED = 128
SMALLEST_BLOCK, LARGEST_BLOCK = 8, 64
NORMALISED = 0.25
"""How far backgrounds may be from mean 0 and deviation 1 before images count as not normalised."""

FLAT = 1e-3
"""Deviation of a background, as a fraction of the usual one, under which it counts as none."""


def ctf_of(particles: ParticleSet) -> CtfParameters:
    """The microscope's part of a particle list."""
    return CtfParameters(
        defocus_u=particles.defocus_u,
        defocus_v=particles.defocus_v,
        defocus_angle=particles.defocus_angle,
        voltage=particles.voltage,
        spherical_aberration=particles.spherical_aberration,
        amplitude_contrast=particles.amplitude_contrast,
        phase_shift=particles.phase_shift,
        b_factor=particles.b_factor,
        scale=particles.ctf_scale,
    )


def half_sets(particles: ParticleSet, seed: int) -> NDArray[np.int8]:
    """1 or 2 for each particle: as the list says, or drawn evenly at random."""
    if particles.half.all():
        return particles.half.astype(np.int8)
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    drawn = (np.arange(particles.count) % 2 + 1).astype(np.int8)
    random.shuffle(drawn)
    return drawn


def blocks_of(half: NDArray[np.int8]) -> tuple[NDArray[np.int64], ...]:
    """Cut each half set into blocks by particle index; only the number of particles decides how."""
    size = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, math.ceil(len(half) / BLOCKS_WANTED)))
    blocks: list[NDArray[np.int64]] = []
    for number in (1, 2):
        rows = np.flatnonzero(half == number)
        blocks.extend(np.array_split(rows, max(1, math.ceil(len(rows) / size))))
    return tuple(blocks)


def geometry_of(
    inputs: RefineInputs, settings: RefineSettings, lowpassed: NDArray[np.float32]
) -> ImageGeometry:
    """Box, pixel size and the particle's radius: half of --diameter, or of what the model shows."""
    widest = (inputs.box / 2 - 2) * inputs.pixel_size
    diameter = settings.diameter
    if diameter is None:
        diameter = masks.particle_diameter(lowpassed, inputs.pixel_size)
    return ImageGeometry(
        inputs.box, inputs.pixel_size, min(diameter / 2, widest) / inputs.pixel_size
    )


def lowpass_of(inputs: RefineInputs, settings: RefineSettings, symmetry_order: int) -> float:
    """Angstrom to filter the model to: --lowpass, or a fifth of its diameter, at most 60.

    Finer for symmetric particles: neither their orientation nor their hand shows at 60 A.
    """
    if settings.lowpass is not None:
        return settings.lowpass
    shape = filter_shells(
        inputs.model, lowpass_gain(inputs.box, inputs.box * inputs.pixel_size / 40.0)
    )
    coarsest = min(60.0, masks.particle_diameter(shape, inputs.pixel_size) / 5.0)
    return coarsest / finer_for(symmetry_order)


def first_tasks(blocks: Sequence[NDArray[np.int64]]) -> list[Task]:
    """One task per block, with nothing but the block."""
    return [Task(number, number, None) for number in range(len(blocks))]


def align_tasks(data: Dataset, ctf: CtfParameters, state: RefineState) -> list[Task]:
    """One task per block, with what its particles' last poses are."""
    tasks = []
    for number, rows in enumerate(data.blocks):
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
        )
        tasks.append(Task(number, number, payload))
    return tasks


@dataclass(frozen=True)
class Constants:
    """What the first look found: half, offset, gain per particle; largest amplitude per shell."""

    half: NDArray[np.int8]
    offset: NDArray[np.float64]
    gain: NDArray[np.float64]
    largest: NDArray[np.float64]
    normalised: bool  # whether offset and gain had to be fitted


def measure(
    box: int,
    half: NDArray[np.int8],
    blocks: Sequence[NDArray[np.int64]],
    looks: Sequence[FirstLook],
) -> tuple[Constants, NDArray[np.float64]]:
    """Normalisation of each image, bounds on amplitudes, and the first noise spectra (2, s).

    Images whose backgrounds have mean 0 and deviation 1 (RELION's convention) are left as they
    are; others are brought there.
    Nothing being known of the signal yet, an image's whole power counts as noise.
    """
    mean, deviation = np.zeros(len(half)), np.ones(len(half))
    for rows, look in zip(blocks, looks, strict=True):
        mean[rows], deviation[rows] = look.mean, look.deviation
    off = max(float(np.abs(np.median(mean))), float(np.median(np.abs(deviation - 1.0))))
    change = off > NORMALISED
    usual = float(np.median(deviation))
    if not usual > 0:
        raise InputError(
            "most particle images have the same value in all pixels around the particle, so their "
            "noise cannot be measured; extract them again without a mask"
        )
    offset = mean if change else np.zeros(len(half))
    # an image without a background is brought to the others' grey scale, not magnified
    gain = (
        1.0 / np.where(deviation > FLAT * usual, deviation, usual) if change else np.ones(len(half))
    )
    pairs = list(zip(blocks, looks, strict=True))
    largest = np.max(
        [(gain[rows, None] * look.largest).max(axis=0) for rows, look in pairs], axis=0
    )
    if not change:
        largest[0] += (
            float(np.abs(mean).max()) * box * box
        )  # the look took the mean off, the images keep it
    wanted = components(box, largest_radius(box))
    spectra = []
    for number in (1, 2):
        mine = [(rows, look) for rows, look in pairs if half[rows[0]] == number]
        total = np.sum(
            [(gain[rows, None] ** 2 * look.power).sum(axis=0) for rows, look in mine], axis=0
        )
        spectra.append(noise.spectrum(total, sum(len(rows) for rows, _ in mine), wanted))
    return Constants(half, offset, gain, largest, change), np.array(spectra)


def first_state(
    inputs: RefineInputs,
    data: Dataset,
    spectra: NDArray[np.float64],
    lowpassed: NDArray[np.float32],
    resolution: float,
) -> RefineState:
    """Before the first iteration: no pose known, both references the filtered model."""
    count, box = inputs.particles.count, inputs.box
    origins = inputs.particles.origins
    shifts = np.zeros((count, 2)) if origins is None else -origins / inputs.pixel_size
    poses = Poses(np.broadcast_to(np.eye(3), (count, 3, 3)).copy(), shifts, np.full(count, -np.inf))
    shell = max(2, min(round(box * inputs.pixel_size / resolution), data.sampling.finest_shell))
    references = np.stack([lowpassed * data.sphere] * 2)
    correlation = lowpass_gain(box, shell).astype(np.float64)
    return RefineState(
        0, poses, references, spectra, correlation, resolution, shell, np.zeros(count, bool), 1.0
    )


def make_dataset(
    inputs: RefineInputs,
    settings: RefineSettings,
    geometry: ImageGeometry,
    operators: NDArray[np.float64],
    constants: Constants,
) -> Dataset:
    """What stays the same through a refinement."""
    box, pixel_size = inputs.box, inputs.pixel_size
    finest = largest_radius(box)
    if settings.targetres is not None:
        finest = min(finest, max(4, math.floor(box * pixel_size / settings.targetres)))
    return Dataset(
        geometry=geometry,
        sampling=Sampling(box, 2 * geometry.radius, finest, len(operators)),
        symmetry=operators,
        sphere=masks.soft_sphere(box, geometry.radius, MASK_EDGE),
        mask=inputs.mask,
        half=constants.half,
        offset=constants.offset,
        gain=constants.gain,
        largest=constants.largest,
        largest_ctf=largest_contrast(ctf_of(inputs.particles), pixel_size),
        blocks=blocks_of(constants.half),
        seed=settings.seed,
    )


def largest_contrast(ctf: CtfParameters, pixel_size: float) -> float:
    """Bound on any contrast transfer to Nyquist; above 1 with scales or negative B factors."""
    steepest = max(0.0, float(-ctf.b_factor.min())) / (4.0 * (2.0 * pixel_size) ** 2)
    return max(1.0, float(np.abs(ctf.scale).max()) * math.exp(steepest))
