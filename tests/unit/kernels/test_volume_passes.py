"""Passes over volumes against the same in numpy, voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mpipar.cryoem.fourier import shells_by_square
from mpipar.kernels import volume_passes

SIDE, HEIGHT, RADIUS = 11, 7, 2
CENTRE = SIDE // 2


def random_values(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(SIDE, SIDE, HEIGHT, 3)).astype(np.float32)
    values[..., 2] **= 2
    return values


def shells_of_sums() -> np.ndarray:
    """The shell of each voxel of sums, by its definition."""
    k, kx = np.arange(-CENTRE, CENTRE + 1) / 2, np.arange(HEIGHT) / 2
    return np.rint(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + kx**2)).astype(int)


def shells_of_transform(box: int) -> np.ndarray:
    k, kx = np.fft.fftfreq(box, 1 / box), np.arange(box // 2 + 1)
    return np.rint(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + kx**2)).astype(int)


def random_transform(box: int, seed: int = 0) -> np.ndarray:
    real, imaginary = np.random.default_rng(seed).normal(size=(2, box, box, box // 2 + 1))
    return np.asarray(real + 1j * imaginary, np.complex64)


@pytest.mark.parametrize("size", [1, 2, 3, 100, SIDE * SIDE * HEIGHT * 3])
def test_sums_are_scaled_piece_by_piece(size: int):
    sums = np.random.default_rng(0).integers(-(2**40), 2**40, SIDE * SIDE * HEIGHT * 3)
    units = np.array([2.0**-20, 2.0**-21, 2.0**-25])
    values, extremes = np.empty(sums.shape, np.float32), np.zeros(2, np.int64)
    for start in range(0, len(sums), size):
        volume_passes.scale_sums(sums[start : start + size], start, units, values, extremes)
    expected = sums * np.resize(units, len(sums))
    np.testing.assert_array_equal(values, expected.astype(np.float32))
    assert extremes.tolist() == [sums.min(), sums.max()]


def test_weights_are_added_up_by_shell():
    values, shell = random_values(), shells_of_sums()
    totals = np.zeros((RADIUS + 1, 2))
    volume_passes.add_up_weights(values, shells_by_square(RADIUS, 2), totals)
    for s in range(RADIUS + 1):
        inside = shell == s
        assert totals[s] == pytest.approx([values[inside, 2].sum(), inside.sum()])


@pytest.mark.parametrize("both", [False, True])
def test_rows_are_divided_by_their_weights(both: bool):
    first, second, shell = random_values(), random_values(1), shells_of_sums()
    damping = np.array([0.3, 0.1, 0.2], np.float32)
    table = damping[shells_by_square(RADIUS, 2)]
    block = np.full((SIDE, 4, HEIGHT), np.nan, np.complex64)
    volume_passes.divide_by_weight(first, second if both else second[:0], table, 5, block)
    summed = first + second if both else first
    weight = summed[..., 2] + np.append(damping, np.ones(10))[shell]
    expected = np.where(shell <= RADIUS, summed[..., :2] @ (1, 1j) / weight, 0)[:, 5:9]
    np.testing.assert_allclose(block, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("box", [8, 9])
def test_shells_are_multiplied_and_blended(box: int):
    one, other, shell = random_transform(box), random_transform(box, 1), shells_of_transform(box)
    gain = np.linspace(1, 0.2, box // 2 + 1).astype(np.float32)
    table, everywhere = gain[shells_by_square(box // 2)], np.append(gain, np.zeros(box))[shell]
    found = one.copy()
    volume_passes.multiply_shells(found, table)
    np.testing.assert_allclose(found, one * everywhere, atol=1e-6)
    found = one.copy()
    volume_passes.blend_shells(found, other, table)
    expected = np.where(shell <= box // 2, one + everywhere * (other - one), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("box", [8, 9])
def test_products_are_added_up_by_shell_for_both_of_each_friedel_pair(box: int):
    first, second, shell = random_transform(box), random_transform(box, 1), shells_of_transform(box)
    totals = np.zeros((box // 2 + 1, 4))
    volume_passes.add_up_shells(first, second, shells_by_square(box // 2), box, totals)
    kx = np.arange(box // 2 + 1)
    twice = np.broadcast_to(np.where((kx == 0) | (2 * kx == box), 1, 2), shell.shape)
    for s in range(box // 2 + 1):
        at = shell == s
        values = (first * second.conj()).real, abs(first) ** 2, abs(second) ** 2, np.ones_like(at)
        expected = [(value[at] * twice[at]).sum() for value in values]
        assert totals[s] == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("reach", [1, 3, 30])
def test_distances_are_those_to_the_nearest_voxel_inside(reach: int):
    inside = (np.random.default_rng(reach).random((9, 12, 14)) < 0.01).astype(np.uint8)
    inside[4, 5, 6] = 1
    rows, squared = (np.empty(inside.shape, np.int32) for _ in range(2))
    volume_passes.squared_distances(inside, reach, rows, squared)
    exact = np.rint(ndimage.distance_transform_edt(inside == 0) ** 2).astype(int)
    near = exact <= reach * reach
    assert np.array_equal(squared[near], exact[near])
    assert (squared[~near] > reach * reach).all()
    assert (squared <= (reach + 1) ** 2).all()
