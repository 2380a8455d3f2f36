"""Trilinear interpolation between the eight voxels about a point.

A volume (z, y, x, parts) is read as one flat array. `at` is the place in that array of the voxel
with the lowest z, y and x; `step`, `row` and `plane` are the distances to the next voxel along x, y
and z. All four are uint64: each read through a signed index would first test the sign.

These functions take and return numbers only, so that the loops for the processor and the kernels
for a GPU (`kernels/device/`) share them.
"""

from __future__ import annotations

from mpipar.kernels.jit import kernel


@kernel()
def columns_of(rotation):
    """Return the first two columns of a rotation (3, 3): what places a slice's components."""
    return (
        rotation[0, 0],
        rotation[0, 1],
        rotation[1, 0],
        rotation[1, 1],
        rotation[2, 0],
        rotation[2, 1],
    )


@kernel()
def point_of(columns, frequency, one, centre):
    """Return where a component of a slice lies in a half transform: x, y, z, and a sign.

    columns    of the rotation, from `columns_of`
    frequency  kx, ky of the component
    one        1 in the type of the result
    centre     index of zero frequency along y and z
    returns    x >= 0 from the plane of zero frequency, y and z as indices, and -1 if the point is
               the Friedel mate of the component's, else 1
    """
    kx, ky = frequency
    x = columns[0] * kx + columns[1] * ky
    sign = one if x >= 0 else -one
    x *= sign
    y = sign * (columns[2] * kx + columns[3] * ky) + centre
    z = sign * (columns[4] * kx + columns[5] * ky) + centre
    return x, y, z, sign


@kernel()
def trilinear(flat, at, step, row, plane, fractions):
    """Interpolate at the fractions (x, y, z) of the way from one voxel to the next."""
    fx, fy, fz = fractions
    a00 = flat[at] + fx * (flat[at + step] - flat[at])
    at += row
    a01 = flat[at] + fx * (flat[at + step] - flat[at])
    at += plane
    a11 = flat[at] + fx * (flat[at + step] - flat[at])
    at -= row
    a10 = flat[at] + fx * (flat[at + step] - flat[at])
    b0 = a00 + fy * (a01 - a00)
    b1 = a10 + fy * (a11 - a10)
    return b0 + fz * (b1 - b0)
