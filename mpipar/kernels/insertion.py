"""Back-projection into integer sums, and the averaging of those sums over a symmetry group.

Sums are (d, d, h, 3): real part, imaginary part and weight of the oversampled half transform, axes
z y x, zero frequency at [c, c, 0] with c = d // 2.
"""

from __future__ import annotations

import math

import numpy as np

from mpipar.kernels.interpolation import columns_of, point_of, trilinear
from mpipar.kernels.jit import kernel


@kernel(
    "void(float32[:,:,::1], float64[:,:,::1], float32[:,::1], float64[::1], int64[:,:,:,::1])",
    changes=(4,),
)
def insert_slices(values, rotations, frequencies, scales, sums):
    """Add slices by trilinear gridding, in whole numbers, so that their order changes no bit.

    values       (m, v, 3) float32      CTF x image / noise (real, imaginary) and CTF^2 / noise of
                                        each component
    rotations    (m, 3, 3) float64      map coordinate = rotation @ image coordinate
    frequencies  (v, 2) float32         kx, ky in voxels of the sums
    scales       (2,) float64           integers per unit of value and of weight
    sums         (d, d, h, 3) int64     in place
    """
    flat = sums.reshape(-1)
    side, height = sums.shape[0], sums.shape[2]
    centre = side // 2
    three, row, plane = np.uint64(3), np.uint64(3 * height), np.uint64(3 * height * side)
    one, two = np.uint64(1), np.uint64(2)
    for m in range(values.shape[0]):
        columns = columns_of(rotations[m])
        for v in range(frequencies.shape[0]):
            frequency = frequencies[v, 0], frequencies[v, 1]
            x, y, z, sign = point_of(columns, frequency, 1.0, centre)
            real = values[m, v, 0] * scales[0]
            imaginary = sign * values[m, v, 1] * scales[0]
            weight = values[m, v, 2] * scales[1]
            i, j, k = int(x), int(y), int(z)
            fx, fy, fz = x - i, y - j, z - k
            at = np.uint64(((k * side + j) * height + i) * 3)
            for dz in range(2):
                wz = fz if dz else 1.0 - fz
                for dy in range(2):
                    wy = wz * (fy if dy else 1.0 - fy)
                    p = at + (plane if dz else np.uint64(0)) + (row if dy else np.uint64(0))
                    w = wy * (1.0 - fx)
                    flat[p] += int(math.floor(w * real + 0.5))
                    flat[p + one] += int(math.floor(w * imaginary + 0.5))
                    flat[p + two] += int(math.floor(w * weight + 0.5))
                    p += three
                    w = wy * fx
                    flat[p] += int(math.floor(w * real + 0.5))
                    flat[p + one] += int(math.floor(w * imaginary + 0.5))
                    flat[p + two] += int(math.floor(w * weight + 0.5))


@kernel(
    "void(float32[:,:,::1], int64[::1], float64[::1], int64[:,:,::1])",
    changes=(3,),
)
def add_whole(values, rows, scales, totals):
    """Add slices to those of the same orientation, in whole numbers.

    values  (3, n, v) float32    real part, imaginary part, weight
    rows    (n,) int64           the orientation of each slice
    scales  (2,) float64         integers per unit of value and of weight
    totals  (3, m, v) int64      in place
    """
    for part in range(3):
        scale = scales[part // 2]
        for n in range(rows.size):
            row = totals[part, rows[n]]
            for v in range(row.size):
                row[v] += int(math.floor(values[part, n, v] * scale + 0.5))


@kernel(
    "void(int64[:,:,::1], float64[:,:,::1], float32[:,::1], int64, int64[:,:,:,::1])",
    changes=(4,),
)
def insert_whole(totals, rotations, frequencies, unit, sums):
    """Add slices of whole numbers, with trilinear weights that are whole numbers.

    So the sums of several lists of slices are those of the sum of the lists, to the bit.

    totals       (3, m, v) int64   real part, imaginary part, weight
    rotations    (m, 3, 3) float64
    frequencies  (v, 2) float32    kx, ky in voxels of the sums
    unit         int               that trilinear weights are multiples of 1 / unit of
    sums         (d, d, h, 3) int64   in place; `unit` times too large
    """
    flat = sums.reshape(-1)
    side, height = sums.shape[0], sums.shape[2]
    centre = side // 2
    three, row, plane = np.uint64(3), np.uint64(3 * height), np.uint64(3 * height * side)
    one, two = np.uint64(1), np.uint64(2)
    for m in range(rotations.shape[0]):
        columns = columns_of(rotations[m])
        for v in range(frequencies.shape[0]):
            real, imaginary, weight = totals[0, m, v], totals[1, m, v], totals[2, m, v]
            if real == 0 and imaginary == 0 and weight == 0:
                continue
            frequency = frequencies[v, 0], frequencies[v, 1]
            x, y, z, sign = point_of(columns, frequency, 1.0, centre)
            imaginary *= int(sign)
            i, j, k = int(x), int(y), int(z)
            fx, fy, fz = x - i, y - j, z - k
            at = np.uint64(((k * side + j) * height + i) * 3)
            for dz in range(2):
                wz = unit * (fz if dz else 1.0 - fz)
                for dy in range(2):
                    wy = wz * (fy if dy else 1.0 - fy)
                    p = at + (plane if dz else np.uint64(0)) + (row if dy else np.uint64(0))
                    w = int(wy * (1.0 - fx) + 0.5)
                    flat[p] += w * real
                    flat[p + one] += w * imaginary
                    flat[p + two] += w * weight
                    p += three
                    w = int(wy * fx + 0.5)
                    flat[p] += w * real
                    flat[p + one] += w * imaginary
                    flat[p + two] += w * weight


@kernel("void(float32[:,:,:,::1], float64[:,::1], float64, float32[:,:,:,::1])", changes=(3,))
def add_rotated(source, rotation, radius, target):
    """Turn `source` by one symmetry operator and add it to `target`.

    source    (d, d, h, 3) float32   x = 0 plane complete (both Friedel mates present)
    rotation  (3, 3) float64         target coordinate = rotation @ source coordinate
    radius    float                  voxels farther out than this are left alone
    target    (d, d, h, 3) float32   in place
    """
    flat = source.reshape(-1)
    side, height = source.shape[0], source.shape[2]
    centre, reach = side // 2, int(radius)
    three, row, plane = np.uint64(3), np.uint64(3 * height), np.uint64(3 * height * side)
    for tz in range(-reach, reach + 1):
        for ty in range(-reach, reach + 1):
            for tx in range(reach + 1):
                if tx * tx + ty * ty + tz * tz > radius * radius:
                    continue
                x = rotation[0, 0] * tx + rotation[1, 0] * ty + rotation[2, 0] * tz
                sign = 1.0 if x >= 0 else -1.0
                x *= sign
                y = (
                    sign * (rotation[0, 1] * tx + rotation[1, 1] * ty + rotation[2, 1] * tz)
                    + centre
                )
                z = (
                    sign * (rotation[0, 2] * tx + rotation[1, 2] * ty + rotation[2, 2] * tz)
                    + centre
                )
                i, j, k = int(x), int(y), int(z)
                fx, fy, fz = np.float32(x - i), np.float32(y - j), np.float32(z - k)
                at = np.uint64(((k * side + j) * height + i) * 3)
                voxel = target[tz + centre, ty + centre, tx]
                for part in range(3):
                    value = trilinear(flat, at + np.uint64(part), three, row, plane, (fx, fy, fz))
                    voxel[part] += np.float32(sign) * value if part == 1 else value
