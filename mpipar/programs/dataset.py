"""The data set of a refinement, from checked input: half sets, blocks, normalisation, bounds."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpipar.cryoem import masks, noise
from mpipar.cryoem.ctf import CtfParameters
from mpipar.cryoem.device.device_memory import LARGEST_DEVICE_BLOCK
from mpipar.cryoem.fourier import (
    components,
    filter_shells,
    largest_radius,
    lowpass_gain,
    supported_shell,
)
from mpipar.cryoem.search_plan import Sampling, finer_for
from mpipar.errors import InputError
from mpipar.programs import copies
from mpipar.programs.block_rows import MASK_EDGE, ImageGeometry, MeasuredRows
from mpipar.runtime.stage import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet
    from mpipar.programs.devices import DeviceChoice
    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.stages import ImageStatistics
    from mpipar.settings import RefineSettings

BLOCKS_WANTED = 128  # at least, if that does not make them too small
SMALLEST_BLOCK, LARGEST_BLOCK = 8, 64  # particles
FOLDS = 4
"""Parts of each half set, each of which is left out of the reference for its own images."""
MOST_FOLDED = 10_000
"""Slices in a half set, symmetry mates counted, from which on an image's own share in a reference
is too small to matter, and the work for references by folds is saved."""
DEVICE_BLOCKS = 16  # at least, if that does not make them smaller than a processor's
NORMALISED = 0.25
"""How far backgrounds may be from mean 0 and deviation 1 before images count as not normalised."""

FINEST_START = 30.0
"""A: finer detail of a model could stay in the map without being in the images."""
UNLIKE, OFF = 1.5, 0.5
"""A background whose deviation is more than UNLIKE times larger or smaller than the usual one, or
whose mean is more than OFF deviations from 0, is brought to the others' even if these count as
normalised. Those of normalised images differ by less than a third of that."""

FLAT = 1e-3
"""A background whose deviation is below this fraction of the usual one counts as absent."""


def ctf_of(particles: ParticleSet) -> CtfParameters:
    """Return the CTF parameters of all particles, (p,) each."""
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
    """Return the half set (p,) of each particle, 1 or 2: as the list says, or drawn at random.

    Copies of an image are in the half set of the first one.
    """
    first = copies.first_of_file(particles)
    if particles.half.all():
        return copies.together(particles.half, first)
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    drawn = (np.arange(particles.count) % 2 + 1).astype(np.int8)
    random.shuffle(drawn)
    return copies.together(drawn, first)


def folds_of(
    half: NDArray[np.int8],
    symmetry_order: int,
    first: NDArray[np.int64] | None = None,
) -> NDArray[np.int8]:
    """Return the fold (p,) of each particle within its half set, from 0.

    Neighbours of the particle list, which may show the same specimen, are in one fold, and so are
    copies of an image, which show the same noise.

    first   (p,) the first particle with the same image; None: each has its own
    """
    fold = np.zeros(len(half), np.int8)
    first = np.arange(len(half)) if first is None else first
    new = first == np.arange(len(half))
    rows = [np.flatnonzero((half == number) & new) for number in (1, 2)]
    slices = max(int(np.count_nonzero(half == number)) for number in (1, 2)) * symmetry_order
    if slices > MOST_FOLDED:
        return fold
    count = min(FOLDS, *map(len, rows))
    for mine in rows:
        for number, part in enumerate(np.array_split(mine, max(1, count))):
            fold[part] = number
    return copies.together(fold, first)


def blocks_of(
    half: NDArray[np.int8], fold: NDArray[np.int8] | None = None, *, on_devices: bool = False
) -> tuple[NDArray[np.int64], ...]:
    """Cut each fold of each half set into blocks of particle indices; without folds, each half set.

    The blocks depend on the half sets, folds and the kind of device only, not on the number of
    workers. A GPU is filled by many images at once.
    """
    size = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, math.ceil(len(half) / BLOCKS_WANTED)))
    if on_devices:
        size = min(LARGEST_DEVICE_BLOCK, max(LARGEST_BLOCK, math.ceil(len(half) / DEVICE_BLOCKS)))
    blocks: list[NDArray[np.int64]] = []
    folds = np.zeros_like(half) if fold is None else fold
    for number, part in itertools.product((1, 2), range(int(folds.max(initial=0)) + 1)):
        rows = np.flatnonzero((half == number) & (folds == part))
        blocks.extend(np.array_split(rows, max(1, math.ceil(len(rows) / size))))
    return tuple(blocks)


def geometry_of(
    inputs: RefineInputs, settings: RefineSettings, lowpassed: NDArray[np.float32]
) -> ImageGeometry:
    """Return box, pixel size and the particle's radius, from --diameter or else from the model."""
    widest = (inputs.box / 2 - 2) * inputs.pixel_size
    diameter = settings.diameter
    if diameter is None:
        diameter = masks.particle_diameter(lowpassed, inputs.pixel_size)
    return ImageGeometry(
        inputs.box, inputs.pixel_size, min(diameter / 2, widest) / inputs.pixel_size
    )


