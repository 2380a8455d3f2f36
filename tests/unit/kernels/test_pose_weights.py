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
    highest = np.empty((ROWS, IMAGES), np.float32)
    pose_weights.log_likelihoods(first, second, POWER, PRIOR, free_scale, highest)
    power = np.repeat(POWER, SHIFTS, axis=1)
    for found, cross in ((first, REAL + IMAGINARY), (second, REAL - IMAGINARY)):
        fitted = np.maximum(cross, 0) ** 2 / power if free_scale else 2 * cross - power
        np.testing.assert_allclose(found, fitted + PRIOR, rtol=1e-5, atol=1e-4)
    by_image = np.maximum(first, second).reshape(ROWS, IMAGES, SHIFTS).max(axis=2)
    np.testing.assert_array_equal(highest, by_image)


def test_rows_that_have_weight_for_any_image_are_kept() -> None:
    highest = np.full((ROWS, IMAGES), -50.0, np.float32)
    highest[[1, 2, 5], [0, 1, 2]] = [-3.0, -21.0, -19.0]
    largest = np.array([-3.0, 0.0, -30.0], np.float32)
    rows = np.full(ROWS + 1, -1)
    kept = np.zeros((2, ROWS + 1, IMAGES * SHIFTS), np.float32)
    count = pose_weights.keep_likely(
        REAL, IMAGINARY, highest, largest, 100, rows, kept[0], kept[1], 1
    )
    assert count == 3
    assert rows[:count].tolist() == [-1, 101, 105]
    np.testing.assert_array_equal(largest, [-3.0, 0.0, -19.0])
    np.testing.assert_array_equal(kept[:, 1:3], [REAL[[1, 5]], IMAGINARY[[1, 5]]])


def test_weights_are_exponentials_and_their_sums() -> None:
    first, second = REAL.copy() * 3, IMAGINARY.copy() * 3
    first[2] = second[2] = -90.0  # has no weight
    both = np.stack([first, second]).reshape(2, ROWS, IMAGES, SHIFTS)
    highest, largest = both.max(axis=(0, 3)), both.max(axis=(0, 1, 3))
    sums, totals = np.empty((2, ROWS, IMAGES), np.float32), np.zeros(IMAGES)
    rows = np.arange(ROWS)
    count = pose_weights.exponentiate(first, second, rows, highest, largest, sums, totals)
    others = [0, 1, 3, 4, 5, 6]
    assert rows[:count].tolist() == others
    sums = sums[:, :count]
    likely = both[:, others] - largest[:, None]
    found = np.stack([first, second])[:, :count].reshape(likely.shape)
    near = likely > -5
    np.testing.assert_allclose(found[near], np.exp(likely)[near], rtol=2e-5)
    np.testing.assert_allclose(found, np.maximum(np.exp(likely), np.exp(-20.0)), rtol=3e-3)
    assert found.max() == 1.0
    np.testing.assert_allclose(sums, found.sum(axis=3), rtol=1e-5)
    np.testing.assert_allclose(totals, found.sum(axis=(0, 1, 3)), rtol=1e-5)


def test_weights_become_those_of_real_and_imaginary_parts() -> None:
    weights = np.exp(np.stack([REAL, IMAGINARY]) / 4)
    weights[:, 3] *= 1e-4
    sums = np.ascontiguousarray(weights.reshape(2, ROWS, IMAGES, SHIFTS).sum(axis=3))
    totals = sums.sum(axis=(0, 1), dtype=np.float64)
    shares, by_row = np.zeros(IMAGES * SHIFTS), np.empty((ROWS, IMAGES), np.float32)
    first, second = weights.copy()
    rows = np.arange(ROWS)
    count = pose_weights.halve(first, second, rows, sums, totals, np.float32(1e-4), by_row, shares)
    others = [0, 1, 2, 4, 5, 6]
    assert rows[:count].tolist() == others
    even = weights / np.repeat(totals, SHIFTS)
    np.testing.assert_allclose(first[:count], even.sum(axis=0)[others], rtol=1e-5)
    np.testing.assert_allclose(second[:count], (even[0] - even[1])[others], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_row[:count], sums.sum(axis=0)[others] / totals, rtol=1e-5)
    np.testing.assert_allclose(shares, even.sum(axis=(0, 1)), rtol=1e-5)


def test_rows_are_added_where_they_belong() -> None:
    sums = np.ones((ROWS, IMAGES * SHIFTS), np.float32)
    pose_weights.add_rows(REAL[:2], np.array([4, 0]), sums)
    expected = np.ones_like(sums)
    expected[[4, 0]] += REAL[:2]
    np.testing.assert_array_equal(sums, expected)


def test_explained_power_is_added_up_over_rows() -> None:
    real, imaginary, power = RANDOM.normal(size=(3, ROWS, 4)).astype(np.float32)
    values = RANDOM.normal(size=(3, 2, 6)).astype(np.float32)
    rows, explained = np.array([5, 1]), np.ones(4)
    pose_weights.explain(values, rows, real, imaginary, power, explained)
    known = values[:, :, :4].astype(np.float64)
    cross = real[rows] * known[0] + imaginary[rows] * known[1]
    expected = 1 + (2 * cross - power[rows] * known[2]).sum(axis=0)
    np.testing.assert_allclose(explained, expected, rtol=1e-5)


def test_exponential_over_its_whole_range() -> None:
    exponents = np.linspace(-20.0, 0.0, 400, dtype=np.float32)
    values = np.array([pose_weights.power_of_e(x) for x in exponents])
    errors = np.abs(values / np.exp(exponents.astype(np.float64)) - 1)
    assert errors.max() < 2.5e-3
    assert errors[exponents > -5].max() < 2e-5
    assert (np.diff(values) > 0).all()
