"""The best of many scores: over shifts, and over orientations that are not close to each other."""

from __future__ import annotations

import numpy as np

from mpipar.kernels.jit import kernel


@kernel("void(float32[:,::1], float32[:,::1], float32[:,:,::1], int16[:,:,::1])", changes=(2, 3))
def best_over_shifts(real, imaginary, best, which):
    """Find the largest product of each (orientation, image) over the shifts of the image.

    The products of an orientation are those of the real and of the imaginary parts, added up; the
    orientation half a turn in the image plane away has the conjugate slice, so their difference.

    real, imaginary  (m, b s) float32   columns ordered image by image, shifts side by side
    best             (2, m, b) float32  in place: the largest of the s products; of the orientation,
                                        and of the half-turned one
    which            (2, m, b) int16    in place: its shift; the first of equals
    """
    images = best.shape[2]
    shifts = real.shape[1] // images
    for m in range(real.shape[0]):
        for b in range(images):
            first = b * shifts
            own = real[m, first] + imaginary[m, first]
            turned = real[m, first] - imaginary[m, first]
            own_place, turned_place = 0, 0
            for s in range(1, shifts):
                one, two = real[m, first + s], imaginary[m, first + s]
                if one + two > own:
                    own, own_place = one + two, s
                if one - two > turned:
                    turned, turned_place = one - two, s
            best[0, m, b], best[1, m, b] = own, turned
            which[0, m, b], which[1, m, b] = own_place, turned_place


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
