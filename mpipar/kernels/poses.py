"""The climb from a rough pose to the best: Levenberg-Marquardt over 3 rotations and 2 shifts.

An image enters as data (v, 3) float32: real and imaginary part of CTF x image / noise, and CTF^2 /
noise, per component. With P the reference's slice, the score is cross - quadratic / 2, with cross =
sum Re(conj(P) D e^{i phase}) and quadratic = sum E |P|^2, and every derivative is a sum of the same
terms.

Components are handled in chunks. `fields` (13, n) float32 holds a chunk's values: rows 0-7 from
`slices.sample_with_gradient`, 8-12 from `shift_data`. `system` (9, 5) float64 holds a pose's sums:
normal matrix in rows 0-4, derivative of cross in 5, half that of the quadratic term in 6, a step in
7, cross and quadratic term in 8.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import float32, float64, typeof, void

from mpipar.kernels.interpolation import columns_of
from mpipar.kernels.jit import kernel
from mpipar.kernels.slices import sample, sample_with_gradient

CHUNK = 256
"""Components handled at a time: their values stay in the first-level cache."""
SMALLEST_GAIN = 0.01
"""Gain in score by one step, below which a climb ends."""
FIRST_DAMPING, LARGEST_DAMPING = 1e-2, 1e3
TINY = 1e-30
TINY_ANGLE = 1e-8
"""Radians: below, the first terms of the series stand for sine and cosine."""


class ClimbOptions(NamedTuple):
    """What all climbs of one image have in common. Kernels are compiled for exactly these types.

    oversampling   voxels of the reference per cycle per box
    box            pixels along each side of the images
    steps          at most so many for each starting pose
    free_scale     whether the grey scale of the reference is fitted to the image
    longest_turn   of one step, radians
    longest_move   of one step, pixels
    largest_shift  pixels: no climb goes farther from the centre, unless it starts farther out
    """

    oversampling: int
    box: int
    steps: int
    free_scale: bool
    longest_turn: float
    longest_move: float
    largest_shift: float


OPTIONS = typeof(ClimbOptions(2, 64, 10, False, 0.1, 1.0, 10.0))  # type: ignore[no-untyped-call]


@kernel()
def widest_frequency(frequencies):
    """Return the largest |kx| or |ky|, whole numbers: the h of a table of `shift_phases`."""
    half = 0
    for v in range(frequencies.shape[0]):
        half = max(half, int(abs(frequencies[v, 0])), int(abs(frequencies[v, 1])))
    return half


@kernel()
def shift_phases(shift, box, table):
    """Fill a table (2, 2h+1, 2), first index x or y, with exp(2 pi i k shift / box)."""
    half = table.shape[1] // 2
    for axis in range(2):
        turn = 2.0 * math.pi * shift[axis] / box
        for k in range(-half, half + 1):
            table[axis, k + half, 0] = math.cos(turn * k)
            table[axis, k + half, 1] = math.sin(turn * k)


@kernel("void(float64[:,::1], float32[:,::1], int64, complex64[:,::1])", changes=(3,))
def shift_factors(shifts, frequencies, box, factors):
    """Fill `factors` with exp(2 pi i k shift / box), from a table for each axis.

    shifts       (m, 2) float64      pixels
    frequencies  (v, 2) float32      kx, ky in cycles per box, whole numbers
    factors      (m, v) complex64    in place
    """
    half = widest_frequency(frequencies)
    table = np.empty((2, 2 * half + 1, 2))
    for m in range(shifts.shape[0]):
        shift_phases(shifts[m], box, table)
        for v in range(frequencies.shape[0]):
            kx, ky = int(frequencies[v, 0]) + half, int(frequencies[v, 1]) + half
            xr, xi, yr, yi = table[0, kx, 0], table[0, kx, 1], table[1, ky, 0], table[1, ky, 1]
            factors[m, v] = complex(xr * yr - xi * yi, xr * yi + xi * yr)


@kernel()
def shift_data(image, frequencies, table, start, stop, fields):
    """Move image data back by a shift: into rows 8-10 of `fields`; frequencies into 11-12."""
    half = table.shape[1] // 2
    for v in range(start, stop):
        kx, ky = int(frequencies[v, 0]) + half, int(frequencies[v, 1]) + half
        xr, xi, yr, yi = table[0, kx, 0], table[0, kx, 1], table[1, ky, 0], table[1, ky, 1]
        cr, ci = xr * yr - xi * yi, xr * yi + xi * yr
        fields[8, v - start] = image[v, 0] * cr - image[v, 1] * ci
        fields[9, v - start] = image[v, 0] * ci + image[v, 1] * cr
        fields[10, v - start] = image[v, 2]
        fields[11, v - start] = frequencies[v, 0]
        fields[12, v - start] = frequencies[v, 1]


@kernel()
def gradient_terms(point, data, frequency, turn):
    """Return what one component adds to cross, quadratic term, and their first derivatives.

    point      from `slices.sample_gradient`
    data       real and imaginary part of the image's data, moved back, and CTF^2 / noise
    turn       2 pi / box
    returns    cross, quadratic; derivative of cross by 3 rotations and 2 shifts; half that of the
               quadratic term by 3 rotations
    """
    pr, pi, xr, xi, yr, yi, zr, zi = point
    dr, di, e = data
    kx, ky = frequency
    r0, i0 = ky * zr, ky * zi
    r1, i1 = -kx * zr, -kx * zi
    r2, i2 = kx * yr - ky * xr, kx * yi - ky * xi
    odd = turn * (pr * di - pi * dr)
    return (
        pr * dr + pi * di,
        e * (pr * pr + pi * pi),
        r0 * dr + i0 * di,
        r1 * dr + i1 * di,
        r2 * dr + i2 * di,
        kx * odd,
        ky * odd,
        e * (r0 * pr + i0 * pi),
        e * (r1 * pr + i1 * pi),
        e * (r2 * pr + i2 * pi),
    )


@kernel()
def fields_of(f, v):
    """Return the sample and its gradient in column v of `fields`."""
    return f[0, v], f[1, v], f[2, v], f[3, v], f[4, v], f[5, v], f[6, v], f[7, v]


@kernel()
def add_gradients(f, count, turn, system):
    """Add the score's terms and their first derivatives: rows 5, 6 and 8 of `system`."""
    zero = np.float32(0.0)
    cross, quadratic, s0, s1, s2 = zero, zero, zero, zero, zero
    s3, s4, m0, m1, m2 = zero, zero, zero, zero, zero
    for v in range(count):
        data, frequency = (f[8, v], f[9, v], f[10, v]), (f[11, v], f[12, v])
        terms = gradient_terms(fields_of(f, v), data, frequency, turn)
        cross += terms[0]
        quadratic += terms[1]
        s0 += terms[2]
        s1 += terms[3]
        s2 += terms[4]
        s3 -= terms[5]
        s4 -= terms[6]
        m0 += terms[7]
        m1 += terms[8]
        m2 += terms[9]
    system[8, 0] += cross
    system[8, 1] += quadratic
    system[5, 0] += s0
    system[5, 1] += s1
    system[5, 2] += s2
    system[5, 3] += s3
    system[5, 4] += s4
    system[6, 0] += m0
    system[6, 1] += m1
    system[6, 2] += m2


