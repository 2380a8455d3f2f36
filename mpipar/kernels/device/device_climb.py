"""The climb from a rough pose to the best on a GPU: the twin of `kernels.poses.climb`.

One block of threads climbs from one pose, all its steps. Each thread samples some components and
sums their terms in float32; the threads' sums are added in float64 in a fixed order, and thread 0
solves for the step.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32, float64, int32

from mpipar.kernels import poses
from mpipar.kernels.device.device_code import device_kernel, on_device
from mpipar.kernels.device.device_slices import sample_gradient
from mpipar.kernels.poses import FIRST_DAMPING, LARGEST_DAMPING, SMALLEST_GAIN

GRADIENTS, CURVATURES = 10, 15
SUMS = GRADIENTS + CURVATURES
MOST_THREADS = 256
ROOM_FOR_PARTS = MOST_THREADS // SUMS * SUMS
ROTATIONS = 3  # of the five parameters
STOP, TRY, TOO_FAR = 0, 1, 2
NO_GRADIENTS, NO_CURVATURES = (np.float32(0.0),) * GRADIENTS, (np.float32(0.0),) * CURVATURES

gradient_terms = on_device(poses.gradient_terms)
likelihood = on_device(poses.likelihood)
solve_step = on_device(poses.solve_step)
turned = on_device(poses.turned)
best_scale = on_device(poses.best_scale)
limited = on_device(poses.limited)
copy_symmetric = on_device(poses.copy_symmetric)


def shared_bytes(radius: int, threads: int) -> int:
    """Return the dynamic shared memory that a block needs: phases, and each thread's sums."""
    return 4 * (4 * (2 * radius + 1) + SUMS * (threads + 1))


@cuda.jit(device=True)
def fill_phases(room, radius, shift, box):
    """Fill the head of `room` with exp(2 pi i k shift / box): for x, then y, k = -radius ... ."""
    width = 2 * radius + 1
    for n in range(cuda.threadIdx.x, 2 * width, cuda.blockDim.x):
        axis = n // width
        angle = 2.0 * math.pi * shift[axis] / box * (n - axis * width - radius)
        room[2 * n] = math.cos(angle)
        room[2 * n + 1] = math.sin(angle)


@cuda.jit(device=True)
def data_at(data, image, v, frequency, room, radius):
    """Return the data of one component, moved back by the shift whose phases are in `room`."""
    x = 2 * (int(frequency[0]) + radius)
    y = 2 * (int(frequency[1]) + 3 * radius + 1)
    cr = room[x] * room[y] - room[x + 1] * room[y + 1]
    ci = room[x] * room[y + 1] + room[x + 1] * room[y]
    real, imaginary = data[image, v, 0], data[image, v, 1]
    return real * cr - imaginary * ci, real * ci + imaginary * cr, data[image, v, 2]


@cuda.jit(device=True)
def curvature_terms(point, e, frequency, turn):
    """Return what one component adds to the normal matrix's lower triangle, row by row.

    The terms of `poses.add_curvatures`.
    """
    pr, pi, xr, xi, yr, yi, zr, zi = point
    kx, ky = frequency
    r0, i0 = ky * zr, ky * zi
    r1, i1 = -kx * zr, -kx * zi
    r2, i2 = kx * yr - ky * xr, kx * yi - ky * xi
    q0, q1, q2 = e * (r0 * pi - i0 * pr), e * (r1 * pi - i1 * pr), e * (r2 * pi - i2 * pr)
    tx, ty = turn * kx, turn * ky
    power = e * (pr * pr + pi * pi)
    return (
        e * (r0 * r0 + i0 * i0),
        e * (r1 * r0 + i1 * i0),
        e * (r1 * r1 + i1 * i1),
        e * (r2 * r0 + i2 * i0),
        e * (r2 * r1 + i2 * i1),
        e * (r2 * r2 + i2 * i2),
        tx * q0,
        tx * q1,
        tx * q2,
        tx * tx * power,
        ty * q0,
        ty * q1,
        ty * q2,
        tx * ty * power,
        ty * ty * power,
    )


