"""The weights of all poses of a grid on a GPU: the twin of `kernels.pose_weights`.

Columns are orientations, each with the one that is half a turn in the image plane away, whose slice
is the complex conjugate. Rows are (image, shift), shifts side by side.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from mpipar.kernels.device.device_code import device_kernel, on_device
from mpipar.kernels.device.device_insertion import first_columns, located, whole
from mpipar.kernels.device.device_scores import moved_component
from mpipar.kernels.pose_weights import LOWEST, power_of_e

exponential = on_device(power_of_e)
NOTHING = np.float32(-math.inf)
ZERO, TWO = np.float32(0.0), np.float32(2.0)
SMALLEST_POWER = np.float32(1e-37)


@device_kernel
def move_images(data, centres, grid, frequencies, box, real, imaginary):
    """Move each image's data back by each shift of a grid; one thread for each component of a row.

    data, centres, grid, frequencies, box   see `device_scores.moved_component`
    real         (b s, k) float32, k >= v: in place; imaginary likewise
    """
    place = cuda.grid(1)
    if place < data.shape[0] * grid.shape[0] * frequencies.shape[0]:
        row, v, value, other = moved_component(data, centres, grid, frequencies, box, place)
        real[row, v] = value
        imaginary[row, v] = other


@device_kernel
def log_likelihoods(first, second, quadratic, prior, free_scale, highest):
    """Turn the two halves of the cross products into log-likelihoods; see `pose_weights`.

    One thread for each image and orientation.

    first, second  (b, s, m) float32   in place
    quadratic      (b, m) float32
    prior          (s,) float32
    highest        (b, m) float32      in place: the largest log-likelihood of each
    """
    place = cuda.grid(1)
    orientations = highest.shape[1]
    if place < highest.shape[0] * orientations:
        b = place // orientations
        m = place - b * orientations
        power = quadratic[b, m]
        inverse = np.float32(1.0) / max(power, SMALLEST_POWER)
        high = NOTHING
        for s in range(first.shape[1]):
            cross = first[b, s, m] + second[b, s, m]
            turned = first[b, s, m] - second[b, s, m]
            if free_scale:
                cross, turned = max(cross, ZERO), max(turned, ZERO)
                value, other = cross * cross * inverse, turned * turned * inverse
            else:
                value, other = TWO * cross - power, TWO * turned - power
            value += prior[s]
            other += prior[s]
            first[b, s, m] = value
            second[b, s, m] = other
            high = max(high, max(value, other))  # noqa: PLW3301 - of two only
        highest[b, m] = high


@cuda.jit(device=True)
def weight_of(value, largest):
    """Return the weight relative to the best pose; 0 where it is negligible."""
    behind = value - largest
    return exponential(behind) if behind >= LOWEST else ZERO


@device_kernel
def exponentiate(first, second, largest, sums):
    """Turn log-likelihoods into weights; one thread for each image and orientation.

    first, second  (b, s, m) float32   in place: the weight, 1 for the best pose
    largest        (b,) float32        log-likelihood of the best pose of each image
    sums           (b, 2, m) float32   in place: the weights of first and second, over all shifts
    """
    place = cuda.grid(1)
    orientations = first.shape[2]
    if place < first.shape[0] * orientations:
        b = place // orientations
        m = place - b * orientations
        own, turned = ZERO, ZERO
        for s in range(first.shape[1]):
            value = weight_of(first[b, s, m], largest[b])
            other = weight_of(second[b, s, m], largest[b])
            first[b, s, m] = value
            second[b, s, m] = other
            own += value
            turned += other
        sums[b, 0, m] = own
        sums[b, 1, m] = turned


@device_kernel
def halve(first, second, totals):
    """Make weights those of the images' real and imaginary parts; one thread for each weight.

    first, second  (b, s, m) float32   in place: the sum and the difference of both orientations'
                                       probabilities
    totals         (b,) float64        all weights of an image
    """
    place = cuda.grid(1)
    width = first.shape[1] * first.shape[2]
    if place < first.shape[0] * width:
        b = place // width
        s = (place - b * width) // first.shape[2]
        m = place - b * width - s * first.shape[2]
        scale = np.float32(1.0 / totals[b])
        own, turned = first[b, s, m] * scale, second[b, s, m] * scale
        first[b, s, m] = own + turned
        second[b, s, m] = own - turned


@device_kernel
def add_whole(values, scales, totals):
    """Add slices to those of the same orientations, in whole numbers; one thread for each number.

    values  (3, m, k) float32, k >= v    real part, imaginary part, weight
    scales  integers per unit of value and of weight
    totals  (3, m, v) int64              in place
    """
    place = cuda.grid(1)
    rows, count = totals.shape[1], totals.shape[2]
    if place < 3 * rows * count:
        part = place // (rows * count)
        m = (place - part * rows * count) // count
        v = place - (part * rows + m) * count
        totals[part, m, v] += whole(values[part, m, v], scales[part // 2])


@cuda.jit(device=True)
def add_shares(sums, at, weights, fraction, values):
    """Add the values' shares to the voxel at `at` and to its neighbour along x."""
    unit, share = weights
    low, high = whole(unit * share, 1.0 - fraction), whole(unit * share, fraction)
    for part in range(3):
        cuda.atomic.add(sums, at + part, low * values[part])
        cuda.atomic.add(sums, at + 3 + part, high * values[part])


@device_kernel
def insert_whole(totals, rotations, frequencies, unit, shape, sums):
    """Add slices of whole numbers: `insertion.insert_whole`; one thread for each component.

    totals       (3, m, v) int64
    rotations    (m, 3, 3) float64
    frequencies  (v, 2) float32       kx, ky in voxels of the sums
    unit         that trilinear weights are multiples of 1 / unit of
    shape        d, h
    sums         (d d h 3,) int64     in place: atomic additions, whose order changes no bit
    """
    place = cuda.grid(1)
    count = frequencies.shape[0]
    if place >= totals.shape[1] * count:
        return
    m = place // count
    v = place - m * count
    real, imaginary, weight = totals[0, m, v], totals[1, m, v], totals[2, m, v]
    if real == 0 and imaginary == 0 and weight == 0:
        return
    side, height = shape
    columns = first_columns(rotations[m])
    x, y, z, sign = located(columns, (frequencies[v, 0], frequencies[v, 1]), 1.0, side // 2)
    values = real, int(sign) * imaginary, weight
    i, j, k = int(x), int(y), int(z)
    fx, fy, fz = x - i, y - j, z - k
    row, plane = 3 * height, 3 * height * side
    at = k * plane + j * row + 3 * i
    add_shares(sums, at, (unit, (1.0 - fz) * (1.0 - fy)), fx, values)
    add_shares(sums, at + row, (unit, (1.0 - fz) * fy), fx, values)
    add_shares(sums, at + plane, (unit, fz * (1.0 - fy)), fx, values)
    add_shares(sums, at + plane + row, (unit, fz * fy), fx, values)
