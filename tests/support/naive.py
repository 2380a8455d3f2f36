"""Slow, obvious definitions of what the fast code computes: loops over points."""

from __future__ import annotations

import cmath
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Blobs:
    """A molecule of Gaussian blobs, so that maps and projections are formulas.

    Nothing about it is symmetric: no two orientations look alike.
    """

    places: Array  # (m, 3) x, y, z in pixels from the centre
    weights: Array  # (m,) integral of each blob
    width: float  # standard deviation, pixels

    def volume(self, box: int) -> NDArray[np.float32]:
        """Density, axes z y x, origin at box // 2."""
        axis = np.arange(box) - box // 2
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        total = np.zeros((box, box, box))
        for (px, py, pz), weight in zip(self.places, self.weights, strict=True):
            squared = (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2
            total += weight * np.exp(-squared / (2 * self.width**2))
        return np.asarray(total / (2 * math.pi * self.width**2) ** 1.5, np.float32)

    def image(self, box: int, rotation: Array, shift: tuple[float, float] = (0, 0)) -> Array:
        """Projection along z of the molecule as seen: image = rotation^T @ map, then shifted."""
        axis = np.arange(box) - box // 2
        y, x = np.meshgrid(axis, axis, indexing="ij")
        total = np.zeros((box, box))
        for place, weight in zip(self.places, self.weights, strict=True):
            px, py, _ = rotation.T @ place
            squared = (x - px - shift[0]) ** 2 + (y - py - shift[1]) ** 2
            total += weight * np.exp(-squared / (2 * self.width**2))
        return total / (2 * math.pi * self.width**2)

    def transform(self, frequency: Array, box: int) -> complex:
        """Fourier transform at a frequency (kx, ky, kz) in cycles per box."""
        total = 0j
        for place, weight in zip(self.places, self.weights, strict=True):
            total += weight * cmath.exp(-2j * math.pi * float(frequency @ place) / box)
        squared = float(frequency @ frequency) / box**2
        return total * math.exp(-2 * math.pi**2 * self.width**2 * squared)


def blobs(box: int, seed: int = 0, count: int = 9) -> Blobs:
    """A molecule that fills about half of the box."""
    random = np.random.default_rng(seed)
    places = random.uniform(-1, 1, (count, 3)) * box * 0.17
    return Blobs(places, random.uniform(0.5, 2.0, count), width=max(1.0, box / 20))


def image_transform(image: Array, kx: int, ky: int) -> complex:
    """Sum over pixels, zero of space at n // 2."""
    n = len(image)
    total = 0j
    for y, x in itertools.product(range(n), range(n)):
        total += image[y, x] * cmath.exp(
            -2j * math.pi * (kx * (x - n // 2) + ky * (y - n // 2)) / n
        )
    return total


def volume_transform(volume: Array, kx: float, ky: float, kz: float) -> complex:
    """Sum over voxels, zero of space at n // 2; frequencies in cycles per box, whole or not."""
    n = len(volume)
    axis = np.arange(n) - n // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return complex((volume * np.exp(-2j * np.pi * (kx * x + ky * y + kz * z) / n)).sum())


def at_voxel(half: NDArray[np.complexfloating], x: int, y: int, z: int) -> complex:
    """Value of a half transform (zero frequency at [c, c, 0]) at a whole frequency of any sign."""
    centre = len(half) // 2
    if x < 0:
        return complex(half[centre - z, centre - y, -x]).conjugate()
    return complex(half[centre + z, centre + y, x])


def trilinear(half: NDArray[np.complexfloating], point: Array) -> complex:
    """A half transform interpolated between the eight voxels about a point (x, y, z)."""
    low = np.floor(point).astype(int)
    total = 0j
    for corner in itertools.product((0, 1), repeat=3):
        weight = 1.0
        for axis in range(3):
            part = point[axis] - low[axis]
            weight *= part if corner[axis] else 1.0 - part
        total += weight * at_voxel(half, *(low + corner))
    return total


def grid_slices(
    values: Array, rotations: Array, frequencies: Array, side: int
) -> NDArray[np.complex128]:
    """Whole transform (side, side, side, 2) of values and weights after trilinear gridding.

    Every component goes in with its Friedel mate. Zero frequency is at the centre of each axis.
    """
    whole = np.zeros((side, side, side, 2), complex)
    centre = side // 2
    for slice_values, rotation in zip(values, rotations, strict=True):
        for (real, imaginary, weight), (kx, ky) in zip(slice_values, frequencies, strict=True):
            for sign in (1, -1):
                point = sign * (rotation @ np.array([kx, ky, 0.0]))
                value = complex(real, sign * imaginary)
                low = np.floor(point).astype(int)
                for corner in itertools.product((0, 1), repeat=3):
                    share = np.prod(
                        [f if c else 1 - f for f, c in zip(point - low, corner, strict=True)]
                    )
                    x, y, z = low + corner + centre
                    whole[z, y, x] += share * np.array([value, weight])
    return whole


@dataclass(frozen=True)
class Optics:
    """One particle's microscope: u, v in A, angles in degrees, cs in mm, B factor in A^2."""

    u: float = 0.0
    v: float = 0.0
    angle: float = 0.0
    kilovolt: float = 300.0
    cs: float = 0.0
    amplitude: float = 0.0
    phase_shift: float = 0.0
    b_factor: float = 0.0
    scale: float = 1.0


def contrast(kx: float, ky: float, optics: Optics) -> float:
    """Contrast transfer at a frequency in 1/A."""
    volts = 1000.0 * optics.kilovolt
    electron, light, charge, planck = 9.1093837e-31, 299792458.0, 1.602176634e-19, 6.62607015e-34
    momentum = math.sqrt(
        2 * electron * charge * volts * (1 + charge * volts / (2 * electron * light**2))
    )
    wavelength = planck / momentum * 1e10
    q = math.hypot(kx, ky)
    azimuth = math.atan2(ky, kx)
    defocus = optics.u * math.cos(azimuth - math.radians(optics.angle)) ** 2
    defocus += optics.v * math.sin(azimuth - math.radians(optics.angle)) ** 2
    phase = math.pi * wavelength * defocus * q**2
    phase -= math.pi / 2 * (optics.cs * 1e7) * wavelength**3 * q**4
    phase += math.radians(optics.phase_shift) + math.asin(optics.amplitude)
    return optics.scale * math.exp(-optics.b_factor * q**2 / 4) * math.sin(phase)


def log_likelihood(
    model: NDArray[np.complexfloating], image: NDArray[np.complexfloating], ctf: Array, noise: Array
) -> float:
    """Log-probability of an image given a model, less that given an empty model.

    noise: variance of each component's real part, and of its imaginary part.
    """
    total = 0.0
    for p, x, c, variance in zip(model, image, ctf, noise, strict=True):
        total -= abs(x - c * p) ** 2 / (2 * variance)
        total += abs(x) ** 2 / (2 * variance)
    return total


def shell_correlation(first: Array, second: Array) -> list[float]:
    """FSC of two cubes, shells 0 .. n // 2, voxel by voxel over the whole transform."""
    n = len(first)
    one, two = np.fft.fftn(first), np.fft.fftn(second)
    sums = np.zeros((n // 2 + 1, 3))
    for index in itertools.product(range(n), repeat=3):
        frequency = [i if i <= n // 2 else i - n for i in index]
        shell = round(math.sqrt(sum(k * k for k in frequency)))
        if shell <= n // 2:
            a, b = one[index], two[index]
            sums[shell] += (a * b.conjugate()).real, abs(a) ** 2, abs(b) ** 2
    return [float(cross / math.sqrt(p * q)) if p * q > 0 else 0.0 for cross, p, q in sums]
