"""Fourier transforms about the voxel n // 2, and lists of components ordered by frequency."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft

from mpipar.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVERSAMPLING = 2
"""Finer sampling of volume transforms than of image transforms, so that trilinear interpolation is
accurate enough."""

SUPPORTED = 0.003  # of the strongest shell's amplitude


@dataclass(frozen=True)
class Components:
    """The independent Fourier components of an image in whole shells, lowest frequency first.

    Shell s has the components whose distance is nearest to s; `radius` is the last shell. The order
    makes every smaller radius a prefix: ``frequencies[: components.within(r)]``.

    box          pixels along each side of the image
    frequencies  (v, 2) float32   kx, ky in cycles per box; kx >= 0, one of each Friedel pair, zero
                                  frequency first
    distance     (v,) float64     length of each frequency
    shell        (v,) int32       nearest whole distance
    starts       (s,) int64       first component of each shell 0..radius
    """

    box: int
    radius: int
    frequencies: NDArray[np.float32]
    distance: NDArray[np.float64]
    shell: NDArray[np.int32]
    starts: NDArray[np.int64]

    def within(self, radius: int) -> int:
        """Return how many components lie in shells 0..radius."""
        return int(np.searchsorted(self.shell, radius, side="right"))

    def shell_sums(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sum `values` (..., v) over each shell: (..., radius + 1)."""
        return np.add.reduceat(values, self.starts, axis=-1, dtype=np.float64)


def largest_radius(box: int) -> int:
    """Return the last shell of a (box, box) image: that at the Nyquist frequency."""
    return box // 2


@lru_cache(maxsize=32)
def components(box: int, radius: int) -> Components:
    """Return the components of a (box, box) image in shells 0..radius.

    raises  ValueError if the radius does not fit the box, or the box is odd: `image_components`
            moves the origin by signs, which needs an even one
    """
    if box % 2:
        raise ValueError(f"box {box} is odd")
    if not 1 <= radius <= largest_radius(box):
        raise ValueError(f"radius {radius} is outside 1 .. {largest_radius(box)} for box {box}")
    half_plane = np.meshgrid(np.arange(radius + 1), np.arange(-radius, radius + 1))
    kx, ky = (k.ravel() for k in half_plane)
    in_shells = np.rint(np.hypot(kx, ky)) <= radius
    unambiguous = np.maximum(kx, np.abs(ky)) < box // 2
    keep = in_shells & unambiguous & ((kx > 0) | (ky >= 0))
    kx, ky = kx[keep], ky[keep]
    order = np.lexsort((ky, kx, kx * kx + ky * ky))
    frequencies = np.stack([kx[order], ky[order]], axis=1)
    distance = np.sqrt((frequencies.astype(np.float64) ** 2).sum(axis=1))
    shell = np.rint(distance).astype(np.int32)
    starts = np.searchsorted(shell, np.arange(radius + 1))
    return Components(box, radius, frequencies.astype(np.float32), distance, shell, starts)


def image_components(images: NDArray[np.float32], wanted: Components) -> NDArray[np.complex64]:
    """Transform images and keep the wanted components.

    images   (b, n, n) float32, axes y x, origin at n // 2
    returns  (b, v) complex64; not normalised, so zero frequency is the sum over pixels
    raises   InputError if the images have another box than the components
    """
    n = images.shape[-1]
    if n != wanted.box:
        raise InputError(f"images of box {n} given where box {wanted.box} was expected")
    transform = scipy.fft.rfft2(images)
    kx, ky = wanted.frequencies.T.astype(np.int64)
    values = transform[:, ky % n, kx]
    return np.asarray(values * (1.0 - 2.0 * ((kx + ky) % 2)).astype(np.float32))


def volume_half_transform(
    volume: NDArray[np.floating], oversampling: int, radius: int
) -> NDArray[np.complex64]:
    """Return the oversampled half transform of a volume, as far out as slices read it.

    volume   (n, n, n), axes z y x, origin at n // 2
    radius   cycles per box of the slices
    returns  (d, d, h) complex64, d = 2 (oversampling radius + 2) + 1, zero frequency at [d // 2, d
             // 2, 0]
    """
    n = volume.shape[0]
    m = n * oversampling
    padded = np.zeros((m, m, m), np.float32)
    low = m // 2 - n // 2
    padded[low : low + n, low : low + n, low : low + n] = volume
    transform = scipy.fft.rfftn(padded, overwrite_x=True)
    reach = oversampling * radius + 2
    k = np.arange(-reach, reach + 1)
    kx = np.arange(reach + 2)
    inside, inside_x = np.abs(k) <= m // 2 - 1, kx <= m // 2 - 1
    cropped = np.zeros((k.size, k.size, kx.size), np.complex64)
    cropped[np.ix_(inside, inside, inside_x)] = transform[
        np.ix_(k[inside] % m, k[inside] % m, kx[inside_x])
    ]
    sign = 1.0 - 2.0 * (np.abs(k) % 2)
    sign_x = 1.0 - 2.0 * (kx % 2)
    cropped *= (sign[:, None, None] * sign[None, :, None] * sign_x[None, None, :]).astype(
        np.float32
    )
    return cropped