@kernel()
def add_curvatures(f, count, turn, system):
    """Add the normal matrix's lower triangle: rotations about x, y, z, then shifts x, y."""
    zero = np.float32(0.0)
    a00, a10, a11, a20, a21, a22 = zero, zero, zero, zero, zero, zero
    a30, a31, a32, a33, a40, a41, a42, a43, a44 = (
        zero,
        zero,
        zero,
        zero,
        zero,
        zero,
        zero,
        zero,
        zero,
    )
    for v in range(count):
        pr, pi, e, kx, ky = f[0, v], f[1, v], f[10, v], f[11, v], f[12, v]
        r0, i0 = ky * f[6, v], ky * f[7, v]
        r1, i1 = -kx * f[6, v], -kx * f[7, v]
        r2, i2 = kx * f[4, v] - ky * f[2, v], kx * f[5, v] - ky * f[3, v]
        a00 += e * (r0 * r0 + i0 * i0)
        a10 += e * (r1 * r0 + i1 * i0)
        a11 += e * (r1 * r1 + i1 * i1)
        a20 += e * (r2 * r0 + i2 * i0)
        a21 += e * (r2 * r1 + i2 * i1)
        a22 += e * (r2 * r2 + i2 * i2)
        q0, q1, q2 = e * (r0 * pi - i0 * pr), e * (r1 * pi - i1 * pr), e * (r2 * pi - i2 * pr)
        tx, ty = turn * kx, turn * ky
        power = e * (pr * pr + pi * pi)
        a30 += tx * q0
        a31 += tx * q1
        a32 += tx * q2
        a40 += ty * q0
        a41 += ty * q1
        a42 += ty * q2
        a33 += tx * tx * power
        a43 += tx * ty * power
        a44 += ty * ty * power
    rows = (
        (a00, zero, zero, zero, zero),
        (a10, a11, zero, zero, zero),
        (a20, a21, a22, zero, zero),
        (a30, a31, a32, a33, zero),
        (a40, a41, a42, a43, a44),
    )
    for i in range(5):
        for j in range(i + 1):
            system[i, j] += rows[i][j]


