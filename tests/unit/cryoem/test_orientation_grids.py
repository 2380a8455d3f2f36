"""Grids over orientations: no gaps, few points, symmetry mates left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mpipar.cryoem.orientation_grids import orientation_grid
from mpipar.cryoem.symmetry import operators


def worst_and_mean_gap(grid: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """How far random orientations lie from the nearest grid point, symmetry mates included."""
    tree = cKDTree(Rotation.from_matrix(grid.astype(np.float64)).as_quat())
    random = Rotation.random(1500, random_state=1).as_matrix()
    nearest = np.full(len(random), np.inf)
    for operator in group:
        quaternion = Rotation.from_matrix(operator @ random).as_quat()
        for sign in (1, -1):  # both stand for one rotation
            nearest = np.minimum(nearest, tree.query(sign * quaternion)[0])
    gaps = np.degrees(4 * np.arcsin(nearest / 2))
    return float(gaps.max()), float(gaps.mean())


@pytest.mark.parametrize("name", ["C1", "C2", "C7", "C36", "D7", "T", "O", "I1", "I3"])
def test_grid_covers_all_orientations(name):
    step, group = 10.0, operators(name)
    grid = orientation_grid(step, group, np.random.SeedSequence(5))
    worst, mean = worst_and_mean_gap(grid, group)
    # mates across the border of the asymmetric unit do not continue the grid
    assert worst < 0.9 * step if name == "C1" else worst < 1.05 * step
    assert mean < 0.5 * step


@pytest.mark.parametrize("step", [7.5, 15.0])
def test_grid_is_as_fine_as_asked(step):
    grid = orientation_grid(step, operators("C1"), np.random.SeedSequence(2))
    worst, _ = worst_and_mean_gap(grid, operators("C1"))
    assert worst < 0.9 * step


@pytest.mark.parametrize(
    ("name", "most"), [("C1", 1.1), ("C2", 1.1), ("D7", 1.3), ("O", 1.3), ("I2", 1.5)]
)
def test_grid_holds_one_asymmetric_unit(name, most):
    step, group = 10.0, operators(name)
    count = len(orientation_grid(step, group, np.random.SeedSequence(0)))
    volume = 8 * np.pi**2 / np.radians(step) ** 3  # of all rotations, in cubes of the step
    assert 0.9 < count * len(group) / volume < most


@pytest.mark.parametrize("name", ["C999", "D500"])
def test_grid_of_a_very_high_symmetry_is_not_empty(name):
    grid = orientation_grid(10.0, operators(name), np.random.SeedSequence(0))
    assert len(grid) >= 36


def test_grid_is_rotations_and_depends_on_the_seed_alone():
    first, again, other = (
        orientation_grid(20.0, operators("C1"), np.random.SeedSequence(0, spawn_key=(key,)))
        for key in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(
        first @ first.transpose(0, 2, 1), np.eye(3)[None] + 0 * first, atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(first.astype(np.float64)), 1, atol=1e-6)