@cuda.jit(device=True)
def plus_gradients(a, b):
    """Add two lists of `poses.gradient_terms`; the terms of the shifts count negative there."""
    return (
        a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4],
        a[5] - b[5], a[6] - b[6], a[7] + b[7], a[8] + b[8], a[9] + b[9],
    )  # fmt: skip


@cuda.jit(device=True)
def plus_curvatures(a, b):
    """Add two lists of `curvature_terms`."""
    return (
        a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4],
        a[5] + b[5], a[6] + b[6], a[7] + b[7], a[8] + b[8], a[9] + b[9],
        a[10] + b[10], a[11] + b[11], a[12] + b[12], a[13] + b[13], a[14] + b[14],
    )  # fmt: skip


@cuda.jit(device=True)
def keep_sums(room, gradients, curvatures):
    """Put this thread's sums into its column of `room`, whose rows have one place more."""
    stride = cuda.blockDim.x + 1
    at = cuda.threadIdx.x
    for value in gradients:
        room[at] = value
        at += stride
    for value in curvatures:
        room[at] = value
        at += stride


@cuda.jit(device=True)
def add_threads(room, parts, sums):
    """Add the threads' sums of `room`, in a fixed order: into `sums` (25,) float64."""
    t, threads = cuda.threadIdx.x, cuda.blockDim.x
    groups = threads // SUMS
    cuda.syncthreads()
    if t < groups * SUMS:
        group = t // SUMS
        row = (t - group * SUMS) * (threads + 1)
        total = 0.0
        for n in range(group, threads, groups):
            total += room[row + n]
        parts[t] = total
    cuda.syncthreads()
    if t < SUMS:
        total = 0.0
        for group in range(groups):
            total += parts[group * SUMS + t]
        sums[t] = total
    cuda.syncthreads()


@cuda.jit(device=True)
def zoomed(rotation, zoom):
    """Return the nine entries of a rotation row by row, float32, times the oversampling."""
    return (
        np.float32(rotation[0, 0]) * zoom,
        np.float32(rotation[0, 1]) * zoom,
        np.float32(rotation[0, 2]) * zoom,
        np.float32(rotation[1, 0]) * zoom,
        np.float32(rotation[1, 1]) * zoom,
        np.float32(rotation[1, 2]) * zoom,
        np.float32(rotation[2, 0]) * zoom,
        np.float32(rotation[2, 1]) * zoom,
        np.float32(rotation[2, 2]) * zoom,
    )


@cuda.jit(device=True)
def evaluate(volume, frequencies, image, options, radius, pose, room, sums):
    """Fill `sums` with the terms of one pose, all threads together.

    volume  the reference as one flat array, d, h
    image   data (b, v, 3) and the row of the image
    pose    rotation (3, 3) and shift (2,) float64
    """
    flat, side, height = volume
    data, row = image
    rotation, shift = pose
    table, columns, parts = room
    zoom, turn = np.float32(options.oversampling), np.float32(2.0 * math.pi / options.box)
    fill_phases(table, radius, shift, options.box)
    cuda.syncthreads()
    matrix = zoomed(rotation, zoom)
    gradients, curvatures = NO_GRADIENTS, NO_CURVATURES
    for v in range(cuda.threadIdx.x, frequencies.shape[0], cuda.blockDim.x):
        frequency = frequencies[v, 0], frequencies[v, 1]
        point = sample_gradient(flat, side, height, matrix, frequency)
        values = data_at(data, row, v, frequency, table, radius)
        gradients = plus_gradients(gradients, gradient_terms(point, values, frequency, turn))
        curvatures = plus_curvatures(curvatures, curvature_terms(point, values[2], frequency, turn))
    keep_sums(columns, gradients, curvatures)
    add_threads(columns, parts, sums)


@cuda.jit(device=True)
def as_system(sums, system):
    """Sort the sums into the rows of `poses.normal_equations`."""
    system[8, 0], system[8, 1] = sums[0], sums[1]
    for i in range(5):
        system[5, i] = sums[2 + i]
        system[6, i] = sums[7 + i] if i < ROTATIONS else 0.0
    n = GRADIENTS
    for i in range(5):
        for j in range(i + 1):
            system[i, j] = sums[n]
            n += 1


