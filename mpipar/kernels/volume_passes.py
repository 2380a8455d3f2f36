"""Passes over whole volumes and their transforms, each voxel read once and no table of voxels.

What depends on the distance from the origin is looked up by its square, a whole number. Half
transforms of volumes (n, n, n // 2 + 1) are as from ``rfftn``; sums are as in `kernels.insertion`.
"""

from __future__ import annotations

import numpy as np

from mpipar.kernels.jit import kernel


@kernel("void(int64[::1], int64, float64[::1], float32[::1], int64[::1])", changes=(3, 4))
def scale_sums(piece, start, units, values, extremes):
    """Turn whole numbers into values.

    piece     (p,) int64          of flattened sums
    start     int                 where the piece begins in them
    units     (3,) float64        value of one, by part
    values    (d d h 3,) float32  in place: those of the piece
    extremes  (2,) int64          in place: the lowest and the highest of `piece`, or what they were
    """
    low, high = extremes[0], extremes[1]
    for part in range(3):
        unit = units[(start + part) % 3]
        for i in range(part, piece.size, 3):
            one = piece[i]
            low, high = min(low, one), max(high, one)
            values[start + i] = np.float32(one * unit)
    extremes[0], extremes[1] = low, high


@kernel("void(float32[:,:,:,::1], int32[::1], float64[:,::1])", changes=(2,))
def add_up_weights(values, shell, totals):
    """Add up the weights of each shell, and count its voxels.

    values  (d, d, h, 3) float32
    shell   (q,) int32          by squared distance from the origin in voxels; none beyond
    totals  (s, 2) float64      in place: sum of weights, number of voxels
    """
    side, height = values.shape[0], values.shape[2]
    centre = side // 2
    for z in range(side):
        for y in range(side):
            row = values[z, y]
            start = (z - centre) ** 2 + (y - centre) ** 2
            for x in range(height):
                at = start + x * x
                if at >= shell.size:
                    break
                total = totals[shell[at]]
                total[0] += row[x, 2]
                total[1] += 1.0


@kernel(
    "void(float32[:,:,:,::1], float32[:,:,:,::1], float32[::1], int64, complex64[:,:,::1])",
    changes=(4,),
)
def divide_by_weight(first, second, damping, start, block):
    """Divide sums of values by sums of weights, in some rows of every plane.

    first    (d, d, h, 3) float32
    second   (d, d, h, 3) float32    added to `first`; nothing is if it is empty
    damping  (q,) float32            added to the weight, by squared distance from the origin in
                                     voxels; the result is zero beyond
    start    int                     y of the first row
    block    (d, w, h) complex64     in place; rows beyond the last one are left alone
    """
    side, height = block.shape[0], block.shape[2]
    width = min(block.shape[1], side - start)
    centre, both = side // 2, second.size > 0
    for z in range(side):
        for i in range(width):
            y = start + i
            out, row = block[z, i], first[z, y]
            base = (z - centre) ** 2 + (y - centre) ** 2
            for x in range(height):
                at = base + x * x
                if at >= damping.size:
                    out[x:] = 0
                    break
                real, imaginary, weight = row[x, 0], row[x, 1], row[x, 2]
                if both:
                    real += second[z, y, x, 0]
                    imaginary += second[z, y, x, 1]
                    weight += second[z, y, x, 2]
                weight += damping[at]
                out[x] = complex(real / weight, imaginary / weight)


@kernel("void(complex64[:,:,::1], float32[::1])", changes=(0,))
def multiply_shells(transform, gain):
    """Multiply a half transform by a gain.

    transform  (n, n, h) complex64   in place
    gain       (q,) float32          by squared frequency; zero beyond
    """
    side, height = transform.shape[0], transform.shape[2]
    for z in range(side):
        for y in range(side):
            row = transform[z, y]
            base = min(z, side - z) ** 2 + min(y, side - y) ** 2
            for x in range(height):
                at = base + x * x
                if at >= gain.size:
                    row[x:] = 0
                    break
                row[x] *= gain[at]


@kernel("void(complex64[:,:,::1], complex64[:,:,::1], float32[::1])", changes=(0,))
def blend_shells(transform, other, share):
    """Replace a share of each shell of a half transform by another's.

    transform  (n, n, h) complex64   in place
    other      (n, n, h) complex64
    share      (q,) float32          by squared frequency; beyond, the result is zero
    """
    side, height = transform.shape[0], transform.shape[2]
    for z in range(side):
        for y in range(side):
            row, there = transform[z, y], other[z, y]
            base = min(z, side - z) ** 2 + min(y, side - y) ** 2
            for x in range(height):
                at = base + x * x
                if at >= share.size:
                    row[x:] = 0
                    break
                row[x] += share[at] * (there[x] - row[x])


@kernel(
    "void(complex64[:,:,::1], complex64[:,:,::1], int32[::1], int64, float64[:,::1])",
    changes=(4,),
)
def add_up_shells(first, second, shell, box, totals):
    """Add up products of two half transforms by shell, both of each Friedel pair.

    first, second  (n, n, h) complex64
    shell          (q,) int32        by squared frequency; none beyond
    box            int               n
    totals         (s, 4) float64    in place: real part of first x conj(second), |first|^2,
                                     |second|^2, number
    """
    height = first.shape[2]
    for z in range(box):
        for y in range(box):
            one, other = first[z, y], second[z, y]
            base = min(z, box - z) ** 2 + min(y, box - y) ** 2
            for x in range(height):
                at = base + x * x
                if at >= shell.size:
                    break
                twice = 1.0 if x in (0, box - x) else 2.0
                a, b = one[x], other[x]
                total = totals[shell[at]]
                total[0] += twice * (a.real * b.real + a.imag * b.imag)
                total[1] += twice * (a.real * a.real + a.imag * a.imag)
                total[2] += twice * (b.real * b.real + b.imag * b.imag)
                total[3] += twice


@kernel()
def nearest_of_line(inside, reach, squared):
    """Find the squared distance of each voxel of a line from the nearest one that is inside."""
    for backwards in range(2):
        away = reach + 1
        for step in range(inside.size):
            at = inside.size - 1 - step if backwards else step
            away = 0 if inside[at] else min(away + 1, reach + 1)
            here = np.int32(away * away)
            squared[at] = min(squared[at], here) if backwards else here


@kernel()
def lower_to(squared, others, step):
    """Lower each squared distance to another one plus the square of a step across."""
    more = np.int32(step * step)
    for x in range(squared.size):
        squared[x] = min(squared[x], others[x] + more)


@kernel("void(uint8[:,:,::1], int64, int32[:,:,::1], int32[:,:,::1])", changes=(2, 3))
def squared_distances(inside, reach, rows, squared):
    """Find how far each voxel is from the nearest one that is inside, up to a limit.

    inside   (z, y, x) uint8    0: outside
    reach    int                larger distances count as reach + 1
    rows     (z, y, x) int32    overwritten
    squared  (z, y, x) int32    in place: the squared distance in voxels, at most (reach + 1)^2
    """
    depth, side, _ = inside.shape
    for z in range(depth):
        for y in range(side):
            nearest_of_line(inside[z, y], reach, squared[z, y])
        for y in range(side):
            rows[z, y, :] = squared[z, y]
            for other in range(max(0, y - reach), min(side, y + reach + 1)):
                lower_to(rows[z, y], squared[z, other], other - y)
    for z in range(depth):
        squared[z] = rows[z]
        for y in range(side):
            for other in range(max(0, z - reach), min(depth, z + reach + 1)):
                lower_to(squared[z, y], rows[other, y], other - z)