def volume_from_half_transform(
    transform: NDArray[np.complex64], oversampling: int, box: int
) -> NDArray[np.float32]:
    """Return the volume of a half transform; frequencies outside count as zero.

    transform  (d, d, h) from `volume_half_transform`
    returns    (box, box, box) float32
    """
    m = box * oversampling
    reach = transform.shape[0] // 2
    k = np.arange(-reach, reach + 1)
    kx = np.arange(transform.shape[2])
    inside, inside_x = np.abs(k) <= m // 2 - 1, kx <= m // 2 - 1
    sign = 1.0 - 2.0 * (np.abs(k) % 2)
    sign_x = 1.0 - 2.0 * (kx % 2)
    full = np.zeros((m, m, m // 2 + 1), np.complex64)
    signed = transform * (sign[:, None, None] * sign[None, :, None] * sign_x[None, None, :]).astype(
        np.float32
    )
    full[np.ix_(k[inside] % m, k[inside] % m, kx[inside_x])] = signed[
        np.ix_(inside, inside, inside_x)
    ]
    padded = scipy.fft.irfftn(full, s=(m, m, m), overwrite_x=True)
    low = m // 2 - box // 2
    return np.ascontiguousarray(
        padded[low : low + box, low : low + box, low : low + box], dtype=np.float32
    )


def interpolation_falloff(box: int, oversampling: int) -> NDArray[np.float32]:
    """Return by what factor trilinear interpolation in Fourier space weakens each voxel.

    returns  (box, box, box) float32: sinc^2 along each axis
    """
    one = np.sinc((np.arange(box) - box // 2) / (box * oversampling)) ** 2
    return (one[:, None, None] * one[None, :, None] * one[None, None, :]).astype(np.float32)


@lru_cache(maxsize=8)
def shell_of_half_volume(box: int) -> NDArray[np.int32]:
    """Return the nearest shell of each voxel of an ``rfftn`` of a volume of this box.

    returns  (n, n, n // 2 + 1) int32; -1 beyond the largest whole shell
    """
    k = np.fft.fftfreq(box, 1.0 / box)
    kx = np.arange(box // 2 + 1)
    distance = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + kx[None, None, :] ** 2)
    shell = np.rint(distance).astype(np.int32)
    shell[shell > box // 2] = -1
    return shell


def shell_means(volume: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of a volume's transform about the voxel n // 2 in each shell, (n // 2 + 1,).

    This is the transform of the volume's mean over all orientations, and so of its mean projection.
    """
    transform = scipy.fft.rfftn(np.fft.ifftshift(np.asarray(volume, np.float32))).real
    shell = shell_of_half_volume(volume.shape[0]).ravel() + 1
    counts = np.bincount(shell)[1:]
    return np.asarray(np.bincount(shell, transform.ravel())[1:] / counts)


def filter_shells(volume: NDArray[np.floating], gain: NDArray[np.floating]) -> NDArray[np.float32]:
    """Multiply each shell of a volume's transform by a gain.

    volume  (n, n, n)
    gain    (n // 2 + 1,) by shell; frequencies beyond the last shell become zero
    """
    box = volume.shape[0]
    table = np.append(gain, 0.0).astype(np.float32)  # shell -1 reads the appended zero
    transform = scipy.fft.rfftn(np.asarray(volume, np.float32)) * table[shell_of_half_volume(box)]
    return np.asarray(scipy.fft.irfftn(transform, s=volume.shape), np.float32)


def supported_shell(volume: NDArray[np.floating]) -> int:
    """Return the last shell in which a volume has detail: 0.3 % of its strongest amplitude.

    Beyond the cutoff of a low-pass filter there is a thousandth of that; molecules have ten times
    as much down to 5 A.
    """
    transform = scipy.fft.rfftn(np.asarray(volume, np.float32))
    shell = shell_of_half_volume(volume.shape[0]).ravel() + 1
    power = (transform.real**2 + transform.imag**2).ravel()
    mean = (np.bincount(shell, power) / np.maximum(np.bincount(shell), 1))[1:]
    strong = np.flatnonzero(mean[1:] >= SUPPORTED**2 * mean[1:].max())
    return int(strong[-1]) + 1


def lowpass_gain(box: int, cutoff_shell: float, edge: float = 2.0) -> NDArray[np.float32]:
    """Return the gain per shell of a low-pass filter with a cosine edge, (box // 2 + 1,).

    cutoff_shell  middle of the edge
    edge          width of the edge in shells
    """
    shells = np.arange(box // 2 + 1)
    ramp = np.clip((shells - cutoff_shell) / edge + 0.5, 0.0, 1.0)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * ramp), np.float32)