@kernel()
def normal_equations(reference, frequencies, image, options, rotation, shift, scratch, system):
    """Fill `system` for one pose. Sums are float32 within a chunk, float64 across chunks."""
    table, fields = scratch
    turn = np.float32(2.0 * math.pi / options.box)
    shift_phases(shift, options.box, table)
    matrix = rotation.astype(np.float32) * np.float32(options.oversampling)
    system[:] = 0.0
    for start in range(0, frequencies.shape[0], CHUNK):
        stop = min(start + CHUNK, frequencies.shape[0])
        sample_with_gradient(reference, matrix, frequencies, start, stop, fields)
        shift_data(image, frequencies, table, start, stop, fields)
        add_gradients(fields, stop - start, turn, system)
        add_curvatures(fields, stop - start, turn, system)


@kernel()
def likelihood(cross, quadratic, free_scale):
    """Return the score relative to an empty reference; with a free scale, at the best."""
    if free_scale:
        if cross <= 0.0 or quadratic <= 0.0:
            return 0.0
        return 0.5 * cross * cross / quadratic
    return cross - 0.5 * quadratic


@kernel()
def factorise(system, scale, damping, low):
    """Fill `low` with the Cholesky factor of the damped normal matrix; False if there is none."""
    for i in range(5):
        for j in range(i + 1):
            total = system[i, j] * scale * scale
            if i == j:
                total *= 1.0 + damping
            for k in range(j):
                total -= low[i, k] * low[j, k]
            if i == j:
                if total <= 0.0:
                    return False
                low[i, i] = math.sqrt(total)
            else:
                low[i, j] = total / low[j, j]
    return True


@kernel()
def solve_step(system, scale, damping, low):
    """Put the damped step into row 7; False if the normal matrix is not positive definite.

    low  (5, 5) float64: room for the matrix's factor
    """
    if not factorise(system, scale, damping, low):
        return False
    step = system[7]
    for i in range(5):
        total = scale * system[5, i] - scale * scale * system[6, i]
        for k in range(i):
            total -= low[i, k] * step[k]
        step[i] = total / low[i, i]
    for i in range(4, -1, -1):
        total = step[i]
        for k in range(i + 1, 5):
            total -= low[k, i] * step[k]
        step[i] = total / low[i, i]
    return True


@kernel()
def turned(rotation, step, out):
    """Turn a rotation: out = rotation @ exp([step]x); step in radians about the image's axes."""
    a, b, c = step[0], step[1], step[2]
    angle = math.sqrt(a * a + b * b + c * c)
    small = angle < TINY_ANGLE
    s = 1.0 if small else math.sin(angle) / angle
    t = 0.5 if small else (1.0 - math.cos(angle)) / (angle * angle)
    for i in range(3):
        x, y, z = rotation[i, 0], rotation[i, 1], rotation[i, 2]
        # row vector times (1 + s K + t K^2)
        ux, uy, uz = y * c - z * b, z * a - x * c, x * b - y * a
        wx, wy, wz = uy * c - uz * b, uz * a - ux * c, ux * b - uy * a
        out[i, 0] = x + s * ux + t * wx
        out[i, 1] = y + s * uy + t * wy
        out[i, 2] = z + s * uz + t * wz


@kernel()
def best_scale(system, free_scale):
    """Return the factor of the reference that fits the image best; tiny where it does not fit.

    With a tiny factor the step follows the derivative of cross, and is as long as a step may be.
    """
    cross, quadratic = system[8, 0], system[8, 1]
    if not free_scale or quadratic <= 0.0:
        return 1.0
    return max(cross / quadratic, TINY)


@kernel()
def limited(step, longest_turn, longest_move):
    """Shorten a step, in place, until it neither turns nor moves too far."""
    turn = math.sqrt(step[0] * step[0] + step[1] * step[1] + step[2] * step[2])
    move = math.sqrt(step[3] * step[3] + step[4] * step[4])
    factor = min(1.0, longest_turn / max(turn, TINY), longest_move / max(move, TINY))
    for i in range(5):
        step[i] *= factor


@kernel()
def copy_symmetric(lower, matrix):
    """Fill a matrix (5, 5) from a lower triangle."""
    for i in range(5):
        for j in range(i + 1):
            matrix[i, j] = matrix[j, i] = lower[i, j]


