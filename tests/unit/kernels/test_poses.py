"""The climb: its derivatives, its scores, and that it reaches the top from a few degrees off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem.alignment import make_reference, slices_of
from mpipar.cryoem.fourier import OVERSAMPLING, components
from mpipar.kernels import poses
from mpipar.kernels.poses import ClimbOptions
from tests.support import naive

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

BOX, RADIUS = 12, 4
WANTED = components(BOX, RADIUS)
COUNT = len(WANTED.shell)
MOLECULE = naive.blobs(BOX, count=5)
REFERENCE = make_reference(MOLECULE.volume(BOX), RADIUS)
TRUE_TURN = Rotation.from_euler("ZYZ", [40, 65, -20], degrees=True).as_matrix()
TRUE_SHIFT = np.array([0.7, -0.4])
LONGEST_TURN, LONGEST_MOVE, LARGEST_SHIFT = 0.15, 1.0, 4.0


def image_data(
    ctf: np.ndarray | None = None, noise: float = 2e-3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Components of a noise-free image of the reference itself; what scoring needs of them."""
    ctf = np.ones(COUNT) if ctf is None else ctf
    sliced = slices_of(REFERENCE, TRUE_TURN[None], WANTED.frequencies).view(np.complex64)[0]
    moved = np.exp(-2j * np.pi * (WANTED.frequencies @ TRUE_SHIFT) / BOX)
    image = sliced * moved * ctf
    weighed = np.stack([image.real * ctf, image.imag * ctf, ctf**2], axis=1) / noise
    return image, ctf, weighed.astype(np.float32)


def climbed(
    data: np.ndarray,
    rotation: np.ndarray,
    shift: ArrayLike,
    *,
    steps: int = 15,
    free: bool = False,
    reference: np.ndarray = REFERENCE.transform,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rotations, shifts = rotation[None].copy(), np.array([shift], float)
    scores, curvature = np.empty((1, 3)), np.empty((1, 5, 5))
    options = ClimbOptions(
        OVERSAMPLING, BOX, steps, free, LONGEST_TURN, LONGEST_MOVE, LARGEST_SHIFT
    )
    poses.climb(reference, WANTED.frequencies, data, options, rotations, shifts, scores, curvature)
    return rotations[0], shifts[0], scores[0]


def degrees_between(one: np.ndarray, other: np.ndarray) -> float:
    return math.degrees(Rotation.from_matrix(one.T @ other).magnitude())


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(("axis", "offset"), [((1, 0, 0), (0.5, 0.5)), ((1, -1, 1), (-0.8, 0.3))])
def test_climb_reaches_the_true_pose(axis, offset, free):
    turn = Rotation.from_rotvec(np.radians(6) * np.array(axis) / np.linalg.norm(axis)).as_matrix()
    rotation, shift, _ = climbed(image_data()[2], TRUE_TURN @ turn, TRUE_SHIFT + offset, free=free)
    assert degrees_between(rotation, TRUE_TURN) < 0.2
    assert shift == pytest.approx(TRUE_SHIFT, abs=0.01)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)


def test_score_is_the_log_likelihood():
    ctf = np.cos(0.4 * WANTED.distance)
    image, _, data = image_data(ctf, noise=0.01)
    rotation = Rotation.random(random_state=4).as_matrix()
    _, _, (score, cross, quadratic) = climbed(data, rotation, (1.0, -1.5), steps=0)
    half = REFERENCE.transform.view(np.complex64)[..., 0]
    values = [
        naive.trilinear(half, OVERSAMPLING * rotation @ np.array([kx, ky, 0]))
        * np.exp(-2j * np.pi * (kx * 1.0 + ky * -1.5) / BOX)
        for kx, ky in WANTED.frequencies
    ]
    expected = naive.log_likelihood(np.array(values), image, ctf, np.full(COUNT, 0.01))
    assert score == pytest.approx(expected, rel=1e-4)
    assert score == pytest.approx(cross - quadratic / 2)


def test_shift_factors_are_the_exponentials():
    shifts = np.random.default_rng(3).normal(scale=4, size=(7, 2))
    factors = np.empty((7, COUNT), np.complex64)
    poses.shift_factors(shifts, WANTED.frequencies, BOX, factors)
    expected = np.exp(2j * np.pi * (shifts @ WANTED.frequencies.T) / BOX)
    np.testing.assert_allclose(factors, expected, atol=2e-7)


