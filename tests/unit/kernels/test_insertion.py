"""Gridding into integers: right to half an integer, and the same integers in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mpipar.kernels import insertion
from tests.support import naive

SIDE, HEIGHT = 13, 8
FREQUENCIES = np.array(
    [[0, 0], [1, 0], [0, 1], [2, 0], [1, -2], [2, 2], [0, 3], [3, -2]], np.float32
)
SCALES = np.array([2.0**20, 2.0**18])
COUNT = 5


def material(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    values = random.normal(size=(COUNT, len(FREQUENCIES), 3)).astype(np.float32)
    values[..., 2] **= 2
    return values, Rotation.random(COUNT, random_state=seed).as_matrix()


def inserted(values: np.ndarray, rotations: np.ndarray, frequencies: np.ndarray = FREQUENCIES):
    sums = np.zeros((SIDE, SIDE, HEIGHT, 3), np.int64)
    insertion.insert_slices(values, np.ascontiguousarray(rotations), frequencies, SCALES, sums)
    return sums


def test_sums_are_the_gridded_values():
    values, rotations = material()
    sums = inserted(values, rotations) / SCALES[[0, 0, 1]]
    whole = naive.grid_slices(values, rotations, FREQUENCIES, SIDE)[:, :, SIDE // 2 :]
    halved = np.stack([whole[..., 0].real, whole[..., 0].imag, whole[..., 1].real], axis=-1)
    tolerance = 4 * COUNT / SCALES.min()
    np.testing.assert_allclose(sums[:, :, 1:7], halved[:, :, 1:], atol=tolerance)
    # the plane x = 0 is completed once, after all sums are in
    plane = sums[:, :, 0] + sums[::-1, ::-1, 0] * (1, -1, 1)
    np.testing.assert_allclose(plane, halved[:, :, 0], atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(COUNT)), cut=st.integers(0, COUNT))
def test_any_order_and_any_partition_give_the_same_integers(order, cut):
    values, rotations = material()
    whole = inserted(values, rotations)
    first, second = list(order[:cut]), list(order[cut:])
    parts = inserted(values[first], rotations[first]) + inserted(values[second], rotations[second])
    assert np.array_equal(whole, parts)


def test_order_of_components_changes_nothing():
    values, rotations = material()
    order = np.random.default_rng(3).permutation(len(FREQUENCIES))
    shuffled = inserted(
        np.ascontiguousarray(values[:, order]), rotations, np.ascontiguousarray(FREQUENCIES[order])
    )
    assert np.array_equal(shuffled, inserted(values, rotations))


def test_a_component_and_its_friedel_mate_are_the_same():
    values, rotations = material()
    mates = values * np.array([1, -1, 1], np.float32)
    ours = inserted(np.ascontiguousarray(values[:, 1:]), rotations, FREQUENCIES[1:])
    theirs = inserted(np.ascontiguousarray(mates[:, 1:]), rotations, -FREQUENCIES[1:])
    assert np.abs(ours - theirs).max() <= 4 * COUNT  # halves are rounded up, whatever the sign


def test_products_are_rounded_to_the_nearest_integer():
    values = np.array([[[0.6, -0.6, 0.4], [1.4, -1.4, 2.6]]], np.float32)
    frequencies = np.array([[1, 0], [2, 0]], np.float32)
    sums = np.zeros((SIDE, SIDE, HEIGHT, 3), np.int64)
    insertion.insert_slices(values, np.eye(3)[None], frequencies, np.ones(2), sums)
    assert sums[6, 6, 1].tolist() == [1, -1, 0]
    assert sums[6, 6, 2].tolist() == [1, -1, 3]
    assert np.abs(sums).sum() == 7


def test_weights_of_one_component_add_up_to_it():
    values, rotations = material()
    sums = inserted(values[:1, 3:4], rotations[:1], FREQUENCIES[3:4])
    whole = sums.sum(axis=(0, 1, 2)) / SCALES[[0, 0, 1]]
    assert whole == pytest.approx(values[0, 3] * (1, np.sign(rotations[0, 0, 0]), 1), abs=1e-4)


def smooth_half(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.normal(size=(SIDE, SIDE, HEIGHT, 3))
    plane = values[:, :, 0]
    values[:, :, 0] = (plane + plane[::-1, ::-1] * (1, -1, 1)) / 2
    return values.astype(np.float32)


@pytest.mark.parametrize("seed", range(2))
def test_add_rotated_adds_the_turned_transform(seed):
    source = smooth_half(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    target = np.ones_like(source)
    insertion.add_rotated(source, rotation, 3.0, target)
    value, weight = source[..., 0] + 1j * source[..., 1], source[..., 2] + 0j
    for z, y, x in np.ndindex(SIDE, SIDE, HEIGHT):
        here = np.array([x, y - 6.0, z - 6.0])
        expected = np.ones(3)
        if here @ here <= 9.0:
            turned = naive.trilinear(value, rotation.T @ here)
            expected += turned.real, turned.imag, naive.trilinear(weight, rotation.T @ here).real
        np.testing.assert_allclose(target[z, y, x], expected, atol=1e-5)


def test_quarter_turn_moves_voxels_whole():
    source, target = smooth_half(), np.zeros((SIDE, SIDE, HEIGHT, 3), np.float32)
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x -> y
    insertion.add_rotated(source, quarter, 5.0, target)
    np.testing.assert_allclose(target[6, 6 + 2, 0], source[6, 6, 2], atol=1e-6)


UNIT = 2**12


def inserted_whole(values: np.ndarray, rotations: np.ndarray, lists: list[list[int]]):
    """Add each list of slices to sums of its own, insert these, and add up what that gives."""
    result = np.zeros((SIDE, SIDE, HEIGHT, 3), np.int64)
    planes = np.ascontiguousarray(np.moveaxis(values, 2, 0))
    for chosen in lists:
        totals = np.zeros(planes.shape, np.int64)
        part = np.ascontiguousarray(planes[:, chosen])
        insertion.add_whole(part, np.array(chosen, np.int64), SCALES, totals)
        insertion.insert_whole(totals, rotations, FREQUENCIES, UNIT, result)
    return result


def test_whole_slices_are_inserted_like_any():
    values, rotations = material()
    found = inserted_whole(values, rotations, [list(range(COUNT))])
    # trilinear weights are rounded to multiples of 1 / UNIT, values to integers
    tolerance = 8 * COUNT * (SCALES.max() * np.abs(values).max() / UNIT + 1)
    np.testing.assert_allclose(found / UNIT, inserted(values, rotations), atol=tolerance)
    assert tolerance < 0.02 * np.abs(found / UNIT).max()


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.integers(0, 2), min_size=4 * COUNT, max_size=4 * COUNT))
def test_any_partition_of_whole_slices_gives_the_same_integers(parts):
    values, rotations = material()
    values[:, 1, 2] *= 1e-8  # less than an integer
    turns = [number % COUNT for number in range(4 * COUNT)]
    lists = [[turn for turn, part in zip(turns, parts, strict=True) if part == n] for n in range(3)]
    whole = inserted_whole(values, rotations, [turns])
    assert np.array_equal(whole, inserted_whole(values, rotations, lists))
