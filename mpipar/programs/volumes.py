"""The initial model and the mask, checked and brought to the particles' grid."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem import outliers
from mpipar.cryoem.masks import centre_of_mass, dense_part, soft_sphere
from mpipar.cryoem.resampling import resample_volume
from mpipar.errors import InputError
from mpipar.formats.mrc import STACK_SUFFIXES, Volume, read_volume

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ROUNDING_ERROR: Final = 0.01  # relative difference of pixel sizes that is taken for rounding
UNSET_PIXEL_SIZE: Final = 1.0  # A; what many programs write when they do not know it
FEWEST_PIXELS: Final = 8  # of the model in the particles' box, and of the particles in the model's
OFF_CENTRE: Final = 0.08  # of the box, between the centre of the box and that of the model's mass
FAINT: Final = 0.8  # a mask that goes up to no more than this is of another scale
COVERED: Final = (0.02, 0.2)
"""A mask with less than the first fraction of the model's density is refused, and one with less
than the second is noted; masks of a part of a particle may have less, too."""
HALF: Final = 0.5
MODERATE: Final = (1e-12, 1e12)  # of the strongest density: squares and sums of these fit float32


def fit_model(
    path: Path, pixel_size: float, box: int, full_box: int, notes: list[str]
) -> NDArray[np.float32]:
    """Return the model at the particles' pixel size and box: background 0, dense parts positive.

    full_box   of the particles as stored: `box`, or one more
    notes      gets what was adapted
    raises     InputError
    """
    volume = _finite_volume(path, "model", notes)
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
    _require_pixel_size(path, size, old_box, pixel_size, box)
    if abs(size - pixel_size) > ROUNDING_ERROR * pixel_size or old_box not in (box, full_box):
        unset = "; 1 A often means that it is not set" * (size == UNSET_PIXEL_SIZE)
        notes.append(
            f"the model {path} ({old_box} pixels of {size:g} A, {old_box * size:g} A wide) is "
            f"brought to the particles' {box} pixels of {pixel_size:g} A ({box * pixel_size:g} A)"
            f"{unset}"
        )
    density = _white_on_black(path, volume.data, notes)
    model = resample_volume(density, size, pixel_size, box)
    if not model.max() > model.min():
        raise InputError(
            f"the model {path} has nothing left at the particles' box; check its pixel size"
        )
    return model


def _require_pixel_size(path: Path, size: float, old_box: int, pixel_size: float, box: int) -> None:
    """Raise InputError for a model of another scale than the particles."""
    within = min(box * pixel_size / size, old_box * size / pixel_size)
    if within < FEWEST_PIXELS:
        raise InputError(
            f"the model {path} has {old_box} pixels of {size:g} A, and the particles {box} of "
            f"{pixel_size:g} A: one is {within:.2g} pixels of the other wide, so that one of the "
            "pixel sizes is wrong (in nm, not A?); correct the model's header or the particle list"
        )


def centre_notes(model: NDArray[np.float32], pixel_size: float) -> list[str]:
    """Return a note if the model does not lie in the middle of its box."""
    if not model.max() > 0:
        return []
    box, dense = model.shape[0], dense_part(model)
    off = float(np.linalg.norm(centre_of_mass(dense)))
    rim = float(dense[soft_sphere(box, box / 2 - 1, 1.0) < HALF].sum())
    if rim > HALF:
        where = f"lies in the corners of its box ({rim:.0%})"
    elif off > OFF_CENTRE * box:
        where = f"lies {off * pixel_size:.0f} A off the centre of its box"
    else:
        return []
    note = (
        f"the model's mass {where}, and particles are looked for near the centres that the list "
        "gives: is the model centred?"
    )
    return [note]


def fit_mask(
    path: Path, pixel_size: float, box: int, full_box: int, notes: list[str]
) -> NDArray[np.float32]:
    """Return the mask, scaled to 0 to 1; InputError unless it lies on the particles' grid."""
    volume = _finite_volume(path, "mask", notes)
    size, old_box = volume.pixel_size, volume.data.shape[0]
    unset = size in (0.0, UNSET_PIXEL_SIZE)
    other_size = not unset and abs(size - pixel_size) > ROUNDING_ERROR * pixel_size
    if old_box not in (full_box, box) or other_size:
        raise InputError(
            f"the mask {path} has {old_box} pixels of {size:g} A, the particles {full_box} of "
            f"{pixel_size:g} A; make a mask on the particles' grid (relion_mask_create, or "
            "relion_image_handler --rescale_angpix --new_box)"
        )
    lowest, highest = (float(value) + 0.0 for value in (volume.data.min(), volume.data.max()))
    if lowest < -ROUNDING_ERROR * highest or highest <= 0:
        raise InputError(
            f"the mask {path} has values from {lowest:g} to {highest:g}; a mask goes from 0 to 1"
        )
    as_it_is = FAINT < highest <= 1 + ROUNDING_ERROR
    if not as_it_is:
        notes.append(f"the mask {path} goes up to {highest:g}: it is divided by that")
    scaled = volume.data / np.float32(1.0 if as_it_is else highest)
    return resample_volume(np.clip(scaled, 0, 1), pixel_size, pixel_size, box)