@cuda.jit(device=True)
def begin(sums, system, options, state, current):
    """Fill system and state (see `propose`) for the starting pose; thread 0 only."""
    as_system(sums, system)
    state[0] = likelihood(system[8, 0], system[8, 1], options.free_scale)
    state[1] = FIRST_DAMPING
    x, y = current[1][0], current[1][1]
    state[2] = max(options.largest_shift * options.largest_shift, x * x + y * y)


@cuda.jit(device=True)
def propose(system, low, options, state, current, trial):
    """Compute the next pose to try; thread 0 only. Return STOP, TRY, or TOO_FAR.

    state    score, damping, square of the longest shift allowed
    current  rotation and shift; trial likewise, in place
    """
    if not solve_step(system, best_scale(system, options.free_scale), state[1], low):
        return STOP
    step = system[7]
    limited(step, options.longest_turn, options.longest_move)
    turned(current[0], step, trial[0])
    x, y = current[1][0] + step[3], current[1][1] + step[4]
    trial[1][0] = x
    trial[1][1] = y
    return TRY if x * x + y * y <= state[2] else TOO_FAR


@cuda.jit(device=True)
def decide(action, tried, system, options, state, current, trial):
    """Take the pose that was tried if it is better; thread 0 only. Return STOP or TRY."""
    free = options.free_scale
    if action == TRY and likelihood(tried[8, 0], tried[8, 1], free) > state[0]:
        gain = likelihood(tried[8, 0], tried[8, 1], free) - state[0]
        state[0] += gain
        state[1] *= 0.2
        for i in range(9):
            for j in range(5):
                system[i, j] = tried[i, j]
        for i in range(3):
            for j in range(3):
                current[0][i, j] = trial[0][i, j]
        current[1][0] = trial[1][0]
        current[1][1] = trial[1][1]
        return STOP if gain < SMALLEST_GAIN else TRY
    state[1] *= 10.0
    return STOP if state[1] > LARGEST_DAMPING else TRY


@device_kernel
def climb(volume, frequencies, data, owners, options, radius, found, results, curvatures):
    """Improve each starting pose by damped Gauss-Newton steps; one block for each.

    volume       the reference (d, d, h, 2) float32 as one flat array, d, h
    frequencies  (v, 2) float32      kx, ky in pixels, whole numbers, at most `radius`
    data         (b, w, 3) float32   of the images, w >= v; see `kernels.poses`
    owners       (c,) int32          the row of `data` that each start is for; -1: no start
    options      ClimbOptions
    found        rotations (c, 3, 3) and shifts (c, 2) float64, in place
    results      (c,) float64        in place: log-likelihood; -infinity where there is no start
    curvatures   (c, 5, 5) float64   in place: normal matrix at the final pose
    """
    start, t = cuda.blockIdx.x, cuda.threadIdx.x
    room = cuda.shared.array(0, float32)
    parts = cuda.shared.array(ROOM_FOR_PARTS, float64)
    sums = cuda.shared.array(SUMS, float64)
    system = cuda.shared.array((9, 5), float64)
    tried = cuda.shared.array((9, 5), float64)
    low = cuda.shared.array((5, 5), float64)
    rotation = cuda.shared.array((3, 3), float64)
    shift = cuda.shared.array(2, float64)
    state = cuda.shared.array(3, float64)
    action = cuda.shared.array(2, int32)
    if owners[start] < 0:
        results[start] = -math.inf
        return
    current, trial = (found[0][start], found[1][start]), (rotation, shift)
    scratch = room, room[4 * (2 * radius + 1) :], parts
    image = data, owners[start]
    evaluate(volume, frequencies, image, options, radius, current, scratch, sums)
    if t == 0:
        begin(sums, system, options, state, current)
    for _ in range(options.steps):
        if t == 0:
            action[0] = propose(system, low, options, state, current, trial)
        cuda.syncthreads()
        if action[0] == STOP:
            break
        if action[0] == TRY:
            evaluate(volume, frequencies, image, options, radius, trial, scratch, sums)
        if t == 0:
            as_system(sums, tried)
            action[1] = decide(action[0], tried, system, options, state, current, trial)
        cuda.syncthreads()
        if action[1] == STOP:
            break
    if t == 0:
        results[start] = state[0]
        copy_symmetric(system, curvatures[start])
