"""Back-projection on a GPU: the twin of `kernels.insertion.insert_slices`."""

from __future__ import annotations

import math

from numba import cuda

from mpipar.kernels.device.device_code import device_kernel, on_device
from mpipar.kernels.interpolation import columns_of, point_of

located = on_device(point_of)
first_columns = on_device(columns_of)


@cuda.jit(device=True)
def whole(share, value):
    """Return share * value, rounded to the nearest whole number, halves up."""
    return int(math.floor(share * value + 0.5))


@cuda.jit(device=True)
def add_pair(sums, at, share, fraction, values):
    """Add the values' shares to the voxel at `at` and to its neighbour along x."""
    low, high = share * (1.0 - fraction), share * fraction
    cuda.atomic.add(sums, at, whole(low, values[0]))
    cuda.atomic.add(sums, at + 1, whole(low, values[1]))
    cuda.atomic.add(sums, at + 2, whole(low, values[2]))
    cuda.atomic.add(sums, at + 3, whole(high, values[0]))
    cuda.atomic.add(sums, at + 4, whole(high, values[1]))
    cuda.atomic.add(sums, at + 5, whole(high, values[2]))


@device_kernel
def insert_slices(values, rotations, frequencies, scales, shape, sums):
    """Add slices by trilinear gridding, in whole numbers; one thread for each component.

    values       (m, v, 3) float32    CTF x image / noise (real, imaginary) and CTF^2 / noise
    rotations    (m, 3, 3) float64
    frequencies  (v, 2) float32       kx, ky in voxels of the sums
    scales       integers per unit of value and of weight
    shape        d, h
    sums         (d d h 3,) int64     in place: atomic additions, whose order changes no bit
    """
    place = cuda.grid(1)
    count = frequencies.shape[0]
    if place < values.shape[0] * count:
        m = place // count
        v = place - m * count
        side, height = shape
        columns = first_columns(rotations[m])
        frequency = frequencies[v, 0], frequencies[v, 1]
        x, y, z, sign = located(columns, frequency, 1.0, side // 2)
        data = (
            values[m, v, 0] * scales[0],
            sign * values[m, v, 1] * scales[0],
            values[m, v, 2] * scales[1],
        )
        i, j, k = int(x), int(y), int(z)
        fx, fy, fz = x - i, y - j, z - k
        row, plane = 3 * height, 3 * height * side
        at = k * plane + j * row + 3 * i
        add_pair(sums, at, (1.0 - fz) * (1.0 - fy), fx, data)
        add_pair(sums, at + row, (1.0 - fz) * fy, fx, data)
        add_pair(sums, at + plane, fz * (1.0 - fy), fx, data)
        add_pair(sums, at + plane + row, fz * fy, fx, data)
