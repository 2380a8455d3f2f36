"""Poses about the best ones have the weights that their likelihoods give them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from mpipar.cryoem import alignment, pose_spread
from mpipar.cryoem.alignment import Peaks, Poses, SearchPlan, climb, make_reference
from mpipar.cryoem.fourier import components, image_components
from mpipar.cryoem.pose_spread import PoseSpread, at_best, deviates, log_density
from tests.support import naive

BOX, RADIUS = 32, 12
WANTED = components(BOX, 15)
MOLECULE = naive.blobs(BOX, seed=1)
REFERENCE = make_reference(MOLECULE.volume(BOX), RADIUS)
TURN = Rotation.random(random_state=8).as_matrix()
PLAN = SearchPlan(8, 10, RADIUS, 12.0, 3.0, 1.0, 24, 4, free_scale=False, exhaustive=True)


def data_of(deviation: float, turn: np.ndarray = TURN, seed: int = 0) -> np.ndarray:
    """What scoring needs of one image with noise of this deviation in each component's parts."""
    image = image_components(MOLECULE.image(BOX, turn)[None].astype(np.float32), WANTED)
    noise = np.random.default_rng(seed).normal(size=(2, *image.shape)) * deviation
    ones = np.ones(image.shape, np.float32)
    noisy = (image + noise[0] + 1j * noise[1]).astype(np.complex64)
    return alignment.weigh(noisy, ones, ones[0] / np.float32(2 * deviation**2))


def peaks_of(data: np.ndarray, *turns: np.ndarray) -> Peaks:
    start = Poses(np.array(turns), np.zeros((len(turns), 2)), np.zeros(len(turns)))
    return climb(REFERENCE, WANTED, data[0], start, PLAN, (RADIUS, 20))


def spread_with(seed: int) -> PoseSpread:
    return PoseSpread(WANTED, PLAN, BOX / 3, 1.0, deviates(np.random.SeedSequence(seed)))


def turned_from(peak: Peaks, rotations: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(peak.rotations[0].T @ rotations).as_rotvec()


def test_deviates_have_no_mean_and_variance_one():
    points = deviates(np.random.SeedSequence(3))
    assert points.shape == (pose_spread.DRAWN, 5)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(points.T @ points / len(points), np.eye(5), atol=1e-12)


def test_image_that_tells_its_pose_keeps_the_best():
    data = data_of(0.01)
    peaks = peaks_of(data, TURN)
    found = spread_with(0).about(REFERENCE, np.repeat(data, 2, axis=0), [peaks, peaks])
    assert found.image.tolist() == [0, 1]
    assert found.weight.tolist() == [1, 1]
    np.testing.assert_array_equal(found.rotations[1], peaks.rotations[0])
    np.testing.assert_array_equal(found.shifts[1], peaks.shifts[0])


def test_weights_are_the_posterior_of_a_weak_image():
    """Against a hundred thousand poses that are drawn evenly."""
    data = data_of(1.2)
    peaks = peaks_of(data, TURN)
    tries = [spread_with(seed).about(REFERENCE, data, [peaks]) for seed in range(40)]
    assert all(found.weight.sum() == pytest.approx(1) for found in tries)
    assert min(len(found.weight) for found in tries) > 10
    moments = np.mean([moments_of(peaks, found) for found in tries], axis=0)
    rng = np.random.default_rng(1)
    steps = rng.uniform(-1, 1, size=(100_000, 5)) * [0.25, 0.25, 0.25, 0.8, 0.8]
    turns = peaks.rotations[0] @ Rotation.from_rotvec(steps[:, :3]).as_matrix()
    likelihood = 2 * scores(data, turns, peaks.shifts[0] + steps[:, 3:])
    weight = np.exp(likelihood - logsumexp(likelihood))
    expected = weight @ steps**2
    np.testing.assert_allclose(moments, expected, rtol=0.35)
    assert 2 < np.degrees(np.sqrt(expected[:3].max())) < 15  # weak, but not without any pose


def scores(data: np.ndarray, turns: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    count = WANTED.within(RADIUS)
    found = np.empty(len(turns))
    for start in range(0, len(turns), 5000):
        part = slice(start, start + 5000)
        slices = alignment.slices_of(REFERENCE, turns[part], WANTED.frequencies[:count])
        moves = alignment.phases(shifts[part], WANTED.frequencies[:count], BOX)
        model = slices.view(np.complex64) * moves.conj()
        image = data[0, :count, 0] + 1j * data[0, :count, 1]
        cross = (model.conj() * image).real.sum(axis=1)
        found[part] = cross - 0.5 * (np.abs(model) ** 2 @ data[0, :count, 2])
    return found


def moments_of(peaks: Peaks, found: pose_spread.WeightedPoses) -> np.ndarray:
    turned = turned_from(peaks, found.rotations)
    steps = np.concatenate([turned, found.shifts - peaks.shifts[0]], axis=1)
    return np.asarray(found.weight @ steps**2)


@pytest.mark.parametrize("likeness", [1.0, 0.8])
def test_two_peaks_share_by_their_likelihoods(likeness):
    """A particle that is its own mate by half a turn, or almost."""
    volume = MOLECULE.volume(BOX)
    mate = np.roll(volume[:, ::-1, ::-1], (1, 1), (1, 2))  # half a turn about z
    reference = make_reference(np.float32(volume + likeness * mate), RADIUS)
    sliced = alignment.slices_of(reference, TURN[None], WANTED.frequencies).view(np.complex64)
    ones = np.ones(sliced.shape, np.float32)
    data = alignment.weigh(sliced, ones, ones[0] / np.float32(2 * 2.0**2))
    data[:, 0] = 0
    turns = np.array([TURN, np.diag([-1.0, -1.0, 1.0]) @ TURN])
    start = Poses(turns, np.zeros((2, 2)), np.zeros(2))
    peaks = climb(reference, WANTED, data[0], start, PLAN, (RADIUS, 20))
    shares = []
    for seed in range(20):
        found = spread_with(seed).about(reference, data, [peaks])
        near = np.linalg.norm(turned_from(peaks, found.rotations), axis=1) < math.radians(90)
        shares.append(found.weight[near].sum())
    odds = 2 * (peaks.score[0] - peaks.score[1])
    assert (odds > 0.3) == (likeness < 1)
    assert np.mean(shares) == pytest.approx(1 / (1 + math.exp(-odds)), abs=0.08)


def test_density_of_drawn_poses_is_a_normal_one():
    covariance = np.diag([0.02, 0.01, 0.03, 0.5, 0.2]) ** 2
    factor = np.linalg.cholesky(covariance)[None]
    peaks = Peaks(TURN[None], np.zeros((1, 2)), np.zeros(1), np.eye(5)[None])
    steps = np.random.default_rng(0).normal(size=(6, 5)) @ factor[0].T
    turns = TURN @ Rotation.from_rotvec(steps[:, :3]).as_matrix()
    found = log_density(peaks, factor, turns, steps[:, 3:])
    expected = multivariate_normal(np.zeros(5), covariance).logpdf(steps)
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-6)


def test_at_best_gives_each_image_its_pose():
    best = Poses(np.tile(TURN, (3, 1, 1)), np.arange(6.0).reshape(3, 2), np.arange(3.0))
    found = at_best(best)
    assert found.image.tolist() == [0, 1, 2]
    assert found.weight.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(found.shifts, best.shifts)
