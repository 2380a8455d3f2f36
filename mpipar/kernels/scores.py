"""The best of many scores: over shifts, and over orientations that are not close to each other."""

from __future__ import annotations

import numpy as np

from mpipar.kernels.jit import kernel


@kernel("void(float32[:,::1], float32[:,::1], int16[:,::1])", changes=(1, 2))
def best_over_shifts(products, best, which):
    """Find the largest product of each (orientation, image) over the shifts of the image.

    products  (m, b s) float32   columns ordered image by image, shifts side by side
    best      (m, b) float32     in place: the largest of the s products
    which     (m, b) int16       in place: its shift; the first of equals
    """
    images = best.shape[1]
    shifts = products.shape[1] // images
    for m in range(products.shape[0]):
        row = products[m]
        for b in range(images):
            first = b * shifts
            value, place = row[first], 0
            for s in range(1, shifts):
                if row[first + s] > value:
                    value, place = row[first + s], s
            best[m, b] = value
            which[m, b] = place


@kernel("int64(int64[::1], float32[:,:,::1], float64, int64[::1])", changes=(3,))
def pick_distinct(order, rotations, largest_trace, picks):
    """Keep, from best to worst, each candidate that is turned enough from all kept before.

    order          (t,) int64         rows of `rotations`, best first
    rotations      (o, 3, 3) float32
    largest_trace  float              trace of R1^T R2 above which two count as the same: 1 + 2
                                      cos(angle)
    picks          (k,) int64         in place: the kept rows
    returns        how many were kept
    """
    kept = 0
    for t in range(order.size):
        candidate = rotations[order[t]]
        distinct = True
        for p in range(kept):
            other = rotations[picks[p]]
            trace = np.float32(0.0)
            for i in range(3):
                for j in range(3):
                    trace += candidate[i, j] * other[i, j]
            if trace > largest_trace:
                distinct = False
                break
        if distinct:
            picks[kept] = order[t]
            kept += 1
            if kept == picks.size:
                break
    return kept
