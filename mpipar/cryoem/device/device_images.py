"""What is done to images on a GPU before and after their alignment: twins of `mpipar.cryoem`'s.

Arrays are on the device, with the shapes that the functions of the same names have there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.cryoem.ctf import CtfParameters, contrast_transfer
from mpipar.cryoem.fourier import OVERSAMPLING
from mpipar.kernels.device import device_insertion
from mpipar.kernels.device.device_code import blocks_for, launch

if TYPE_CHECKING:
    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.cryoem.fourier import Components
    from mpipar.cryoem.reconstruction import FixedPoint

THREADS = 256


@dataclass(frozen=True)
class DeviceComponents:
    """Components of images, and on the device what is needed of them.

    host         the components in the host's memory
    frequencies  (v, 2) float32
    rows         (v,) and columns (v,): their places in a transform by ``rfft2``
    sign         (v,) float32: moves the origin to pixel n // 2
    """

    host: Components
    frequencies: Any
    rows: Any
    columns: Any
    sign: Any


def components_on(accelerator: Accelerator, wanted: Components) -> DeviceComponents:
    """Return components with their arrays on the device, each shell ordered by direction.

    So threads side by side read voxels side by side. Every smaller radius is a prefix all the same.
    """
    direction = np.arctan2(wanted.frequencies[:, 1], wanted.frequencies[:, 0])
    order = np.lexsort((direction, wanted.shell))
    wanted = replace(wanted, frequencies=wanted.frequencies[order], distance=wanted.distance[order])
    kx, ky = wanted.frequencies.T.astype(np.int64)
    sign = (1.0 - 2.0 * ((kx + ky) % 2)).astype(np.float32)
    arrays = (wanted.frequencies, ky % wanted.box, kx, sign)
    return DeviceComponents(wanted, *map(accelerator.to_device, arrays))


def image_components(accelerator: Accelerator, images: Any, wanted: DeviceComponents) -> Any:
    """Transform images (b, n, n) and keep the wanted components, (b, v) complex64."""
    transform = accelerator.xp.fft.rfft2(images)
    return transform[:, wanted.rows, wanted.columns].astype(np.complex64, copy=False) * wanted.sign


def soft_discs(accelerator: Accelerator, box: int, centres: Any, radius: float, edge: float) -> Any:
    """Return one disc per image, (b, n, n) float32; centres (b, 2) in pixels."""
    xp = accelerator.xp
    x = xp.arange(box) - box // 2
    dx = x[None, None, :] - centres[:, 0, None, None]
    dy = x[None, :, None] - centres[:, 1, None, None]
    ramp = xp.clip((xp.sqrt(dx * dx + dy * dy) - radius) / edge, 0.0, 1.0)
    return (0.5 + 0.5 * xp.cos(math.pi * ramp)).astype(np.float32)


def contrast_on(
    accelerator: Accelerator, ctf: CtfParameters, frequencies: Any, box: int, pixel_size: float
) -> Any:
    """Return the contrast transfer of each particle, (b, v) float32, computed on the device."""
    values = (getattr(ctf, name) for name in ctf.__dataclass_fields__)
    there = CtfParameters(*map(accelerator.to_device, values))
    return contrast_transfer(there, frequencies, box, pixel_size)


def phases(accelerator: Accelerator, shifts: Any, frequencies: Any, box: int) -> Any:
    """Return exp(2 pi i k shift / box), (..., v) complex64, of shifts (..., 2) in pixels."""
    kx, ky = frequencies[:, 0].astype(np.float64), frequencies[:, 1].astype(np.float64)
    turns = (shifts[..., 0:1] * kx + shifts[..., 1:2] * ky) * (2.0 * math.pi / box)
    xp = accelerator.xp
    factors = xp.empty(turns.shape, np.complex64)
    factors.real = xp.cos(turns)
    factors.imag = xp.sin(turns)
    return factors


def weigh(accelerator: Accelerator, images: Any, ctf: Any, weights: Any) -> Any:
    """Return CTF X / noise (real, imaginary part) and CTF^2 / noise, (b, v, 3) float32."""
    data = accelerator.xp.empty((*images.shape, 3), np.float32)
    filtered = images * (ctf * weights)
    data[..., 0], data[..., 1] = filtered.real, filtered.imag
    data[..., 2] = ctf * ctf * weights
    return data


def insert(
    sums: Any, shape: tuple[int, ...], values: Any, rotations: Any, frequencies: Any,
    scales: FixedPoint,
) -> None:  # fmt: skip
    """Add slices to `sums`, a flat array of the shape that `reconstruction.empty_sums` has."""
    images, count = values.shape[:2]
    launch(
        device_insertion.insert_slices,
        blocks_for(images * count, THREADS),
        THREADS,
        (
            values,
            rotations,
            frequencies[:count] * np.float32(OVERSAMPLING),
            (scales.value, scales.weight),
            (shape[0], shape[2]),
            sums,
        ),
    )
