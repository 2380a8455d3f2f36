"""The contrast transfer function of the microscope, in RELION's convention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class CtfParameters:
    """One row per particle, all (p,) float64.

    Defocus in Angstrom, angles in degrees, voltage in kV, spherical aberration in mm, B factor in
    square Angstrom.
    """

    defocus_u: NDArray[np.float64]
    defocus_v: NDArray[np.float64]
    defocus_angle: NDArray[np.float64]
    voltage: NDArray[np.float64]
    spherical_aberration: NDArray[np.float64]
    amplitude_contrast: NDArray[np.float64]
    phase_shift: NDArray[np.float64]
    b_factor: NDArray[np.float64]
    scale: NDArray[np.float64]

    def take(self, rows: NDArray[np.int64]) -> CtfParameters:
        """Return the parameters of some particles, in the order of `rows`."""
        return CtfParameters(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def electron_wavelength(voltage: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the relativistic wavelength in Angstrom of electrons of `voltage` kV, (p,)."""
    v = voltage * 1e3
    wavelength: NDArray[np.float64] = 12.2643247 / np.sqrt(v * (1.0 + v * 0.978466e-6))
    return wavelength


def contrast_transfer(
    parameters: CtfParameters, frequencies: NDArray[np.floating], box: int, pixel_size: float
) -> NDArray[np.float32]:
    """Return the contrast transfer of each particle at each frequency, where the arrays are.

    sin(pi L dz q^2 - pi/2 Cs L^3 q^4 + phase shift + asin(Q0)),  dz = (U + V)/2 + (U - V)/2 cos
                                                                  2(direction - angle),
    times the particle's scale and exp(-B q^2 / 4).

    frequencies  (v, 2)  kx, ky in cycles per box
    box          pixels along each side of an image
    pixel_size   Angstrom
    returns      (p, v) float32
    """
    p = parameters
    kx, ky = frequencies.astype(np.float64).T / (box * pixel_size)
    squared = kx * kx + ky * ky
    twice_direction = 2.0 * np.arctan2(ky, kx)
    wavelength = electron_wavelength(p.voltage)[:, None]
    mean, half_difference = (
        (p.defocus_u + p.defocus_v)[:, None] / 2,
        (p.defocus_u - p.defocus_v)[:, None] / 2,
    )
    defocus = mean + half_difference * np.cos(
        twice_direction - 2.0 * np.radians(p.defocus_angle)[:, None]
    )
    aberration = p.spherical_aberration[:, None] * 1e7
    phase = np.pi * wavelength * squared * (defocus - 0.5 * aberration * wavelength**2 * squared)
    phase += np.radians(p.phase_shift)[:, None] + np.arcsin(p.amplitude_contrast)[:, None]
    envelope = p.scale[:, None] * np.exp(-0.25 * p.b_factor[:, None] * squared)
    contrast: NDArray[np.float64] = np.sin(phase) * envelope
    return contrast.astype(np.float32)
