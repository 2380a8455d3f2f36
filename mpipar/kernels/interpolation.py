"""Trilinear interpolation between the eight voxels about a point.

A volume (z, y, x, parts) is read as one flat array. `at` is the place in that array of the voxel
with the lowest z, y and x; `step`, `row` and `plane` are the distances to the next voxel along x, y
and z. All four are uint64: each read through a signed index would first test the sign.
"""

from __future__ import annotations

from mpipar.kernels.jit import kernel


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