@pytest.mark.parametrize("free", [False, True])
def test_scores_of_poses_are_those_of_climbs_without_a_step(free):
    data = image_data(np.cos(0.4 * WANTED.distance))[2]
    rotations = np.ascontiguousarray(Rotation.random(5, random_state=2).as_matrix())
    shifts = np.random.default_rng(2).normal(size=(5, 2))
    options = ClimbOptions(OVERSAMPLING, BOX, 0, free, LONGEST_TURN, LONGEST_MOVE, LARGEST_SHIFT)
    found = np.empty(5)
    poses.score_poses(
        REFERENCE.transform, WANTED.frequencies, data, options, rotations, shifts, found
    )
    each = [
        climbed(data, turn, shift, steps=0, free=free)[2][0]
        for turn, shift in zip(rotations, shifts, strict=True)
    ]
    np.testing.assert_allclose(found, each, rtol=1e-5, atol=1e-5)


def test_climb_tells_the_curvature_where_it_ends():
    data = image_data(np.cos(0.3 * WANTED.distance))[2]
    turns, shifts = TRUE_TURN[None].copy(), TRUE_SHIFT[None].copy()
    score, curvature = np.empty((1, 3)), np.empty((1, 5, 5))
    options = ClimbOptions(OVERSAMPLING, BOX, 5, False, LONGEST_TURN, LONGEST_MOVE, LARGEST_SHIFT)
    given = REFERENCE.transform, WANTED.frequencies, data, options
    poses.climb(*given, turns, shifts, score, curvature)
    for axis in range(5):  # small steps to both sides of the top
        step = np.zeros(5)
        step[axis] = 0.03
        ends = np.empty((2, 3, 3))
        for way, end in zip((step, -step), ends, strict=True):
            poses.turned(turns[0], way, end)
        found = np.empty(2)
        poses.score_poses(
            *given, ends, np.stack([shifts[0] + step[3:], shifts[0] - step[3:]]), found
        )
        fall = (2 * score[0, 0] - found.sum()) / 0.03**2
        assert curvature[0, axis, axis] == pytest.approx(fall, rel=0.25)
    np.testing.assert_array_equal(curvature[0], curvature[0].T)


def test_free_scale_scores_at_the_best_scale():
    data = image_data()[2]
    start = TRUE_TURN @ Rotation.from_euler("x", 3, degrees=True).as_matrix()
    _, _, (score, cross, quadratic) = climbed(data, start, TRUE_SHIFT, steps=0, free=True)
    scales = np.linspace(0, 3, 301)
    assert score == pytest.approx((scales * cross - scales**2 * quadratic / 2).max(), rel=1e-4)


@pytest.mark.parametrize("grey", [1e-6, 1e-3, 1e4, 1e8])
def test_free_scale_climbs_the_same_way_whatever_the_grey_scale(grey):
    data = image_data()[2]
    start = TRUE_TURN @ Rotation.from_euler("yz", [5, 4], degrees=True).as_matrix()
    plain = climbed(data, start, (0, 0), free=True)
    scaled = climbed(
        data, start, (0, 0), free=True, reference=REFERENCE.transform * np.float32(grey)
    )
    # a climb ends where a step gains little, which rounding decides
    assert degrees_between(plain[0], scaled[0]) < 0.2
    assert scaled[1] == pytest.approx(plain[1], abs=2e-2)
    assert scaled[2][0] == pytest.approx(plain[2][0], rel=1e-3)


def test_climb_never_ends_lower_than_it_started():
    data = image_data()[2]
    for seed in range(4):
        start = Rotation.random(random_state=seed).as_matrix()
        before = climbed(data, start, (2, 1), steps=0)[2][0]
        assert climbed(data, start, (2, 1), steps=4)[2][0] >= before


@pytest.mark.parametrize("free", [False, True])
def test_empty_reference_leaves_the_pose_and_scores_nothing(free):
    empty = np.zeros_like(REFERENCE.transform)
    rotation, shift, scores = climbed(
        image_data()[2], TRUE_TURN, TRUE_SHIFT, free=free, reference=empty
    )
    np.testing.assert_array_equal(rotation, TRUE_TURN)
    np.testing.assert_array_equal(shift, TRUE_SHIFT)
    np.testing.assert_array_equal(scores, 0)


