"""Log-likelihoods of all poses of a grid, and the weights that follow from them.

Rows are orientations, each with the one that is half a turn in the image plane away: the slice of
the second is the complex conjugate of the first's. Columns are (image, shift), shifts side by side.
"""

from __future__ import annotations

import numpy as np

from mpipar.kernels.jit import kernel

LOWEST = np.float32(-20.0)
"""Orientations whose log-likelihoods are all farther below the best of each image are left out; in
the rest, those farther below count as this. A million such poses weigh 0.002 of the best one."""


@kernel(
    "void(float32[:,::1], float32[:,::1], float32[:,::1], float32[::1], boolean, float32[:,::1])",
    changes=(0, 1, 5),
)
def log_likelihoods(first, second, quadratic, prior, free_scale, highest):
    """Turn the two halves of the cross products into log-likelihoods of both orientations of a row.

    first       (m, b s)  in place: sum of products of real parts; becomes the log-likelihood of the
                          orientation itself
    second      (m, b s)  in place: sum of products of imaginary parts; becomes that of the
                          half-turned one
    quadratic   (m, b)    power of the slice, weighted by CTF^2 / noise
    prior       (b s,)    logarithm of the prior probability of each image's shifts
    free_scale  bool      use the best grey scale of each pose
    highest     (m, b)    in place: the largest log-likelihood of each row and image
    """
    images = quadratic.shape[1]
    shifts = first.shape[1] // images
    two, zero = np.float32(2.0), np.float32(0.0)
    for m in range(first.shape[0]):
        for b in range(images):
            power = quadratic[m, b]
            inverse = np.float32(1.0) / max(power, np.float32(1e-37))
            high = np.float32(-np.inf)
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
            highest[m, b] = high


@kernel()
def _is_likely(highest, largest):
    """Whether a row of orientations has weight for any image."""
    likely = False
    for b in range(largest.size):
        likely |= highest[b] >= largest[b] + LOWEST
    return likely


@kernel(
    "int64(float32[:,::1], float32[:,::1], float32[:,::1], float32[::1], int64, int64[::1], "
    "float32[:,::1], float32[:,::1], int64)",
    changes=(3, 5, 6, 7),
)
def keep_likely(first, second, highest, largest, start, rows, kept_first, kept_second, count):
    """Copy the rows that have weight, as far as is known, behind the `count` rows kept so far.

    first, second, highest    some rows, as from `log_likelihoods`
    largest                   (b,)      in place: the largest log-likelihood of each image so far
    start                     int       number of the first of the rows
    rows                      (m,)      in place: number of each kept row
    kept_first, kept_second   (m, b s)  in place: the rows that are kept
    returns                   how many are kept now
    """
    for m in range(first.shape[0]):
        for b in range(largest.size):
            largest[b] = max(largest[b], highest[m, b])
    for m in range(first.shape[0]):
        if _is_likely(highest[m], largest):
            kept_first[count] = first[m]
            kept_second[count] = second[m]
            rows[count] = start + m
            count += 1
    return count


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
    "int64(float32[:,::1], float32[:,::1], int64[::1], float32[:,::1], float32[::1], "
    "float32[:,:,::1], float64[::1])",
    changes=(0, 1, 2, 5, 6),
)
def exponentiate(first, second, rows, highest, largest, sums, totals):
    """Turn log-likelihoods into weights relative to the best pose of each image.

    Rows without weight are left out, and those behind them move up.

    first, second  (n, b s)     in place: the weight, 1 for the best pose
    rows           (n,)         in place: number of each row
    highest        (m, b)       the largest log-likelihood of each row by its number, and image
    largest        (b,)         that of each image
    sums           (2, n, b)    in place: the weights of first and second, summed over shifts
    totals         (b,)         in place: the weights of the image, added up
    returns        how many rows are left
    """
    shifts = first.shape[1] // totals.size
    high = np.empty(first.shape[1], np.float32)
    for s in range(high.size):
        high[s] = largest[s // shifts]
    count = 0
    for n in range(rows.size):
        if not _is_likely(highest[rows[n]], largest):
            continue
        if count < n:
            first[count], second[count] = first[n], second[n]
        _exponentiate_row(first[count], high)
        _exponentiate_row(second[count], high)
        _sums_of_row(first[count], sums[0, count])
        _sums_of_row(second[count], sums[1, count])
        rows[count] = rows[n]
        for b in range(totals.size):
            totals[b] += sums[0, count, b] + sums[1, count, b]
        count += 1
    return count


@kernel(
    "int64(float32[:,::1], float32[:,::1], int64[::1], float32[:,:,::1], float64[::1], float32, "
    "float32[:,::1], float64[::1])",
    changes=(0, 1, 2, 6, 7),
)
def halve(first, second, rows, sums, totals, least, by_row, shares):
    """Make weights those of the images' real and imaginary parts, for rows that are inserted.

    Other rows are left out, and those behind them move up.

    first, second  (n, b s)    in place: weights from `exponentiate`; become the sum and the
                               difference of both orientations' probabilities
    rows           (n,)        in place: number of each row
    sums           (2, n, b)   the weights of first and second, summed over shifts
    totals         (b,)        all weights of an image
    least          float       a row is inserted if its probability for an image is at least this
    by_row         (n, b)      in place: the probability of each row and image
    shares         (b s,)      in place: the probability of each image's shifts, from all rows
    returns        how many rows are left
    """
    images, columns = totals.size, first.shape[1]
    shifts = columns // images
    scale = np.empty(columns, np.float32)
    for s in range(columns):
        scale[s] = 1.0 / totals[s // shifts]
    count = 0
    for n in range(rows.size):
        largest = np.float32(0.0)
        for b in range(images):
            value = (sums[0, n, b] + sums[1, n, b]) * scale[b * shifts]
            by_row[count, b] = value
            largest = max(largest, value)
        for s in range(columns):
            own, turned = first[n, s] * scale[s], second[n, s] * scale[s]
            shares[s] += own + turned
            first[count, s], second[count, s] = own + turned, own - turned
        if largest >= least:
            rows[count] = rows[n]
            count += 1
    return count


@kernel("void(float32[:,::1], int64[::1], float32[:,::1])", changes=(2,))
def add_rows(values, rows, sums):
    """Add values (n, v) to the rows of sums (m, v) that they belong to."""
    for n in range(rows.size):
        for v in range(values.shape[1]):
            sums[rows[n], v] += values[n, v]


@kernel(
    "void(float32[:,:,::1], int64[::1], float32[:,::1], float32[:,::1], float32[:,::1], "
    "float64[::1])",
    changes=(5,),
)
def explain(values, rows, real, imaginary, power, explained):
    """Add up the power that the slices of a reference explain.

    values           (3, n, v)  sums of images by orientation: real part, imaginary part, weight
    rows             (n,)       the orientation of each
    real, imaginary  (m, w)     the first components of the slices of all orientations
    power            (m, w)     their squares, added up
    explained        (w,)       in place: 2 cross - power
    """
    two = np.float32(2.0)
    for n in range(rows.size):
        m = rows[n]
        for v in range(explained.size):
            cross = real[m, v] * values[0, n, v] + imaginary[m, v] * values[1, n, v]
            explained[v] += two * cross - power[m, v] * values[2, n, v]
