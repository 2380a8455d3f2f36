"""The grid search on a GPU: images at each shift, the best over shifts and over orientations."""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32, int32

from mpipar.kernels.device.device_code import device_kernel

PICKERS = 256
"""Threads that look for the best orientations of one image: a power of two."""
MOST_CANDIDATES = 32
SMALLEST_QUADRATIC = 1e-37
NO_TURN = (np.float32(0.0),) * 9


@cuda.jit(device=True)
def moved_back(real, imaginary, turns):
    """Return a component times exp(2 pi i turns)."""
    # less than half a turn is left, for which float32 is accurate
    angle = np.float32(2.0 * math.pi * (turns - math.floor(turns + 0.5)))
    cr, ci = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return real * cr - imaginary * ci, real * ci + imaginary * cr


@cuda.jit(device=True)
def moved_component(data, centres, grid, frequencies, box, place):
    """Return one component of an image's data at one shift: row (image, shift), column, and value.

    data         (b, w, 3) float32   see `kernels.poses`; the first v components are used
    centres      (b, 2) float64      pixels, added to the shifts of `grid` (s, 2)
    frequencies  (v, 2) float32      kx, ky in cycles per box
    place        of all rows and columns, row by row
    """
    count, shifts = frequencies.shape[0], grid.shape[0]
    row = place // count
    v = place - row * count
    b = row // shifts
    s = row - b * shifts
    along = (centres[b, 0] + grid[s, 0]) * frequencies[v, 0]
    along += (centres[b, 1] + grid[s, 1]) * frequencies[v, 1]
    real, imaginary = moved_back(data[b, v, 0], data[b, v, 1], along / box)
    return row, v, real, imaginary


@device_kernel
def shift_images(data, centres, grid, frequencies, box, rows):
    """Move each image's data back by each shift of a grid; one thread for each component of a row.

    data, centres, grid, frequencies, box   see `moved_component`
    rows         (b, s, k, 2) float32, k >= v: in place
    """
    place = cuda.grid(1)
    shifts = grid.shape[0]
    if place < data.shape[0] * shifts * frequencies.shape[0]:
        row, v, real, imaginary = moved_component(data, centres, grid, frequencies, box, place)
        b = row // shifts
        rows[b, row - b * shifts, v, 0] = real
        rows[b, row - b * shifts, v, 1] = imaginary


@device_kernel
def best_over_shifts(products, quadratic, free_scale, score, which):
    """Find each orientation's best shift and its score; one thread for each image and orientation.

    products    (b, s, o) float32   cross terms
    quadratic   (b, o) float32
    free_scale  whether the score is that at the best grey scale
    score       (b, o) float32      in place: the log-likelihood
    which       (b, o) int16        in place: the shift; the first of equals
    """
    place = cuda.grid(1)
    orientations = score.shape[1]
    if place < score.shape[0] * orientations:
        b = place // orientations
        o = place - b * orientations
        value, best = products[b, 0, o], 0
        for s in range(1, products.shape[1]):
            other = products[b, s, o]
            if other > value:
                value, best = other, s
        which[b, o] = best
        if free_scale:
            root = math.sqrt(max(quadratic[b, o], np.float32(SMALLEST_QUADRATIC)))
            value = max(value, np.float32(0.0)) / root
            score[b, o] = np.float32(0.5) * value * value
        else:
            score[b, o] = value - np.float32(0.5) * quadratic[b, o]


@cuda.jit(device=True)
def trace_with(rotations, o, turn):
    """Return the trace of the product of one rotation, transposed, and another, as nine numbers."""
    return (
        rotations[o, 0, 0] * turn[0]
        + rotations[o, 0, 1] * turn[1]
        + rotations[o, 0, 2] * turn[2]
        + rotations[o, 1, 0] * turn[3]
        + rotations[o, 1, 1] * turn[4]
        + rotations[o, 1, 2] * turn[5]
        + rotations[o, 2, 0] * turn[6]
        + rotations[o, 2, 1] * turn[7]
        + rotations[o, 2, 2] * turn[8]
    )


