"""Everything a refinement reads, checked on rank 0 before anything is computed or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mpipar.errors import InputError, UsageError
from mpipar.formats.mrc import stack_notes
from mpipar.formats.optics import PIXEL_SIZES
from mpipar.formats.particles import rival_stacks
from mpipar.formats.star import read_particles
from mpipar.programs.copies import FEWEST_PER_HALF, file_note
from mpipar.programs.images import StackSource, open_stacks
from mpipar.programs.microscope import doubts, origin_notes, pixel_notes
from mpipar.programs.volumes import (
    ROUNDING_ERROR,
    UNSET_PIXEL_SIZE,
    compare_mask,
    fit_mask,
    fit_model,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mpipar.formats.mrc import Stack
    from mpipar.formats.particles import ParticleSet
    from mpipar.settings import RefineSettings

SMALLEST_BOX: Final = 8  # pixels


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
    lowest, highest = PIXEL_SIZES
    if settings.apix is not None and not lowest <= settings.apix <= highest:
        raise UsageError(f"--apix {settings.apix:g}: must lie between {lowest:g} and {highest:g} A")
    particles = read_particles(settings.input, settings.apix)
    _require_halves(particles)
    stacks = StackSource(particles, open_stacks(particles))
    _require_box(particles, stacks.stacks[0])
    full_box, pixel_size = stacks.stacks[0].box, particles.pixel_size
    notes = [*particles.warnings, *doubts(particles)]
    notes += [*file_note(particles), *origin_notes(particles, full_box * pixel_size)]
    notes += [*(pixel_notes(particles) if settings.apix is None else ())]
    notes += _image_notes(particles, stacks)
    if settings.diameter is not None and settings.diameter > full_box * pixel_size:
        raise InputError(
            f"--diameter {settings.diameter:g} A is larger than the images, which are "
            f"{full_box * pixel_size:g} A wide ({full_box} pixels of {pixel_size:g} A)"
        )
    grid = (pixel_size, stacks.box, full_box)
    model = fit_model(settings.model, *grid, notes)
    mask = None
    if settings.mask is not None:
        mask = fit_mask(settings.mask, *grid, notes)
        compare_mask(settings.mask, mask, model, notes)
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
    if stack.box < SMALLEST_BOX:
        raise InputError(
            f"the images in {stack.path} are {stack.box} pixels wide; at least {SMALLEST_BOX} are "
            "needed to tell orientations: are these thumbnails, or is the box size wrong?"
        )
    said = particles.optics["rlnImageSize"].astype(float)
    if (said != stack.box).any():
        raise InputError(
            f"{particles.path} says rlnImageSize = {said.iloc[0]:g}, but the images in "
            f"{stack.path} are {stack.box} pixels wide; does the stack belong to this STAR file?"
        )


def _image_notes(particles: ParticleSet, stacks: StackSource) -> list[str]:
    """Return notes for the user on what is unusual in the stacks, but no error."""
    notes = stack_notes(stacks.stacks)
    rivals = rival_stacks(particles)
    if rivals:
        taken, other = rivals[0]
        more = f", and {len(rivals) - 1} more such pairs" * (len(rivals) > 1)
        notes.append(
            f"the images are read from {taken}, not from {other}, which has the same name{more}; "
            "names count from the current folder first: start elsewhere to use the other"
        )
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