@kernel(
    void(
        float32[:, :, :, ::1],
        float32[:, ::1],
        float32[:, ::1],
        OPTIONS,
        float64[:, :, ::1],
        float64[:, ::1],
        float64[:, ::1],
        float64[:, :, ::1],
    ),
    changes=(4, 5, 6, 7),
)
def climb(reference, frequencies, image, options, rotations, shifts, scores, curvatures):
    """Improve each starting pose of one image by damped Gauss-Newton steps.

    reference    (d, d, h, 2) float32
    frequencies  (v, 2) float32      kx, ky in pixels, whole numbers
    image        (v, 3) float32      see the module's head
    options      ClimbOptions
    rotations    (k, 3, 3) float64   in place
    shifts       (k, 2) float64      in place, pixels: where the particle lies in the image
    scores       (k, 3) float64      in place: score, cross and quadratic term at the final pose
    curvatures   (k, 5, 5) float64   in place: normal matrix at the final pose
    """
    free = options.free_scale
    half = widest_frequency(frequencies)
    scratch = np.empty((2, 2 * half + 1, 2), np.float32), np.empty((13, CHUNK), np.float32)
    system, trial, low = np.empty((9, 5)), np.empty((9, 5)), np.empty((5, 5))
    rotation, shift = np.empty((3, 3)), np.empty(2)
    for k in range(rotations.shape[0]):
        normal_equations(
            reference, frequencies, image, options, rotations[k], shifts[k], scratch, system
        )
        score = likelihood(system[8, 0], system[8, 1], free)
        damping = FIRST_DAMPING
        x, y = shifts[k]
        widest = max(options.largest_shift * options.largest_shift, x * x + y * y)
        for _ in range(options.steps):
            if not solve_step(system, best_scale(system, free), damping, low):
                break
            step = system[7]
            limited(step, options.longest_turn, options.longest_move)
            turned(rotations[k], step, rotation)
            shift[0], shift[1] = shifts[k, 0] + step[3], shifts[k, 1] + step[4]
            better = False
            if shift[0] * shift[0] + shift[1] * shift[1] <= widest:
                normal_equations(
                    reference, frequencies, image, options, rotation, shift, scratch, trial
                )
                better = likelihood(trial[8, 0], trial[8, 1], free) > score
            if better:
                gain = likelihood(trial[8, 0], trial[8, 1], free) - score
                score += gain
                rotations[k], shifts[k] = rotation, shift
                system, trial = trial, system
                damping *= 0.2
                if gain < SMALLEST_GAIN:
                    break
            else:
                damping *= 10.0
                if damping > LARGEST_DAMPING:
                    break
        scores[k, 0], scores[k, 1], scores[k, 2] = score, system[8, 0], system[8, 1]
        copy_symmetric(system, curvatures[k])


@kernel(
    void(
        float32[:, :, :, ::1],
        float32[:, ::1],
        float32[:, ::1],
        OPTIONS,
        float64[:, :, ::1],
        float64[:, ::1],
        float64[::1],
    ),
    changes=(6,),
)
def score_poses(reference, frequencies, image, options, rotations, shifts, scores):
    """Fill `scores` (k,) with the score of each pose; all else is as in `climb`."""
    flat = reference.reshape(-1)
    side, height = reference.shape[0], reference.shape[2]
    half = widest_frequency(frequencies)
    table = np.empty((2, 2 * half + 1, 2), np.float32)
    for k in range(rotations.shape[0]):
        shift_phases(shifts[k], options.box, table)
        columns = columns_of(rotations[k].astype(np.float32) * np.float32(options.oversampling))
        all_cross, all_quadratic = 0.0, 0.0
        for start in range(0, frequencies.shape[0], CHUNK):
            cross, quadratic = np.float32(0.0), np.float32(0.0)
            for v in range(start, min(start + CHUNK, frequencies.shape[0])):
                frequency = frequencies[v, 0], frequencies[v, 1]
                pr, pi = sample(flat, side, height, columns, frequency)
                kx, ky = int(frequencies[v, 0]) + half, int(frequencies[v, 1]) + half
                xr, xi, yr, yi = table[0, kx, 0], table[0, kx, 1], table[1, ky, 0], table[1, ky, 1]
                cr, ci = xr * yr - xi * yi, xr * yi + xi * yr
                dr, di = image[v, 0] * cr - image[v, 1] * ci, image[v, 0] * ci + image[v, 1] * cr
                cross += pr * dr + pi * di
                quadratic += image[v, 2] * (pr * pr + pi * pi)
            all_cross += cross
            all_quadratic += quadratic
        scores[k] = likelihood(all_cross, all_quadratic, options.free_scale)
