"""Cells of the sphere, against the HEALPix authors' own library."""

from __future__ import annotations

import healpy
import numpy as np
import pytest

from mpipar.cryoem import healpix


@pytest.mark.parametrize("resolution", [*range(1, 12), 32, 59])
def test_angles_have_the_bits_of_healpy(resolution):
    tilt, rot = healpy.pix2ang(resolution, np.arange(12 * resolution**2))
    found = healpix.cell_angles(resolution)
    assert (found[0].tobytes(), found[1].tobytes()) == (tilt.tobytes(), rot.tobytes())


@pytest.mark.parametrize("resolution", [1, 2, 4, 16, 32])
def test_vectors_point_to_the_cells_of_healpy(resolution):
    random = np.random.default_rng(resolution)
    whole = random.integers(-3, 4, (2000, 3)).astype(float)  # many on the axes, and on borders
    near_poles = random.normal(size=(2000, 3)) * [0.05, 0.05, 1.0]
    for vectors in (random.normal(size=(20_000, 3)), near_poles, whole[np.any(whole != 0, axis=1)]):
        expected = healpy.vec2pix(resolution, *vectors.T)
        assert np.array_equal(healpix.cell_of(resolution, vectors), expected)


@pytest.mark.parametrize("resolution", [1, 3, 16])
def test_centres_lie_in_their_cells(resolution):
    centres = healpix.cell_vectors(resolution)
    np.testing.assert_allclose(
        centres, np.stack(healpy.pix2vec(resolution, np.arange(len(centres))), axis=1), atol=1e-15
    )
    assert np.array_equal(healpix.cell_of(resolution, centres), np.arange(12 * resolution**2))
    assert healpix.resolution_of_cells(len(centres)) == resolution


def test_coarser_cells_have_the_means():
    values = np.random.default_rng(0).poisson(5.0, 12 * 32**2).astype(float)
    expected = healpy.ud_grade(values, 8)
    np.testing.assert_allclose(healpix.coarser(values, 8), expected, rtol=1e-12)
