"""Log-likelihoods and weights of a grid of poses, against the same in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.kernels import pose_weights

ROWS, IMAGES, SHIFTS = 7, 3, 5
RANDOM = np.random.default_rng(0)
REAL, IMAGINARY = RANDOM.normal(size=(2, ROWS, IMAGES * SHIFTS)).astype(np.float32) * 4
POWER = RANDOM.uniform(1, 9, (ROWS, IMAGES)).astype(np.float32)
PRIOR = RANDOM.normal(size=IMAGES * SHIFTS).astype(np.float32)


@pytest.mark.parametrize("free_scale", [False, True])
def test_log_likelihoods_are_those_of_both_orientations(free_scale: bool) -> None:
    first, second = REAL.copy(), IMAGINARY.copy()
    largest = np.full(IMAGES, -np.inf, np.float32)
    largest[2] = 1000.0  # that of an earlier part of the grid
    pose_weights.log_likelihoods(first, second, POWER, PRIOR, free_scale, largest)
    power = np.repeat(POWER, SHIFTS, axis=1)
    for found, cross in ((first, REAL + IMAGINARY), (second, REAL - IMAGINARY)):
        fitted = np.maximum(cross, 0) ** 2 / power if free_scale else 2 * cross - power
        np.testing.assert_allclose(found, fitted + PRIOR, rtol=1e-5, atol=1e-4)
    by_image = np.maximum(first, second).reshape(ROWS, IMAGES, SHIFTS).max(axis=(0, 2))
    np.testing.assert_array_equal(largest, [*by_image[:2], 1000.0])


def test_weights_are_exponentials_and_their_sums() -> None:
    first, second = REAL.copy() * 3, IMAGINARY.copy() * 3
    both = np.stack([first, second]).reshape(2, ROWS, IMAGES, SHIFTS)
    largest = both.max(axis=(0, 1, 3))
    sums, totals = np.empty((2, ROWS, IMAGES), np.float32), np.zeros(IMAGES)
    high = np.repeat(largest, SHIFTS)
    pose_weights.exponentiate(first, second, high, sums[0], sums[1], totals)
    expected = np.exp(both - largest[:, None])
    found = np.stack([first, second]).reshape(both.shape)
    near = both - largest[:, None] > -5
    np.testing.assert_allclose(found[near], expected[near], rtol=2e-5)
    np.testing.assert_allclose(found, np.maximum(expected, np.exp(-20.0)), rtol=3e-3)
    assert found.max() == 1.0
    np.testing.assert_allclose(sums, found.sum(axis=3), rtol=1e-5)
    np.testing.assert_allclose(totals, found.sum(axis=(0, 1, 3)), rtol=1e-5)


def test_exponential_over_its_whole_range() -> None:
    exponents = np.linspace(-20.0, 0.0, 400, dtype=np.float32)
    values = np.array([pose_weights.power_of_e(x) for x in exponents])
    errors = np.abs(values / np.exp(exponents.astype(np.float64)) - 1)
    assert errors.max() < 2.5e-3
    assert errors[exponents > -5].max() < 2e-5
    assert (np.diff(values) > 0).all()
