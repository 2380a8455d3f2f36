"""Slices and their gradients, against interpolation written out point by point."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.kernels import slices
from tests.support import naive

SIDE, HEIGHT = 13, 8  # centre 6: good out to 4 voxels
FREQUENCIES = np.array([[0, 0], [1, 0], [0, 2], [2, -1], [3, 2], [1.5, -3], [0, 4]], np.float32)


@pytest.fixture
def half() -> np.ndarray:
    """A random transform of a real volume: the x = 0 plane holds both Friedel mates."""
    random = np.random.default_rng(1)
    values = random.normal(size=(SIDE, SIDE, HEIGHT)) + 1j * random.normal(
        size=(SIDE, SIDE, HEIGHT)
    )
    plane = values[:, :, 0]
    values[:, :, 0] = (plane + plane[::-1, ::-1].conj()) / 2
    return values.astype(np.complex64)


def as_reference(half: np.ndarray) -> np.ndarray:
    return half.view(np.float32).reshape(*half.shape, 2)


def test_slice_is_the_trilinear_interpolation(half):
    rotations = Rotation.random(6, random_state=0).as_matrix()
    out = np.empty((6, 2 * len(FREQUENCIES)), np.float32)
    slices.extract_slices(as_reference(half), rotations.astype(np.float32), FREQUENCIES, out)
    expected = [
        [naive.trilinear(half, r @ np.array([kx, ky, 0])) for kx, ky in FREQUENCIES]
        for r in rotations
    ]
    np.testing.assert_allclose(out.view(np.complex64), expected, atol=2e-5)


def test_slices_on_the_axes_read_voxels(half):
    out = np.empty((1, 2 * 3), np.float32)
    frequencies = np.array([[2, 0], [-2, 0], [0, 3]], np.float32)
    slices.extract_slices(as_reference(half), np.eye(3, dtype=np.float32)[None], frequencies, out)
    right, left, up = out.view(np.complex64)[0]
    assert right == half[6, 6, 2]
    assert left == half[6, 6, 2].conj()
    assert up == half[6, 9, 0]


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_limit_of_differences(half, seed):
    rotation = Rotation.random(random_state=seed).as_matrix()
    fields = np.empty((8, len(FREQUENCIES)), np.float32)
    slices.sample_with_gradient(
        as_reference(half), rotation.astype(np.float32), FREQUENCIES, 0, len(FREQUENCIES), fields
    )
    compared = 0
    for v, (kx, ky) in enumerate(FREQUENCIES):
        point = rotation @ np.array([kx, ky, 0.0])
        if np.abs(point - np.rint(point)).min() < 1e-3:
            continue  # on the border of a cell, where the interpolation has a kink
        compared += 1
        assert complex(*fields[:2, v]) == pytest.approx(naive.trilinear(half, point), abs=2e-5)
        for axis in range(3):
            step = 1e-4 * rotation[:, axis]
            difference = naive.trilinear(half, point + step) - naive.trilinear(half, point - step)
            gradient = complex(*fields[2 + 2 * axis : 4 + 2 * axis, v])
            assert gradient == pytest.approx(difference / 2e-4, abs=1e-4)
    assert compared >= 4


def test_chunks_are_samples_from_start_to_stop(half):
    whole, part = np.empty((8, 7), np.float32), np.empty((8, 7), np.float32)
    turn = np.eye(3, dtype=np.float32)
    slices.sample_with_gradient(as_reference(half), turn, FREQUENCIES, 0, 7, whole)
    slices.sample_with_gradient(as_reference(half), turn, FREQUENCIES, 2, 5, part)
    np.testing.assert_array_equal(part[:, :3], whole[:, 2:5])
