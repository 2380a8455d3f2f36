"""Soft masks in real space, and the statistics of the pixels outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpipar.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def soft_edge(distance: NDArray[np.floating], radius: float, edge: float) -> NDArray[np.float32]:
    """Return 1 within `radius`, 0 beyond radius + edge, a cosine between; all in pixels."""
    ramp = np.clip((distance - radius) / edge, 0.0, 1.0)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * ramp), np.float32)


def soft_sphere(box: int, radius: float, edge: float) -> NDArray[np.float32]:
    """Return a spherical mask about the voxel box // 2, (n, n, n); radius and edge in pixels."""
    squares = (np.arange(box) - box // 2) ** 2
    by_square = soft_edge(np.sqrt(np.arange(3 * (box // 2) ** 2 + 1)), radius, edge)
    plane = squares[:, None] + squares[None, :]
    sphere = np.empty((box,) * 3, np.float32)
    for z, square in enumerate(squares):
        sphere[z] = by_square[square + plane]
    return sphere


def soft_discs(
    box: int, centres: NDArray[np.floating], radius: float, edge: float
) -> NDArray[np.float32]:
    """Return one disc per image, (b, n, n).

    centres       (b, 2)  x, y in pixels from the pixel box // 2
    radius, edge  pixels
    """
    x = np.arange(box) - box // 2
    dx = x[None, None, :] - np.asarray(centres, np.float64)[:, 0, None, None]
    dy = x[None, :, None] - np.asarray(centres, np.float64)[:, 1, None, None]
    return soft_edge(np.sqrt(dx * dx + dy * dy), radius, edge)


def background(
    images: NDArray[np.floating], radius: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each image outside a circle, (b,) and (b,).

    images  (b, n, n)
    radius  of the circle about the pixel n // 2, pixels
    """
    n = images.shape[-1]
    x = np.arange(n) - n // 2
    outside = (x[:, None] ** 2 + x[None, :] ** 2) > min(radius, 0.98 * n / 2) ** 2
    pixels = images[:, outside].astype(np.float64)
    return pixels.mean(axis=1), pixels.std(axis=1)


def particle_diameter(
    volume: NDArray[np.floating], pixel_size: float, threshold: float = 0.1
) -> float:
    """Return the diameter in Angstrom of the sphere about the box centre with all strong density.

    volume      (n, n, n)
    pixel_size  Angstrom
    threshold   density is strong above this fraction of the largest
    raises      InputError if no density is positive
    """
    n = volume.shape[0]
    x = np.arange(n) - n // 2
    distance = np.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None, :] ** 2)
    inside = distance <= n / 2 - 1
    largest = volume[inside].max()
    if not largest > 0:
        raise InputError("the model has no positive density; is its contrast inverted?")
    strong = inside & (volume > threshold * largest)
    return float(2.0 * (distance[strong].max() + 1.0) * pixel_size)


def dense_part(volume: NDArray[np.floating], threshold: float = 0.1) -> NDArray[np.float64]:
    """Return the density above a fraction of the largest, (n, n, n), and 0 elsewhere; sum 1.

    volume   (n, n, n), somewhere positive
    """
    dense = np.where(volume > threshold * volume.max(), volume, 0.0).astype(np.float64)
    return np.asarray(dense / dense.sum())


def centre_of_mass(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x, y, z of the centre of mass, (3,) pixels from the voxel n // 2; the sum is 1."""
    n = density.shape[0]
    places = np.arange(n) - n // 2
    return np.array([density.sum(axis=axes) @ places for axes in ((0, 1), (0, 2), (1, 2))])
