"""Central slices through the transform of a volume, by trilinear interpolation.

A reference is the oversampled half transform of a volume, (d, d, h, 2) float32, axes z y x and
(real, imaginary), zero frequency at [c, c, 0] with c = d // 2. Frequencies outside x >= 0 are read
as the conjugate of their Friedel mate.
"""

from __future__ import annotations

import numpy as np

from mpipar.kernels.interpolation import columns_of, point_of, trilinear
from mpipar.kernels.jit import kernel


@kernel()
def sample(flat, side, height, columns, frequency):
    """Interpolate one component of a slice; return its real and imaginary part.

    flat          the reference as one flat array, float32
    side, height  d and h of the reference
    columns       see `point_of`, float32; frequency in voxels of the reference
    """
    two, row, plane = np.uint64(2), np.uint64(2 * height), np.uint64(2 * height * side)
    x, y, z, sign = point_of(columns, frequency, np.float32(1.0), np.float32(side // 2))
    # shifted by the centre both are positive, so that cutting off the fraction is the floor
    i, j, k = int(x), int(y), int(z)
    fractions = x - np.float32(i), y - np.float32(j), z - np.float32(k)
    at = np.uint64(((k * side + j) * height + i) * 2)
    real = trilinear(flat, at, two, row, plane, fractions)
    imaginary = trilinear(flat, at + np.uint64(1), two, row, plane, fractions)
    return real, sign * imaginary


@kernel("void(float32[:,:,:,::1], float32[:,:,::1], float32[:,::1], float32[:,::1])", changes=(3,))
def extract_slices(reference, rotations, frequencies, slices):
    """Sample one central slice per rotation.

    reference    (d, d, h, 2) float32
    rotations    (m, 3, 3) float32   map coordinate = rotation @ image coordinate
    frequencies  (v, 2) float32      kx, ky of each component in voxels of the reference
    slices       (m, 2 v) float32    in place: real and imaginary part of each component, side by
                                     side
    """
    flat = reference.reshape(-1)
    side, height = reference.shape[0], reference.shape[2]
    for m in range(rotations.shape[0]):
        columns = columns_of(rotations[m])
        for v in range(frequencies.shape[0]):
            frequency = frequencies[v, 0], frequencies[v, 1]
            real, imaginary = sample(flat, side, height, columns, frequency)
            slices[m, 2 * v] = real
            slices[m, 2 * v + 1] = imaginary


@kernel()
def sample_with_gradient(reference, rotation, frequencies, start, stop, fields):
    """Sample a slice and its gradient along the axes of the image, for components start..stop-1.

    rotation     (3, 3) float32      times the oversampling
    frequencies  (v, 2) float32      kx, ky in pixels
    fields       (8, n) float32      in place: value, d/dx, d/dy, d/dz; of each the real, then the
                                     imaginary part
    """
    flat = reference.reshape(-1)
    side, height = reference.shape[0], reference.shape[2]
    centre = np.float32(side // 2)
    two, row, plane = np.uint64(2), np.uint64(2 * height), np.uint64(2 * height * side)
    r00, r01, r02 = rotation[0, 0], rotation[0, 1], rotation[0, 2]
    r10, r11, r12 = rotation[1, 0], rotation[1, 1], rotation[1, 2]
    r20, r21, r22 = rotation[2, 0], rotation[2, 1], rotation[2, 2]
    for v in range(start, stop):
        kx, ky = frequencies[v, 0], frequencies[v, 1]
        x = r00 * kx + r01 * ky
        sign = np.float32(1.0) if x >= 0 else np.float32(-1.0)
        x *= sign
        y = sign * (r10 * kx + r11 * ky) + centre
        z = sign * (r20 * kx + r21 * ky) + centre
        i, j, k = int(x), int(y), int(z)
        fx, fy, fz = x - np.float32(i), y - np.float32(j), z - np.float32(k)
        at = np.uint64(((k * side + j) * height + i) * 2)
        for part in range(2):
            p = at + np.uint64(part)
            a00, d00 = flat[p], flat[p + two] - flat[p]
            p += row
            a01, d01 = flat[p], flat[p + two] - flat[p]
            p += plane
            a11, d11 = flat[p], flat[p + two] - flat[p]
            p -= row
            a10, d10 = flat[p], flat[p + two] - flat[p]
            a00 += fx * d00
            a01 += fx * d01
            a10 += fx * d10
            a11 += fx * d11
            b0, b1 = a00 + fy * (a01 - a00), a10 + fy * (a11 - a10)
            e0, e1 = d00 + fy * (d01 - d00), d10 + fy * (d11 - d10)
            gx = e0 + fz * (e1 - e0)
            gy = (a01 - a00) + fz * ((a11 - a10) - (a01 - a00))
            gz = b1 - b0
            # V(-k) = conj V(k): the mate's imaginary part and the gradient of its real part change
            # sign
            of_value, of_gradient = (
                (np.float32(1.0), sign) if part == 0 else (sign, np.float32(1.0))
            )
            fields[part, v - start] = of_value * (b0 + fz * gz)
            fields[2 + part, v - start] = of_gradient * (r00 * gx + r10 * gy + r20 * gz)
            fields[4 + part, v - start] = of_gradient * (r01 * gx + r11 * gy + r21 * gz)
            fields[6 + part, v - start] = of_gradient * (r02 * gx + r12 * gy + r22 * gz)
