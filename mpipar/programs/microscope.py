"""Whether the CTF cells of a particle list are those of a microscope: bounds from physics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from mpipar.errors import InputError, counted
from mpipar.formats.optics import PIXEL_COLUMNS
from mpipar.formats.tables import row_list

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet

NANOMETRES: Final = 2500.0  # A; hardly anybody takes most images this close to focus
MICROMETRES: Final = 30.0  # A; but a usual defocus in micrometres
ASTIGMATISM: Final = 10_000.0  # A between U and V
RADIANS: Final = 3.2  # degrees of phase shift: hardly any, but a usual one in radians
USUAL_VOLTAGES: Final = (60.0, 1300.0)  # kV
LARGEST_CONTRAST: Final = 0.5
FARTHEST_ORIGIN: Final = (1.0, 0.5)  # of the image's width: refused, noted
MOST_AMPLIFIED: Final = 1000.0  # by a negative B factor at the Nyquist frequency
PIXEL_TOLERANCE: Final = 0.01  # relative difference of pixel sizes that is taken for rounding


@dataclass(frozen=True)
class Bounds:
    """What a column may hold: beyond `possible` it is refused, beyond `usual` it is noted."""

    possible: tuple[float, float]
    usual: tuple[float, float]
    unit: str


DEFOCUS: Final = Bounds((-1e6, 1e6), (0.0, 1e5), " A")
COLUMNS: Final = {
    "rlnDefocusU": DEFOCUS,
    "rlnDefocusV": DEFOCUS,
    "rlnDefocusAngle": Bounds((-1e4, 1e4), (-360.0, 360.0), " degrees"),
    "rlnPhaseShift": Bounds((-1e4, 1e4), (-360.0, 360.0), " degrees"),
    "rlnCtfBfactor": Bounds((-1e4, 1e4), (-1000.0, 1000.0), " A^2"),
    "rlnCtfScalefactor": Bounds((1e-3, 1e3), (0.1, 10.0), ""),
}


def doubts(particles: ParticleSet) -> list[str]:
    """Return notes on what is unusual in the CTF columns.

    raises   InputError naming the particle whose cell no microscope gives
    """
    cells = {
        "rlnDefocusU": particles.defocus_u,
        "rlnDefocusV": particles.defocus_v,
        "rlnDefocusAngle": particles.defocus_angle,
        "rlnPhaseShift": particles.phase_shift,
        "rlnCtfBfactor": particles.b_factor,
        "rlnCtfScalefactor": particles.ctf_scale,
    }
    notes = []
    for label, bounds in COLUMNS.items():
        notes += _out_of_bounds(particles, label, cells[label], bounds)
    _require_amplification(particles)
    _require_bright_amplitude(particles)
    return [*notes, *_units(particles), *_optics_notes(particles)]


def _out_of_bounds(
    particles: ParticleSet, label: str, values: NDArray[np.float64], bounds: Bounds
) -> list[str]:
    lowest, highest = bounds.possible
    wrong = np.flatnonzero((values < lowest) | (values > highest))
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"particle {row + 1} of {particles.path} has {label} = {values[row]:g}{bounds.unit}, "
            f"which no microscope gives ({wrong.size} such particles, rows {row_list(wrong)}); it "
            f"must lie between {lowest:g} and {highest:g}: correct or remove them"
        )
    lowest, highest = bounds.usual
    odd = np.flatnonzero((values < lowest) | (values > highest))
    if not odd.size:
        return []
    below = label in ("rlnDefocusU", "rlnDefocusV") and bool((values[odd] < 0).all())
    why = "overfocus; is the sign of the defocus turned?" if below else "is that right?"
    value = f"{values[odd[0]]:g}{bounds.unit}"
    where = f"{counted(odd.size, 'particle')} (rows {row_list(odd)})"
    return [f"{label} is unusual in {where}: {value}; {why}"]


def _require_amplification(particles: ParticleSet) -> None:
    """Refuse negative B factors that would make one particle outweigh all others."""
    nyquist = 1.0 / (2.0 * particles.pixel_size)
    exponent = -particles.b_factor * nyquist**2 / 4.0
    wrong = np.flatnonzero(exponent > np.log(MOST_AMPLIFIED))
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"particle {row + 1} of {particles.path} has rlnCtfBfactor = "
            f"{particles.b_factor[row]:g} A^2, which multiplies its finest detail by more than "
            f"{MOST_AMPLIFIED:g} ({wrong.size} such particles, rows {row_list(wrong)}); correct "
            "or remove them"
        )


def _require_bright_amplitude(particles: ParticleSet) -> None:
    """Refuse a negative amplitude contrast, which some programs take for inverted images."""
    wrong = np.flatnonzero(particles.amplitude_contrast < 0)
    if wrong.size:
        raise InputError(
            f"particle {wrong[0] + 1} of {particles.path} has rlnAmplitudeContrast = "
            f"{particles.amplitude_contrast[wrong[0]]:g} ({wrong.size} such particles); it must "
            "lie between 0 and 1: if particles are dark, make it positive and say --contrast invert"
        )


def _units(particles: ParticleSet) -> Iterator[str]:
    """Yield notes on columns whose units or signs some conversions get wrong."""
    u, v = np.abs(particles.defocus_u), np.abs(particles.defocus_v)
    middle = float(np.median((u + v) / 2))
    tiny = [label for label, values in _defocus(particles) if 0 < values.max() < MICROMETRES]
    if tiny:
        yield f"{tiny[0]} is nowhere above {MICROMETRES:g} A: are these micrometres?"
    elif not u.any() and not v.any():
        yield (
            "rlnDefocusU and rlnDefocusV are 0 for all particles: have the images no CTF, or is it "
            "not set?"
        )
    elif middle < NANOMETRES:
        yield (
            f"rlnDefocusU and rlnDefocusV are {middle:g} A in the middle of the list, which is "
            "close to focus: are these nanometres?"
        )
    stretched = np.flatnonzero((np.abs(u - v) > ASTIGMATISM) | ((u == 0) != (v == 0)))
    if stretched.size:
        row = int(stretched[0])
        yield (
            f"rlnDefocusU and rlnDefocusV are far apart in "
            f"{counted(stretched.size, 'particle')} (rows {row_list(stretched)}): {u[row]:g} and "
            f"{v[row]:g} A; is one of the two not set?"
        )
    if 0 < np.abs(particles.phase_shift).max() < RADIANS:
        yield (
            f"rlnPhaseShift is at most {np.abs(particles.phase_shift).max():g} degrees: are these "
            "radians?"
        )


def _defocus(particles: ParticleSet) -> Iterator[tuple[str, NDArray[np.float64]]]:
    yield "rlnDefocusU", np.abs(particles.defocus_u)
    yield "rlnDefocusV", np.abs(particles.defocus_v)


def _optics_notes(particles: ParticleSet) -> Iterator[str]:
    lowest, highest = USUAL_VOLTAGES
    odd = (particles.voltage < lowest) | (particles.voltage > highest)
    if odd.any():
        yield f"rlnVoltage = {particles.voltage[odd][0]:g} kV is unusual; is that right?"
    contrast = particles.amplitude_contrast
    odd = contrast > LARGEST_CONTRAST
    if odd.any():
        yield f"rlnAmplitudeContrast = {contrast[odd][0]:g} is unusual; is that right?"


def origin_notes(particles: ParticleSet, width: float) -> list[str]:
    """Return a note on origins far from the centres of the images.

    width    A, of the images
    raises   InputError if an origin is farther away than the image is wide
    """
    if particles.origins is None:
        return []
    far = np.abs(particles.origins).max(axis=1)
    wrong = np.flatnonzero(far > FARTHEST_ORIGIN[0] * width)
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"particle {row + 1} of {particles.path} has its origin {far[row]:g} A from the centre "
            f"of an image that is {width:g} A wide ({wrong.size} such particles, rows "
            f"{row_list(wrong)}); rlnOriginXAngst and rlnOriginYAngst are in A, rlnOriginX and "
            "rlnOriginY in pixels: correct or remove them"
        )
    odd = np.flatnonzero(far > FARTHEST_ORIGIN[1] * width)
    if not odd.size:
        return []
    note = (
        f"origins are far from the centres of {counted(odd.size, 'image')} (rows {row_list(odd)}): "
        f"{far[odd[0]]:g} A of {width:g} A; are they of this box and pixel size?"
    )
    return [note]


def pixel_notes(particles: ParticleSet) -> Iterator[str]:
    """Yield a note for each pixel size in the list that is not the one which is used."""
    used = particles.pixel_size
    for label, sizes in _pixel_sizes(particles):
        other = sizes[np.abs(sizes - used) > PIXEL_TOLERANCE * used]
        if other.size:
            yield (
                f"{particles.path} has pixel sizes that disagree: {label} gives {other[0]:g} A, "
                f"and {used:g} A is used; if that is wrong, say --apix {other[0]:g}"
            )


def _pixel_sizes(particles: ParticleSet) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the pixel sizes that the list gives, with the columns that they are from."""
    for place in (particles.optics, particles.table):
        for label in PIXEL_COLUMNS:
            if label in place.columns:
                yield label, _finite(place[label])
        if {"rlnDetectorPixelSize", "rlnMagnification"} <= set(place.columns):
            detector = pd.to_numeric(place["rlnDetectorPixelSize"], errors="coerce")
            magnification = pd.to_numeric(place["rlnMagnification"], errors="coerce")
            sizes = _finite(detector * 1e4 / magnification.where(magnification > 0))
            yield "rlnDetectorPixelSize with rlnMagnification", sizes


def _finite(column: pd.Series[Any]) -> NDArray[np.float64]:
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    return np.asarray(values[np.isfinite(values)])
