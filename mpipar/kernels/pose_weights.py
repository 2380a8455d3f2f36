"""Log-likelihoods of all poses of a grid, and the weights that follow from them.

Rows are orientations, each with the one that is half a turn in the image plane away: the slice of
the second is the complex conjugate of the first's. Columns are (image, shift), shifts side by side.
"""

from __future__ import annotations

import numpy as np

from mpipar.kernels.jit import kernel

LOWEST = np.float32(-20.0)
"""Log-likelihoods farther below the best of their image count as this: a million such poses weigh
0.002 of the best one."""


@kernel(
    "void(float32[:,::1], float32[:,::1], float32[:,::1], float32[::1], boolean, float32[::1])",
    changes=(0, 1, 5),
)
def log_likelihoods(first, second, quadratic, prior, free_scale, largest):
    """Turn the two halves of the cross products into log-likelihoods of both orientations of a row.

    first       (m, b s)  in place: sum of products of real parts; becomes the log-likelihood of the
                          orientation itself
    second      (m, b s)  in place: sum of products of imaginary parts; becomes that of the
                          half-turned one
    quadratic   (m, b)    power of the slice, weighted by CTF^2 / noise
    prior       (b s,)    logarithm of the prior probability of each image's shifts
    free_scale  bool      use the best grey scale of each pose
    largest     (b,)      in place: the largest log-likelihood of each image so far
    """
    images = quadratic.shape[1]
    shifts = first.shape[1] // images
    two, zero = np.float32(2.0), np.float32(0.0)
    for m in range(first.shape[0]):
        for b in range(images):
            power = quadratic[m, b]
            inverse = np.float32(1.0) / max(power, np.float32(1e-37))
            high = largest[b]
            for s in range(b * shifts, (b + 1) * shifts):
                cross, turned = first[m, s] + second[m, s], first[m, s] - second[m, s]
                if free_scale:
                    cross, turned = max(cross, zero), max(turned, zero)
                    value, other = cross * cross * inverse, turned * turned * inverse
                else:
                    value, other = two * cross - power, two * turned - power
                value += prior[s]
                other += prior[s]
                first[m, s], second[m, s] = value, other
                high = max(high, value, other)
            largest[b] = high


@kernel()
def power_of_e(x):
    """Return exp(x), for x from LOWEST to 0, within 0.2 %; within 1e-5 above -5."""
    one = np.float32(1.0)
    y = x * np.float32(1.0 / 64.0)
    sixth = np.float32(1.0 / 6.0) + y * np.float32(1.0 / 24.0)
    p = one + y * (one + y * (np.float32(0.5) + y * sixth))
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    return p * p


@kernel()
def _exponentiate_row(row, largest):
    """Exponentiate a whole row at once: the shifts of one image are too few for wide registers."""
    for i in range(row.size):
        row[i] = power_of_e(max(row[i] - largest[i], LOWEST))


@kernel()
def _sums_of_row(row, sums):
    shifts = row.size // sums.size
    for b in range(sums.size):
        total = np.float32(0.0)
        for s in range(b * shifts, (b + 1) * shifts):
            total += row[s]
        sums[b] = total


@kernel(
    "void(float32[:,::1], float32[:,::1], float32[::1], float32[:,::1], float32[:,::1], "
    "float64[::1])",
    changes=(0, 1, 3, 4, 5),
)
def exponentiate(first, second, largest, first_sums, second_sums, totals):
    """Turn log-likelihoods into weights relative to the best pose of each image.

    first, second              (m, b s)  in place: the weight, 1 for the best pose
    largest                    (b s,)    the largest log-likelihood of each column's image
    first_sums, second_sums    (m, b)    in place: the weights summed over shifts
    totals                     (b,)      in place: the weights of the image, added up
    """
    for m in range(first.shape[0]):
        _exponentiate_row(first[m], largest)
        _exponentiate_row(second[m], largest)
        _sums_of_row(first[m], first_sums[m])
        _sums_of_row(second[m], second_sums[m])
        for b in range(totals.size):
            totals[b] += first_sums[m, b] + second_sums[m, b]