def compare_mask(
    path: Path, mask: NDArray[np.float32], model: NDArray[np.float32], notes: list[str]
) -> None:
    """Add a note, or raise InputError, if the mask takes the model away."""
    if not model.max() > 0:
        return
    inside = float((mask * dense_part(model)).sum())
    if inside < HALF < outliers.background_level(mask):
        raise InputError(
            f"the mask {path} is about 1 outside the particle and leaves {inside:.1%} of the "
            "model's density: it is inverted; give 1 minus that mask"
        )
    if inside < COVERED[0]:
        raise InputError(
            f"the mask {path} leaves {inside:.1%} of the model's density; is it a mask of this "
            "particle, and are both centred?"
        )
    if inside < COVERED[1]:
        notes.append(
            f"the mask {path} leaves only {inside:.0%} of the model's density: is it the mask of "
            "this particle?"
        )


def _finite_volume(path: Path, what: str, notes: list[str]) -> Volume:
    """Return a volume whose voxels are all numbers that a specimen can have."""
    if path.suffix.lower() in STACK_SUFFIXES:
        raise InputError(
            f"the {what} {path} has the suffix of a stack of images, {path.suffix}; give a volume, "
            "or, if it is one, name it .mrc"
        )
    volume = read_volume(path)
    notes += volume.notes
    if not np.isfinite(volume.data).all():
        raise InputError(f"the {what} {path} has voxels that are NaN or infinite")
    if volume.data.min() == volume.data.max():
        hint = "; leave --mask out to have one made" * (what == "mask")
        raise InputError(
            f"the {what} {path} is {volume.data.flat[0] + 0.0:g} everywhere; it holds no structure"
            f"{hint}"
        )
    if outliers.is_pile_of_images(volume.data):
        raise InputError(
            f"the {what} {path} is no volume: its sections have nothing in common, as in a stack "
            "of images"
        )
    data, hot = outliers.without_hot_voxels(volume.data)
    if hot:
        notes.append(
            f"the {what} {path} has {hot} voxel{'s' * (hot > 1)} far beyond all others (up to "
            f"{np.abs(volume.data).max():g}): the median of the neighbours is used instead"
        )
    return replace(volume, data=data)


def _white_on_black(path: Path, data: NDArray[np.float32], notes: list[str]) -> NDArray[np.float32]:
    """Return density without a constant background, positive where the molecule is."""
    offset = outliers.offset_of(data)
    if offset:
        notes.append(f"the background of the model {path} is {offset:g}: it is subtracted")
        data = (data.astype(np.float64) - offset).astype(np.float32)
    strongest = float(np.abs(data).max())
    if not MODERATE[0] < strongest < MODERATE[1]:
        data = (data.astype(np.float64) / strongest).astype(np.float32)
    if outliers.is_dark(data):
        notes.append(
            f"the contrast of the model {path} is inverted, dark on bright: its sign is turned"
        )
        data = -data
    return data