@device_kernel
def pick_distinct(score, rotations, largest_trace, picks):
    """Pick the best orientations of each image, not close to each other; one block for each image.

    score          (b, o) float32     in place: -infinity for those that are close to a picked one
    rotations      (o, 3, 3) float32
    largest_trace  trace of R1^T R2 above which two count as the same
    picks          (b, k) int32       in place: rows of `rotations`, best first, of equals the
                                      first; -1 where there are no more
    """
    values = cuda.shared.array(PICKERS, float32)
    places = cuda.shared.array(PICKERS, int32)
    b, t = cuda.blockIdx.x, cuda.threadIdx.x
    nothing = np.float32(-math.inf)
    turn = NO_TURN
    for n in range(picks.shape[1]):
        value, place = nothing, -1
        for o in range(t, rotations.shape[0], PICKERS):
            own = score[b, o]
            if own > nothing and n > 0 and trace_with(rotations, o, turn) > largest_trace:
                score[b, o] = nothing
            elif own > value:
                value, place = own, o
        values[t] = value
        places[t] = place
        cuda.syncthreads()
        half = PICKERS // 2
        while half > 0:
            if t < half:
                other = values[t + half]
                if other > values[t] or (other == values[t] and 0 <= places[t + half] < places[t]):
                    values[t] = other
                    places[t] = places[t + half]
            cuda.syncthreads()
            half //= 2
        best = places[0]
        cuda.syncthreads()
        if t == 0:
            picks[b, n] = best
        if best >= 0:
            r = rotations[best]
            turn = (
                r[0, 0], r[0, 1], r[0, 2], r[1, 0], r[1, 1], r[1, 2], r[2, 0], r[2, 1], r[2, 2],
            )  # fmt: skip


@cuda.jit(device=True)
def is_near(rotations, shifts, b, pair, limits):
    """Return whether two of an image's poses are closer than the limits: see `keep_best`."""
    i, j = pair
    turned, moved = 0.0, 0.0
    for row in range(3):
        for column in range(3):
            difference = rotations[b, i, row, column] - rotations[b, j, row, column]
            turned += difference * difference
    for axis in range(2):
        difference = shifts[b, i, axis] - shifts[b, j, axis]
        moved += difference * difference
    return turned < limits[0] and moved < limits[1]


@device_kernel
def keep_best(rotations, shifts, scores, limits, picks):
    """Pick the best of each image's climbed poses, leaving out those near a better one.

    One thread for each image. rotations (b, k, 3, 3) float64, shifts (b, k, 2) float64

    scores   (b, k) float64    -infinity where there is no pose
    limits   squared distances of matrices and of shifts below which poses are near; how far behind
             the best score one may be
    picks    (b, n) int32      in place: best first, of equals the first; -1 where there are no more
    """
    order = cuda.local.array(MOST_CANDIDATES, int32)
    b = cuda.grid(1)
    if b >= scores.shape[0]:
        return
    count = 0
    for k in range(scores.shape[1]):
        if scores[b, k] > -math.inf:
            place = count
            while place > 0 and scores[b, k] > scores[b, order[place - 1]]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = k
            count += 1
    kept = 0
    for n in range(count):
        behind = scores[b, order[0]] - scores[b, order[n]]
        alone = kept < picks.shape[1] and (n == 0 or behind < limits[2])
        for m in range(n):
            if alone and is_near(rotations, shifts, b, (order[n], order[m]), limits):
                alone = False
        if alone:
            picks[b, kept] = order[n]
            kept += 1
    for n in range(kept, picks.shape[1]):
        picks[b, n] = -1


@device_kernel
def best_of_starts(scores, picks):
    """Pick the best of each image's final climbs; one thread for each image.

    scores   (b, n) float64    -infinity where there was no start
    picks    (b,) int32        in place: the first of equals
    """
    b = cuda.grid(1)
    if b < scores.shape[0]:
        best = 0
        for n in range(1, scores.shape[1]):
            if scores[b, n] > scores[b, best]:
                best = n
        picks[b] = best


__all__ = [
    "MOST_CANDIDATES",
    "best_of_starts",
    "best_over_shifts",
    "keep_best",
    "pick_distinct",
    "shift_images",
]
