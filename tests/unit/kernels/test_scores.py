"""Best of many scores, against argmax and a plain greedy walk."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from mpipar.kernels import scores


def test_best_over_shifts_is_the_first_largest():
    random = np.random.default_rng(0)
    parts = random.integers(0, 5, (2, 7, 3 * 4)).astype(np.float32)  # many equals
    best, which = np.empty((2, 7, 3), np.float32), np.empty((2, 7, 3), np.int16)
    scores.best_over_shifts(parts[0], parts[1], best, which)
    by_image = np.stack([parts[0] + parts[1], parts[0] - parts[1]]).reshape(2, 7, 3, 4)
    np.testing.assert_array_equal(best, by_image.max(axis=3))
    np.testing.assert_array_equal(which, by_image.argmax(axis=3))


def test_one_shift_is_its_own_best():
    products = np.array([[3, 1, 2]], np.float32)
    best, which = np.empty((2, 1, 3), np.float32), np.empty((2, 1, 3), np.int16)
    scores.best_over_shifts(products, 2 * products, best, which)
    np.testing.assert_array_equal(best, [3 * products, -products])
    assert not which.any()


def picked(order: np.ndarray, rotations: np.ndarray, angle: float, room: int) -> list[int]:
    picks = np.full(room, -1, np.int64)
    trace = 1 + 2 * math.cos(math.radians(angle))
    count = scores.pick_distinct(order, rotations.astype(np.float32), trace, picks)
    assert (picks[count:] == -1).all()
    return list(map(int, picks[:count]))


def test_pick_distinct_is_the_greedy_walk():
    turns = Rotation.random(60, random_state=2)
    order = np.random.default_rng(0).permutation(60)
    kept: list[int] = []
    for candidate in order:
        angles = [(turns[int(candidate)].inv() * turns[k]).magnitude() for k in kept]
        if all(math.degrees(angle) >= 50 for angle in angles):
            kept.append(int(candidate))
    assert len(kept) > 5
    assert picked(order, turns.as_matrix(), 50, room=60) == kept
    assert picked(order, turns.as_matrix(), 50, room=4) == kept[:4]


def test_pick_distinct_keeps_the_best_of_equals():
    rotations = np.repeat(np.eye(3)[None], 4, axis=0)
    assert picked(np.array([2, 0, 1, 3]), rotations, 5, room=3) == [2]
