"""Everything a refinement reads, checked on rank 0 before anything is computed or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem.resampling import resample_volume
from mpipar.errors import InputError, UsageError
from mpipar.formats.mrc import Volume, read_volume, stack_notes
from mpipar.formats.star import read_particles
from mpipar.programs.images import StackSource, open_stacks

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.formats.mrc import Stack
    from mpipar.formats.particles import ParticleSet
    from mpipar.settings import RefineSettings

FEWEST_PER_HALF: Final = 2
ROUNDING_ERROR: Final = 0.01  # relative difference of pixel sizes that is taken for rounding
UNSET_PIXEL_SIZE: Final = 1.0  # A; what many programs write when they do not know it


@dataclass(frozen=True)
class RefineInputs:
    """The input of a refinement, after all checks."""

    particles: ParticleSet
    stacks: StackSource  # not yet divided into blocks
    model: NDArray[np.float32]  # (n, n, n) at the particles' box and pixel size
    mask: NDArray[np.float32] | None  # (n, n, n), 0 to 1
    pixel_size: float  # A
    box: int  # n, even
    notes: tuple[str, ...]  # what was assumed, adapted or ignored, for the user


def read_inputs(settings: RefineSettings) -> RefineInputs:
    """Read and check particles, model and mask; nothing is written.

    raises   InputError, MissingInputError or UsageError saying what is wrong and what to do
    """
    if settings.input is None or settings.model is None:
        raise UsageError(
            "refine needs particles and a model: --input particles.star --model init.mrc"
        )
    particles = read_particles(settings.input, settings.apix)
    _require_halves(particles)
    stacks = StackSource(particles, open_stacks(particles))
    _require_box(particles, stacks.stacks[0])
    full_box, pixel_size = stacks.stacks[0].box, particles.pixel_size
    notes = [*particles.warnings, *_image_notes(particles, stacks)]
    if settings.diameter is not None and settings.diameter > full_box * pixel_size:
        raise InputError(
            f"--diameter {settings.diameter:g} A is larger than the images, which are "
            f"{full_box * pixel_size:g} A wide ({full_box} pixels of {pixel_size:g} A)"
        )
    model = _fit_model(settings.model, pixel_size, stacks.box, full_box, notes)
    mask = None if settings.mask is None else _fit_mask(settings.mask, particles, stacks, notes)
    stacks.check_sample()
    return RefineInputs(particles, stacks, model, mask, pixel_size, stacks.box, tuple(notes))


def _require_halves(particles: ParticleSet) -> None:
    if particles.half.any():
        sizes = [int((particles.half == half).sum()) for half in (1, 2)]
    else:
        sizes = [particles.count // 2, particles.count - particles.count // 2]
    if min(sizes) < FEWEST_PER_HALF:
        raise InputError(
            f"{particles.path} gives half sets of {sizes[0]} and {sizes[1]} particles; each "
            f"needs at least {FEWEST_PER_HALF}, and a useful map some thousands; without a "
            "rlnRandomSubset column the half sets are drawn evenly"
        )


def _require_box(particles: ParticleSet, stack: Stack) -> None:
    said = particles.optics["rlnImageSize"].astype(float)
    if (said != stack.box).any():
        raise InputError(
            f"{particles.path} says rlnImageSize = {said.iloc[0]:g}, but the images in "
            f"{stack.path} are {stack.box} pixels wide; does the stack belong to this STAR file?"
        )


def _image_notes(particles: ParticleSet, stacks: StackSource) -> list[str]:
    """Return notes for the user on what is unusual in the stacks, but no error."""
    notes = stack_notes(stacks.stacks)
    stack = stacks.stacks[0]
    if stack.box != stacks.box:
        notes.append(
            f"the box of {stack.box} pixels is odd: the last row and column are left out, which "
            f"makes {stacks.box}; the centre stays"
        )
    header = stack.pixel_size
    unset = header in (0.0, UNSET_PIXEL_SIZE)
    if not unset and abs(header - particles.pixel_size) > ROUNDING_ERROR * particles.pixel_size:
        notes.append(
            f"{stack.path} has a pixel size of {header:g} A in its header; the particles' "
            f"{particles.pixel_size:g} A is used"
        )
    return notes


def _finite_volume(path: Path, what: str) -> Volume:
    volume = read_volume(path)
    if not np.isfinite(volume.data).all():
        raise InputError(f"the {what} {path} has voxels that are NaN or infinite")
    if volume.data.min() == volume.data.max():
        raise InputError(
            f"the {what} {path} is {volume.data.flat[0]:g} everywhere; it holds no structure"
        )
    return volume


def _fit_model(
    path: Path, pixel_size: float, box: int, full_box: int, notes: list[str]
) -> NDArray[np.float32]:
    """Return the model, brought to the particles' pixel size and box."""
    volume = _finite_volume(path, "model")
    notes += volume.notes
    size, old_box = volume.pixel_size, volume.data.shape[0]
    if size == 0 or (size == UNSET_PIXEL_SIZE != pixel_size and old_box == full_box):
        said = (
            "no pixel size"
            if size == 0
            else "the pixel size 1 A, which often means that it is not set"
        )
        notes.append(
            f"the model {path} has {said} in its header: the particles' {pixel_size:g} A is assumed"
        )
        size = pixel_size
    if abs(size - pixel_size) > ROUNDING_ERROR * pixel_size or old_box not in (box, full_box):
        notes.append(
            f"the model {path} ({old_box} pixels of {size:g} A, {old_box * size:g} A wide) is "
            f"brought to the particles' {box} pixels of {pixel_size:g} A ({box * pixel_size:g} A)"
        )
    model = resample_volume(volume.data, size, pixel_size, box)
    if model.min() == model.max():
        raise InputError(
            f"the model {path} has nothing left at the particles' box; check its pixel size"
        )
    return model


def _fit_mask(
    path: Path, particles: ParticleSet, stacks: StackSource, notes: list[str]
) -> NDArray[np.float32]:
    """Return the mask, scaled to 0 to 1; InputError unless it lies on the particles' grid."""
    volume = _finite_volume(path, "mask")
    notes += volume.notes
    full_box, pixel_size = stacks.stacks[0].box, particles.pixel_size
    size, old_box = volume.pixel_size, volume.data.shape[0]
    unset = size in (0.0, UNSET_PIXEL_SIZE)
    other_size = not unset and abs(size - pixel_size) > ROUNDING_ERROR * pixel_size
    if old_box not in (full_box, stacks.box) or other_size:
        raise InputError(
            f"the mask {path} has {old_box} pixels of {size:g} A, the particles {full_box} of "
            f"{pixel_size:g} A; make a mask on the particles' grid (relion_mask_create, or "
            "relion_image_handler --rescale_angpix --new_box)"
        )
    lowest, highest = float(volume.data.min()), float(volume.data.max())
    if lowest < -ROUNDING_ERROR * highest or highest <= 0:
        raise InputError(
            f"the mask {path} has values from {lowest:g} to {highest:g}; a mask goes from 0 to 1"
        )
    if highest > 1 + ROUNDING_ERROR:
        notes.append(f"the mask {path} goes up to {highest:g}: it is divided by that")
    scaled = volume.data / np.float32(highest if highest > 1 + ROUNDING_ERROR else 1.0)
    return resample_volume(np.clip(scaled, 0, 1), pixel_size, pixel_size, stacks.box)
