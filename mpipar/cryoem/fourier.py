"""Fourier transforms about the voxel n // 2, and lists of components ordered by frequency."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import scipy.fft

from mpipar.errors import InputError
from mpipar.kernels import volume_passes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

OVERSAMPLING = 2
"""Finer sampling of volume transforms than of image transforms, so that trilinear interpolation is
accurate enough."""

SUPPORTED = 0.003  # of the strongest shell's amplitude

PLANES: Final = 8
ROWS: Final = 8
"""How many planes of a volume, and rows of all its planes, are transformed at once."""
GAP: Final = 8
"""Components between planes: a cache has no room for many that are a power of two apart."""


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


def shells_by_square(last: int, sampling: int = 1) -> NDArray[np.int32]:
    """Return the nearest shell of each squared distance that lies in shells 0..last, (q,).

    sampling  voxels of a transform per shell
    """
    squares = np.arange((sampling * last + sampling) ** 2 + 1)
    shell = np.rint(np.sqrt(squares) / sampling).astype(np.int32)
    return shell[shell <= last]


def volume_half_transform(
    volume: NDArray[np.floating], oversampling: int, radius: int
) -> NDArray[np.complex64]:
    """Return the oversampled half transform of a volume, as far out as slices read it.

    volume   (n, n, n), axes z y x, origin at n // 2
    radius   cycles per box of the slices
    returns  (d, d, h) complex64, d = 2 (oversampling radius + 2) + 1, zero frequency at [d // 2, d
             // 2, 0]

    One axis after the other is filled up with zeros, transformed and cut, a few planes or rows at a
    time: a whole oversampled volume is never in memory.
    """
    n, reach = volume.shape[0], oversampling * radius + 2
    m, side = n * oversampling, 2 * reach + 1
    inside = min(reach, m // 2 - 1)
    count, height = 2 * inside + 1, min(reach + 2, m // 2)
    lines = np.empty((n, count, height), np.complex64)
    along_x = np.empty((PLANES, n, m), np.float32)
    along_y = np.empty((PLANES, m, height), np.complex64)
    for planes in _pieces(n, PLANES):
        real, part = (wide[: planes.stop - planes.start] for wide in (along_x, along_y))
        _spread(volume[planes], real, 2)
        _spread(scipy.fft.rfft(real, axis=2)[:, :, :height], part, 1)
        _gather(scipy.fft.fft(part, axis=1, overwrite_x=True), lines[planes], 1)
    result = np.zeros((side, side, reach + 2), np.complex64)
    within = slice(reach - inside, reach + inside + 1)
    target = result[within, within, :height]
    along_z = np.empty((m, ROWS, height + GAP), np.complex64)[:, :, :height]
    for rows in _pieces(count, ROWS):
        part = along_z[:, : rows.stop - rows.start]
        _spread(lines[:, rows], part, 0)
        _gather(scipy.fft.fft(part, axis=0, overwrite_x=True), target[:, rows], 0)
    return result


def volume_from_rows(
    rows: Callable[[slice], NDArray[np.complex64]],
    shape: tuple[int, int],
    oversampling: int,
    box: int,
) -> NDArray[np.float32]:
    """Return the volume of a half transform that is made in pieces, see `volume_half_transform`.

    rows     gives (d, w, h) complex64 of the half transform (d, d, h): some rows along x, of all z
    shape    d, h
    returns  (box, box, box) float32
    """
    m, reach = box * oversampling, shape[0] // 2
    inside = min(reach, m // 2 - 1)
    count, height = 2 * inside + 1, min(shape[1], m // 2)
    outside = reach - inside
    lines = np.empty((box, count, height), np.complex64)
    along_z = np.empty((m, ROWS, height + GAP), np.complex64)[:, :, :height]
    for piece in _pieces(count, ROWS):
        part = along_z[:, : piece.stop - piece.start]
        given = rows(slice(piece.start + outside, piece.stop + outside))
        _spread(given[outside : outside + count, :, :height], part, 0)
        _gather(scipy.fft.ifft(part, axis=0, overwrite_x=True), lines[:, piece], 0)
    volume = np.empty((box, box, box), np.float32)
    along_y = np.empty((PLANES, m, height), np.complex64)
    along_x = np.zeros((PLANES, box, m // 2 + 1), np.complex64)
    for planes in _pieces(box, PLANES):
        part, line = (wide[: planes.stop - planes.start] for wide in (along_y, along_x))
        _spread(lines[planes], part, 1)
        _gather(scipy.fft.ifft(part, axis=1, overwrite_x=True), line[:, :, :height], 1)
        _gather(scipy.fft.irfft(line, n=m, axis=2), volume[planes], 2)
    return volume


def _pieces(count: int, size: int) -> Iterator[slice]:
    """Cut a range into pieces of a size; the last may be shorter."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _spread(values: NDArray[Any], wide: NDArray[Any], axis: int) -> None:
    """Write values into a wider array, zero elsewhere, and move the origin of one axis to index 0.

    values   origin in the middle of the axis, index length // 2
    """
    source, target = np.moveaxis(values, axis, 0), np.moveaxis(wide, axis, 0)
    before, size = len(source) // 2, len(target)
    after = len(source) - before
    target[:after] = source[before:]
    target[after : size - before] = 0
    target[size - before :] = source[:before]


def _gather(wide: NDArray[Any], values: NDArray[Any], axis: int) -> None:
    """Undo `_spread`: write what lies about the origin of a wide array into `values`."""
    source, target = np.moveaxis(wide, axis, 0), np.moveaxis(values, axis, 0)
    before = len(target) // 2
    target[before:] = source[: len(target) - before]
    target[:before] = source[len(source) - before :]


def interpolation_falloff(box: int, oversampling: int) -> NDArray[np.float64]:
    """Return by what factor trilinear interpolation in Fourier space weakens a volume.

    returns  (box,): the factor along one axis, sinc^2; a voxel's is the product of its three
    """
    return np.asarray(np.sinc((np.arange(box) - box // 2) / (box * oversampling)) ** 2)


def undo_falloff(volume: NDArray[np.float32], oversampling: int) -> None:
    """Divide a volume (n, n, n) by `interpolation_falloff`, in place."""
    gain = 1.0 / interpolation_falloff(volume.shape[0], oversampling)
    plane = gain[:, None] * gain[None, :]
    for z, here in enumerate(gain):
        volume[z] *= (here * plane).astype(np.float32)


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


def volume_transform(volume: NDArray[np.floating]) -> NDArray[np.complex64]:
    """Return the half transform of a volume as it lies, (n, n, n // 2 + 1), origin at index 0."""
    return np.asarray(scipy.fft.rfftn(np.asarray(volume, np.float32)))


def volume_of_transform(transform: NDArray[np.complex64], box: int) -> NDArray[np.float32]:
    """Return the volume of a half transform from `volume_transform`, which is used up."""
    lines = scipy.fft.ifft2(transform, axes=(0, 1), overwrite_x=True)
    return np.asarray(scipy.fft.irfft(lines, n=box, axis=2), np.float32)


def shell_means(volume: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of a volume's transform about the voxel n // 2 in each shell, (n // 2 + 1,).

    This is the transform of the volume's mean over all orientations, and so of its mean projection.
    """
    transform = volume_transform(np.fft.ifftshift(volume))
    products = shell_products(transform, np.ones_like(transform))
    return np.asarray(products[:, 0] / products[:, 3])


def shell_products(
    first: NDArray[np.complex64], second: NDArray[np.complex64]
) -> NDArray[np.float64]:
    """Add up products of two half transforms (n, n, n // 2 + 1) over each shell.

    returns  (n // 2 + 1, 4): the real part of first x conj(second), |first|^2, |second|^2, and the
             number of components; both of each Friedel pair count
    """
    box = first.shape[0]
    totals = np.zeros((box // 2 + 1, 4))
    volume_passes.add_up_shells(first, second, shells_by_square(box // 2), box, totals)
    return totals


def multiply_shells(transform: NDArray[np.complex64], gain: NDArray[np.floating]) -> None:
    """Multiply each shell of a half transform (n, n, n // 2 + 1) by a gain, in place.

    gain    (n // 2 + 1,) by shell; frequencies beyond the last shell become zero
    """
    table = np.asarray(gain, np.float32)[shells_by_square(len(gain) - 1)]
    volume_passes.multiply_shells(transform, table)


def blend_shells(
    transform: NDArray[np.complex64], other: NDArray[np.complex64], share: NDArray[np.floating]
) -> None:
    """Replace a share of each shell of a half transform by another's, in place.

    transform, other   (n, n, n // 2 + 1)
    share              (n // 2 + 1,) 0 to 1; frequencies beyond the last shell become zero
    """
    table = np.asarray(share, np.float32)[shells_by_square(len(share) - 1)]
    volume_passes.blend_shells(transform, other, table)


def filter_shells(volume: NDArray[np.floating], gain: NDArray[np.floating]) -> NDArray[np.float32]:
    """Multiply each shell of a volume's transform by a gain.

    volume  (n, n, n)
    gain    (n // 2 + 1,) by shell; frequencies beyond the last shell become zero
    """
    transform = volume_transform(volume)
    multiply_shells(transform, gain)
    return volume_of_transform(transform, volume.shape[0])


def supported_shell(volume: NDArray[np.floating]) -> int:
    """Return the last shell in which a volume has detail: 0.3 % of its strongest amplitude.

    Beyond the cutoff of a low-pass filter there is a thousandth of that; molecules have ten times
    as much down to 5 A.
    """
    transform = volume_transform(volume)
    products = shell_products(transform, transform)
    mean = products[:, 0] / products[:, 3]
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
