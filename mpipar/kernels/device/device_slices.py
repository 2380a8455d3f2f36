"""Central slices on a GPU: the twins of `kernels.slices`."""

from __future__ import annotations

import numpy as np
from numba import cuda

from mpipar.kernels import slices
from mpipar.kernels.device.device_code import device_kernel, on_device
from mpipar.kernels.interpolation import columns_of, point_of

sample = on_device(slices.sample)
located = on_device(point_of)
first_columns = on_device(columns_of)


@cuda.jit(device=True)
def trilinear_with_gradient(flat, at, step, row, plane, fractions):
    """Interpolate as `interpolation.trilinear`; return value and derivatives along x, y and z."""
    fx, fy, fz = fractions
    a00, d00 = flat[at], flat[at + step] - flat[at]
    at += row
    a01, d01 = flat[at], flat[at + step] - flat[at]
    at += plane
    a11, d11 = flat[at], flat[at + step] - flat[at]
    at -= row
    a10, d10 = flat[at], flat[at + step] - flat[at]
    a00 += fx * d00
    a01 += fx * d01
    a10 += fx * d10
    a11 += fx * d11
    b0, b1 = a00 + fy * (a01 - a00), a10 + fy * (a11 - a10)
    e0, e1 = d00 + fy * (d01 - d00), d10 + fy * (d11 - d10)
    gx = e0 + fz * (e1 - e0)
    gy = (a01 - a00) + fz * ((a11 - a10) - (a01 - a00))
    gz = b1 - b0
    return b0 + fz * gz, gx, gy, gz


@cuda.jit(device=True)
def sample_gradient(flat, side, height, turn, frequency):
    """Interpolate one component and its gradient: `slices.sample_with_gradient` of one component.

    turn       the nine entries of the rotation row by row, float32, times the oversampling
    frequency  kx, ky in pixels
    returns    value, d/dx, d/dy, d/dz; of each the real, then the imaginary part
    """
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = turn
    columns = r00, r01, r10, r11, r20, r21
    two, row, plane = np.uint64(2), np.uint64(2 * height), np.uint64(2 * height * side)
    x, y, z, sign = located(columns, frequency, np.float32(1.0), np.float32(side // 2))
    i, j, k = int(x), int(y), int(z)
    fractions = x - np.float32(i), y - np.float32(j), z - np.float32(k)
    at = np.uint64(((k * side + j) * height + i) * 2)
    pr, xr, yr, zr = trilinear_with_gradient(flat, at, two, row, plane, fractions)
    at += np.uint64(1)
    pi, xi, yi, zi = trilinear_with_gradient(flat, at, two, row, plane, fractions)
    # V(-k) = conj V(k): the mate's imaginary part and the gradient of its real part change sign
    return (
        pr,
        sign * pi,
        sign * (r00 * xr + r10 * yr + r20 * zr),
        r00 * xi + r10 * yi + r20 * zi,
        sign * (r01 * xr + r11 * yr + r21 * zr),
        r01 * xi + r11 * yi + r21 * zi,
        sign * (r02 * xr + r12 * yr + r22 * zr),
        r02 * xi + r12 * yi + r22 * zi,
    )


@device_kernel
def extract_slices(flat, shape, rotations, frequencies, out):
    """Sample one central slice per rotation; one thread for each component.

    flat         the reference (d, d, h, 2) float32 as one flat array
    shape        d, h
    rotations    (m, 3, 3) float32
    frequencies  (v, 2) float32      kx, ky in voxels of the reference
    out          (m, v, 2) float32   in place: real and imaginary part
    """
    place = cuda.grid(1)
    count = frequencies.shape[0]
    if place < rotations.shape[0] * count:
        m = place // count
        v = place - m * count
        columns = first_columns(rotations[m])
        frequency = frequencies[v, 0], frequencies[v, 1]
        real, imaginary = sample(flat, shape[0], shape[1], columns, frequency)
        out[m, v, 0] = real
        out[m, v, 1] = imaginary