@dataclass(frozen=True)
class Start:
    """What a refinement starts from.

    model            (n, n, n) the initial model, filtered
    resolution       A, that it is filtered to
    geometry         of the images
    symmetry_order   number of operators of the point group
    """

    model: NDArray[np.float32]
    resolution: float
    geometry: ImageGeometry
    symmetry_order: int = 1


def start_of(inputs: RefineInputs, settings: RefineSettings, symmetry_order: int) -> Start:
    """Return the low-passed model and what follows from it."""
    cutoff = lowpass_of(inputs, settings, symmetry_order)
    gain = lowpass_gain(inputs.box, inputs.box * inputs.pixel_size / cutoff)
    model = filter_shells(inputs.model, gain)
    return Start(model, cutoff, geometry_of(inputs, settings, model), symmetry_order)


def lowpass_of(inputs: RefineInputs, settings: RefineSettings, symmetry_order: int) -> float:
    """Return the resolution in A to filter the model to.

    That is --lowpass, or what the model supports: it may be filtered already. But it is not used
    beyond 30 A, or a tenth of its diameter, so that it cannot impose detail; and a fifth of the
    diameter and 60 A are used in any case, less for a symmetric particle, because neither its
    orientation nor its hand shows at 60 A.
    """
    if settings.lowpass is not None:
        return settings.lowpass
    width = inputs.box * inputs.pixel_size
    shape = filter_shells(inputs.model, lowpass_gain(inputs.box, width / 40.0))
    diameter = masks.particle_diameter(shape, inputs.pixel_size)
    coarsest = min(60.0, diameter / 5.0) / finer_for(symmetry_order)
    finest = min(coarsest, max(FINEST_START, diameter / 10.0))
    return max(finest, width / supported_shell(inputs.model))


def measure_tasks(
    blocks: Sequence[NDArray[np.int64]], particles: ParticleSet | None = None
) -> list[Task]:
    """Return one task per block for MeasureStage; without particles, for images alone."""
    if particles is None:
        return [Task(number, number, None) for number in range(len(blocks))]
    ctf, shifts = ctf_of(particles), first_shifts(particles)
    return [
        Task(number, number, MeasuredRows(ctf.take(rows), shifts[rows]))
        for number, rows in enumerate(blocks)
    ]


def first_shifts(particles: ParticleSet) -> NDArray[np.float64]:
    """Return where the search for each centre starts, (p, 2) pixels: the list's origins, or 0."""
    if particles.origins is None:
        return np.zeros((particles.count, 2))
    return np.asarray(-particles.origins / particles.pixel_size)


@dataclass(frozen=True)
class Dataset:
    """What stays the same through a refinement; on rank 0 only.

    symmetry        (g, 3, 3) operators
    sphere          (n, n, n) soft mask of the particle's diameter
    mask            (n, n, n) the user's mask; None: a mask is made from each map
    half            (p,) half set, 1 or 2
    offset, gain    (p,) an image is used as (image - offset) * gain
    largest         (s,) bound on any amplitude of a shell, gains applied
    largest_ctf     bound on any contrast transfer
    fold            (p,) the fold of its half set, see `folds`
    blocks          particle indices of each block, all of one fold
    served_as       numbers of these blocks where rank 0 serves more; empty: as they come
    start_shell     the shell that the model is filtered to
    devices         the GPUs that align; None: the processors
    """

    geometry: ImageGeometry
    sampling: Sampling
    symmetry: NDArray[np.float64]
    sphere: NDArray[np.float32]
    mask: NDArray[np.float32] | None
    half: NDArray[np.int8]
    fold: NDArray[np.int8]
    offset: NDArray[np.float64]
    gain: NDArray[np.float64]
    largest: NDArray[np.float64]
    largest_ctf: float
    blocks: tuple[NDArray[np.int64], ...]
    seed: int
    start_shell: int
    devices: DeviceChoice | None = None
    served_as: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageConstants:
    """What is measured of the images once, before the first iteration.

    half           (p,) half set, 1 or 2
    offset, gain   (p,) an image is used as (image - offset) * gain
    largest        (s,) bound on any amplitude of a shell, gains applied
    normalised     whether offset and gain had to be fitted
    fold           (p,) the fold of its half set; None: as `folds_of` has it
    """

    half: NDArray[np.int8]
    offset: NDArray[np.float64]
    gain: NDArray[np.float64]
    largest: NDArray[np.float64]
    normalised: bool
    fold: NDArray[np.int8] | None = None


