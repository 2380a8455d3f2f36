"""Poses near the best on a GPU: drawn, weighed against how they were drawn, and scored.

The same as `cryoem.pose_spread`, for all images of a block at once. The five parameters are three
rotations about the image's axes, in radians, and two shifts, in pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32, float64

from mpipar.kernels import poses
from mpipar.kernels.device.device_climb import (
    ROTATIONS,
    data_at,
    fill_phases,
    likelihood,
    turned,
    zoomed,
)
from mpipar.kernels.device.device_code import device_kernel, on_device
from mpipar.kernels.device.device_slices import sample

factorise = on_device(poses.factorise)
PARAMETERS = 5
MOST_SCORERS = 128
"""Threads that score one pose, at most: a power of two."""
TINY_SINE = 1e-12


@cuda.jit(device=True)
def invert_triangle(low, inverse):
    """Fill `inverse` with the inverse of a lower triangle (5, 5)."""
    for column in range(PARAMETERS):
        for row in range(PARAMETERS):
            total = 1.0 if row == column else 0.0
            for k in range(column, row):
                total -= low[row, k] * inverse[k, column]
            inverse[row, column] = total / low[row, row] if row >= column else 0.0


@cuda.jit(device=True)
def square_of_transposed(inverse, product):
    """Fill `product` with inverse^T inverse (5, 5)."""
    for i in range(PARAMETERS):
        for j in range(PARAMETERS):
            total = 0.0
            for k in range(PARAMETERS):
                total += inverse[k, i] * inverse[k, j]
            product[i, j] = total


@device_kernel
def spread_factors(curvatures, factor, widest, wider, factors, variances):
    """Find from what distribution poses about each peak are drawn; one thread for each peak.

    curvatures  (c, 5, 5) float64   how fast the score falls
    factor      of a score, to be a log-likelihood
    widest      radians and pixels: standard deviations at most
    wider       factor by which the distribution is wider than the likelihood
    factors     (c, 5, 5) float64   in place: lower triangle, of the distribution's covariance
    variances   (c, 5) float64      in place: of the likelihood
    """
    c = cuda.grid(1)
    if c >= curvatures.shape[0]:
        return
    precision = cuda.local.array((PARAMETERS, PARAMETERS), float64)
    low = cuda.local.array((PARAMETERS, PARAMETERS), float64)
    for i in range(PARAMETERS):
        for j in range(PARAMETERS):
            precision[i, j] = factor * curvatures[c, i, j]
        limit = widest[0] if i < ROTATIONS else widest[1]
        precision[i, i] += 1.0 / (limit * limit)
        variances[c, i] = limit * limit
    factorise(precision, 1.0, 0.0, low)
    invert_triangle(low, precision)
    square_of_transposed(precision, low)
    for i in range(PARAMETERS):
        variances[c, i] = low[i, i]
    factorise(low, wider, 0.0, precision)
    for i in range(PARAMETERS):
        for j in range(PARAMETERS):
            factors[c, i, j] = precision[i, j] if j <= i else 0.0


@cuda.jit(device=True)
def turn_between(first, second, step):
    """Fill the head of `step` with the rotation from `first` to `second`, about image axes."""
    trace = 0.0
    for i in range(3):
        for j in range(3):
            trace += first[j, i] * second[j, i]
        a, b = (i + 2) % 3, (i + 1) % 3
        difference = 0.0
        for j in range(3):
            difference += first[j, a] * second[j, b] - first[j, b] * second[j, a]
        step[i] = 0.5 * difference
    sine = math.sqrt(step[0] * step[0] + step[1] * step[1] + step[2] * step[2])
    if sine > TINY_SINE:
        angle = math.atan2(sine, 0.5 * (trace - 1.0))
        for i in range(3):
            step[i] *= angle / sine


@cuda.jit(device=True)
def log_density_of(step, factor):
    """Return the logarithm of a normal density, but for a constant; `step` is used up."""
    total = 0.0
    for i in range(PARAMETERS):
        for k in range(i):
            step[i] -= factor[i, k] * step[k]
        step[i] /= factor[i, i]
        total -= 0.5 * step[i] * step[i] + math.log(factor[i, i])
    return total


@device_kernel
def draw_poses(peaks, owners, alone, points, rotations, shifts, densities):
    """Draw poses about each image's peaks; one thread for each.

    peaks       rotations (b, p, 3, 3), shifts (b, p, 2) and factors (b, p, 5, 5), float64
    owners      (b, p) int32    -1 where there is no peak
    alone       (b,) bool       the image keeps its first peak
    points      (k, 5) float64  of a normal distribution of variance 1
    rotations   (b, p, k, 3, 3) float64   in place, as shifts (b, p, k, 2)
    densities   (b, p, k) float64         in place: logarithm of how densely poses were drawn there;
                                          infinity where there is none
    """
    place = cuda.grid(1)
    images, count, drawn = densities.shape
    if place >= images * count * drawn:
        return
    b = place // (count * drawn)
    p = (place - b * count * drawn) // drawn
    k = place - (b * count + p) * drawn
    turns, moves, factors = peaks
    step = cuda.local.array(PARAMETERS, float64)
    for i in range(PARAMETERS):
        step[i] = 0.0
        if not alone[b]:
            for j in range(i + 1):
                step[i] += factors[b, p, i, j] * points[k, j]
    turned(turns[b, p], step, rotations[b, p, k])
    shifts[b, p, k, 0] = moves[b, p, 0] + step[3]
    shifts[b, p, k, 1] = moves[b, p, 1] + step[4]
    if owners[b, p] < 0 or (alone[b] and p + k > 0):
        densities[b, p, k] = math.inf
        return
    total = -math.inf
    for other in range(count):
        if owners[b, other] >= 0:
            turn_between(turns[b, other], rotations[b, p, k], step)
            step[3] = shifts[b, p, k, 0] - moves[b, other, 0]
            step[4] = shifts[b, p, k, 1] - moves[b, other, 1]
            value = log_density_of(step, factors[b, other])
            high = max(total, value)
            total = high + math.log(math.exp(total - high) + math.exp(value - high))
    densities[b, p, k] = total


@device_kernel
def score_poses(volume, frequencies, data, owners, options, radius, found, scores):
    """Score poses; one block of threads, a power of two, for each.

    volume, frequencies, data, owners, options, radius, found   as in `device_climb.climb`
    scores   (c,) float64   in place: log-likelihood; -infinity where there is no pose
    """
    pose, t = cuda.blockIdx.x, cuda.threadIdx.x
    table = cuda.shared.array(0, float32)
    crosses = cuda.shared.array(MOST_SCORERS, float64)
    powers = cuda.shared.array(MOST_SCORERS, float64)
    if owners[pose] < 0:
        scores[pose] = -math.inf
        return
    flat, side, height = volume
    fill_phases(table, radius, found[1][pose], options.box)
    cuda.syncthreads()
    turn = zoomed(found[0][pose], np.float32(options.oversampling))
    columns = turn[0], turn[1], turn[3], turn[4], turn[6], turn[7]
    cross, power = np.float32(0.0), np.float32(0.0)
    for v in range(t, frequencies.shape[0], cuda.blockDim.x):
        frequency = frequencies[v, 0], frequencies[v, 1]
        pr, pi = sample(flat, side, height, columns, frequency)
        real, imaginary, weight = data_at(data, owners[pose], v, frequency, table, radius)
        cross += pr * real + pi * imaginary
        power += weight * (pr * pr + pi * pi)
    crosses[t] = cross
    powers[t] = power
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if t < half:
            crosses[t] += crosses[t + half]
            powers[t] += powers[t + half]
        cuda.syncthreads()
        half //= 2
    if t == 0:
        scores[pose] = likelihood(crosses[0], powers[0], options.free_scale)