def test_empty_image_with_a_free_scale_scores_nothing():
    _, _, (score, cross, _) = climbed(
        np.zeros((COUNT, 3), np.float32), TRUE_TURN, (0, 0), free=True
    )
    assert (score, cross) == (0, 0)


def test_shift_stays_within_the_allowed_disc():
    _, shift, _ = climbed(image_data()[2], TRUE_TURN, (3.9, 0.0))
    assert np.hypot(*shift) <= LARGEST_SHIFT


def test_start_beyond_the_allowed_disc_can_still_climb():
    far = np.array([-6.0, 3.0])
    moved = np.exp(-2j * np.pi * (WANTED.frequencies @ (far - TRUE_SHIFT)) / BOX)
    image = image_data()[0] * moved
    data = np.stack([image.real, image.imag, np.ones(COUNT)], axis=1).astype(np.float32) * 500
    start = TRUE_TURN @ Rotation.from_euler("x", 4, degrees=True).as_matrix()
    rotation, shift, _ = climbed(data, start, far * 1.05)
    assert degrees_between(rotation, TRUE_TURN) < 0.5
    assert shift == pytest.approx(far, abs=0.05)


def test_normal_equations_are_the_derivatives_of_the_score():
    data = image_data(np.cos(0.3 * WANTED.distance))[2]
    options = ClimbOptions(OVERSAMPLING, BOX, 0, False, LONGEST_TURN, LONGEST_MOVE, LARGEST_SHIFT)
    start = TRUE_TURN @ Rotation.from_euler("xy", [3, -2], degrees=True).as_matrix()
    table = np.empty((2, 2 * RADIUS + 1, 2), np.float32)
    fields = np.empty((13, poses.CHUNK), np.float32)

    def terms(step: np.ndarray) -> np.ndarray:
        rotation, system = np.empty((3, 3)), np.empty((9, 5))
        poses.turned(start, step, rotation)
        poses.normal_equations(
            REFERENCE.transform, WANTED.frequencies, data, options, rotation,
            TRUE_SHIFT + 0.3 + step[3:], (table, fields), system,
        )  # fmt: skip
        return system

    system = terms(np.zeros(5))
    for parameter in range(5):
        # the reference has kinks: a wide difference is compared with a loose tolerance
        step = np.zeros(5)
        step[parameter] = 2e-3
        ahead, behind = terms(step), terms(-step)
        slopes = (ahead[8, :2] - behind[8, :2]) / 4e-3
        expected = np.array([system[5, parameter], 2 * system[6, parameter]])
        np.testing.assert_allclose(slopes, expected, rtol=0.05, atol=0.02 * abs(slopes).max())
    matrix = np.tril(system[:5, :5]) + np.tril(system[:5, :5], -1).T
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_step_solves_the_damped_normal_equations():
    random = np.random.default_rng(0)
    root = random.normal(size=(5, 7))
    system = np.zeros((9, 5))
    system[:5], system[5:7] = root @ root.T, random.normal(size=(2, 5))
    assert poses.solve_step(system, 0.7, 0.1, np.empty((5, 5)))
    matrix = root @ root.T * 0.49
    matrix[np.diag_indices(5)] *= 1.1
    right = 0.7 * system[5] - 0.49 * system[6]
    np.testing.assert_allclose(system[7], np.linalg.solve(matrix, right), rtol=1e-8)


def test_no_step_where_the_matrix_is_singular():
    assert not poses.solve_step(np.zeros((9, 5)), 1.0, 0.1, np.empty((5, 5)))


@pytest.mark.parametrize("step", [(0, 0, 0), (1e-9, 0, 0), (0.3, -0.2, 0.5), (0, 0, 3.0)])
def test_turned_is_a_turn_about_the_images_axes(step):
    out = np.empty((3, 3))
    poses.turned(TRUE_TURN, np.array([*step, 0.0, 0.0]), out)
    expected = TRUE_TURN @ Rotation.from_rotvec(step).as_matrix()
    np.testing.assert_allclose(out, expected, atol=1e-12)