def measure(
    box: int,
    half: NDArray[np.int8],
    blocks: Sequence[NDArray[np.int64]],
    measured: Sequence[ImageStatistics],
) -> tuple[ImageConstants, NDArray[np.float64]]:
    """Return each image's normalisation, bounds on amplitudes, and the first noise spectra (2, s).

    measured   one per block
    raises     InputError if most images have no background to measure the noise in

    If most backgrounds have mean 0 and deviation 1 (RELION's convention), images are left as they
    are, but for single ones of quite another grey scale; else all are brought to that. The signal
    is not known yet, so an image's whole power counts as noise.
    """
    mean, deviation = np.zeros(len(half)), np.ones(len(half))
    for rows, block in zip(blocks, measured, strict=True):
        mean[rows], deviation[rows] = block.mean, block.deviation
    off = max(float(np.abs(np.median(mean))), float(np.median(np.abs(deviation - 1.0))))
    change = off > NORMALISED
    usual = float(np.median(deviation))
    if not usual > 0:
        raise InputError(
            "most particle images have the same value in all pixels around the particle, so their "
            "noise cannot be measured; extract them again without a mask"
        )
    # an image without a background is brought to the others' grey scale, not magnified
    own = np.where(deviation > FLAT * usual, deviation, usual)
    fitted = change | _unlike(mean, deviation, usual)
    offset, gain = np.where(fitted, mean, 0.0), np.where(fitted, 1.0 / own, 1.0)
    pairs = list(zip(blocks, measured, strict=True))
    largest = np.max(
        [(gain[rows, None] * block.largest).max(axis=0) for rows, block in pairs], axis=0
    )
    if not change:
        largest[0] += (
            float(np.abs(mean).max()) * box * box
        )  # measured without the mean, which the images keep
    wanted = components(box, largest_radius(box))
    spectra = []
    for number in (1, 2):
        mine = [(rows, block) for rows, block in pairs if half[rows[0]] == number]
        total = np.sum(
            [(gain[rows, None] ** 2 * block.power).sum(axis=0) for rows, block in mine], axis=0
        )
        spectra.append(noise.spectrum(total, sum(len(rows) for rows, _ in mine), wanted))
    return ImageConstants(half, offset, gain, largest, change), np.array(spectra)


def _unlike(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], usual: float
) -> NDArray[np.bool_]:
    """Return which images (p,) have backgrounds of quite another grey scale than most."""
    other_scale = (deviation > UNLIKE * usual) | (deviation < usual / UNLIKE)
    return np.asarray(other_scale | (np.abs(mean) > OFF * usual))


def make_dataset(
    inputs: RefineInputs,
    settings: RefineSettings,
    start: Start,
    operators: NDArray[np.float64],
    constants: ImageConstants,
    devices: DeviceChoice | None = None,
) -> Dataset:
    """Put together what stays the same through a refinement."""
    geometry = start.geometry
    box, pixel_size = inputs.box, inputs.pixel_size
    finest = largest_radius(box)
    if settings.targetres is not None:
        finest = min(finest, max(4, math.floor(box * pixel_size / settings.targetres)))
    fold = constants.fold
    if fold is None:
        fold = folds_of(constants.half, len(operators))
    return Dataset(
        geometry=geometry,
        sampling=Sampling(box, 2 * geometry.radius, finest, len(operators)),
        symmetry=operators,
        sphere=masks.soft_sphere(box, geometry.radius, MASK_EDGE),
        mask=inputs.mask,
        half=constants.half,
        fold=fold,
        offset=constants.offset,
        gain=constants.gain,
        largest=constants.largest,
        largest_ctf=largest_contrast(ctf_of(inputs.particles), pixel_size),
        blocks=blocks_of(constants.half, fold, on_devices=devices is not None),
        seed=settings.seed,
        start_shell=max(2, min(round(box * pixel_size / start.resolution), finest)),
        devices=devices,
    )


def largest_contrast(ctf: CtfParameters, pixel_size: float) -> float:
    """Return a bound on any contrast transfer; above 1 with scales or negative B factors."""
    steepest = max(0.0, float(-ctf.b_factor.min())) / (4.0 * (2.0 * pixel_size) ** 2)
    return max(1.0, float(np.abs(ctf.scale).max()) * math.exp(steepest))
