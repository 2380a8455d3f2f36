"""Euler angles there and back, and grids that leave no orientation out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mpipar.cryoem.rotations import (
    angle_between,
    from_euler,
    from_vectors,
    to_euler,
    to_vectors,
)

angle = st.floats(-180, 180)
tilt = st.one_of(st.floats(0, 180), st.sampled_from([0.0, 1e-9, 1e-5, 90.0, 180.0 - 1e-6, 180.0]))


@given(rot=angle, tilt=tilt, psi=angle)
def test_angles_of_a_matrix_give_the_matrix(rot, tilt, psi):
    matrix = from_euler(np.array([[rot, tilt, psi]]))
    found = to_euler(matrix)
    np.testing.assert_allclose(from_euler(found), matrix, atol=1e-9)
    assert (np.abs(found) <= 180).all()
    assert found[0, 1] >= 0


@given(rot=angle, tilt=tilt, psi=angle)
def test_rounded_matrices_lose_no_more_than_their_rounding(rot, tilt, psi):
    matrix = from_euler(np.array([[rot, tilt, psi]]))
    rounded = matrix.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(from_euler(to_euler(rounded)), matrix, atol=1e-6)


@given(rot=st.floats(-179, 179), tilt=st.floats(1, 179), psi=st.floats(-179, 179))
def test_angles_come_back(rot, tilt, psi):
    wanted = np.array([[rot, tilt, psi]])
    np.testing.assert_allclose(to_euler(from_euler(wanted)), wanted, atol=1e-7)


@pytest.mark.parametrize(
    ("angles", "expected"),
    [((30, 0, 40), (0, 0, 70)), ((30, 180, 40), (0, 180, 10)), ((-90, 0, 0), (0, 0, -90))],
)
def test_at_the_poles_all_of_the_turn_is_psi(angles, expected):
    found = to_euler(from_euler(np.array([angles], float)))[0]
    assert found == pytest.approx(expected, abs=1e-6)


@given(degrees=st.floats(1e-6, 179.9))
def test_angle_between(degrees):
    first = Rotation.random(random_state=0)
    axis = np.array([2, -1, 2]) / 3
    second = first * Rotation.from_rotvec(np.radians(degrees) * axis)
    found = angle_between(first.as_matrix(), second.as_matrix())
    assert found == pytest.approx(degrees, rel=1e-6, abs=1e-7)


def test_vectors_come_back():
    vectors = np.random.default_rng(0).normal(size=(4, 3, 3))
    matrices = from_vectors(vectors)
    assert matrices.shape == (4, 3, 3, 3)
    np.testing.assert_allclose(to_vectors(matrices), vectors, atol=1e-9)
    about_z = from_vectors(np.array([0.0, 0.0, np.radians(30)]))
    np.testing.assert_allclose(about_z, from_euler(np.array([[30.0, 0, 0]]))[0], atol=1e-12)
