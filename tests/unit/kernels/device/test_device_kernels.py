"""Each kernel for a GPU against its twin for the processor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem import alignment, pose_spread, reconstruction
from mpipar.cryoem.alignment import Poses, SearchPlan
from mpipar.cryoem.fourier import components
from mpipar.kernels import scores
from tests.support.naive import blobs
from tests.support.simulated import few_threads, only_simulated, simulated_device

__all__ = ["few_threads"]

pytestmark = [only_simulated, pytest.mark.usefixtures("few_threads")]

BOX, RADIUS = 16, 6
WANTED = components(BOX, RADIUS)
TURNS = Rotation.random(3, random_state=1).as_matrix()
REFERENCE = alignment.make_reference(blobs(BOX).volume(BOX), RADIUS)
PLAN = SearchPlan(4, 5, RADIUS, 60.0, 2.0, 1.0, 4, 2, free_scale=False, exhaustive=True)


@pytest.fixture
def there():
    """The device, and the reference and components on it."""
    from mpipar.cryoem.device import device_alignment, device_images

    on = simulated_device()
    reference = device_alignment.reference_on(on, REFERENCE.transform, BOX)
    return on, reference, device_images.components_on(on, WANTED)


def noisy_data(wanted) -> np.ndarray:
    """Data of an image of each turn, from `weigh`, for components in the order of `wanted`."""
    clean = alignment.slices_of(REFERENCE, TURNS, wanted.frequencies).view(np.complex64)
    random = np.random.default_rng(0)
    noise = (random.normal(size=clean.shape) + 1j * random.normal(size=clean.shape)) * 0.3
    ctf = random.uniform(-1, 1, clean.shape).astype(np.float32)
    return alignment.weigh(
        (clean * ctf + noise).astype(np.complex64), ctf, np.ones(clean.shape[1], np.float32)
    )


def test_slices_are_those_of_the_processor_and_padding_is_zero(there):
    from mpipar.cryoem.device import device_alignment

    on, reference, wanted = there
    count, turns = len(WANTED.shell), on.to_device(TURNS)
    found = on.to_host(device_alignment.slices_of(reference, turns, wanted.frequencies, count + 3))
    expected = alignment.slices_of(REFERENCE, TURNS, wanted.host.frequencies).view(np.complex64)
    np.testing.assert_allclose(found[:, :count], expected, atol=1e-5 * np.abs(expected).max())
    assert not found[:, count:].any()


def test_stand_in_for_cupy_refuses_arrays_of_the_host(there):
    on, _, _ = there
    mine = on.xp.ones(2)
    for mix in (lambda: mine + np.ones(2), lambda: on.xp.where(mine > 0, np.ones(2), mine)):
        with pytest.raises(TypeError, match="an array of the host"):
            mix()
    with pytest.raises(AssertionError, match="waits"):
        bool(mine.sum(keepdims=True) > 0)


def test_components_are_the_same_in_each_shell(there):
    _, _, wanted = there
    for shell in range(RADIUS + 1):
        mine = wanted.host.frequencies[WANTED.shell == shell]
        assert set(map(tuple, mine)) == set(map(tuple, WANTED.frequencies[WANTED.shell == shell]))


def test_inserted_sums_are_those_of_the_processor(there):
    from mpipar.cryoem.device import device_images

    on, _, wanted = there
    values = noisy_data(wanted.host)
    scales = reconstruction.fixed_point(10.0, 10.0, 3)
    expected = reconstruction.empty_sums(RADIUS)
    reconstruction.insert(expected, values, TURNS, wanted.host, scales)
    sums = on.xp.zeros(expected.size, np.int64)
    there_too = on.to_device(values), on.to_device(TURNS)
    device_images.insert(sums, expected.shape, *there_too, wanted.frequencies, scales)
    difference = np.abs(on.to_host(sums).reshape(expected.shape) - expected).max()
    assert difference <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("free_scale", [False, True])
def test_best_shift_is_the_first_largest(there, free_scale):
    from mpipar.kernels.device import device_scores
    from mpipar.kernels.device.device_code import launch

    random = np.random.default_rng(0)
    products = random.integers(-5, 5, (2, 4, 7)).astype(np.float32)  # image, shift, orientation
    quadratic = random.uniform(0, 5, (2, 7)).astype(np.float32)
    best, which = np.empty((2, 7), np.float32), np.empty((2, 7), np.int16)
    launch(device_scores.best_over_shifts, 1, 16, (products, quadratic, free_scale, best, which))
    np.testing.assert_array_equal(which, products.argmax(axis=1))
    expected = alignment.grid_score(products.max(axis=1), quadratic, free_scale)
    np.testing.assert_allclose(best, expected, rtol=1e-6)


def test_picked_orientations_are_those_of_the_greedy_walk():
    from mpipar.kernels.device import device_scores
    from mpipar.kernels.device.device_code import launch

    turns = Rotation.random(300, random_state=2).as_matrix().astype(np.float32)
    score = np.random.default_rng(0).integers(0, 50, (2, 300)).astype(np.float32)  # many equals
    picks = np.empty((2, 6), np.int32)
    trace = 1 + 2 * math.cos(math.radians(50))
    launch(
        device_scores.pick_distinct, 2, device_scores.PICKERS, (score.copy(), turns, trace, picks)
    )
    for b in range(2):
        expected = np.full(6, -1, np.int64)
        order = np.lexsort((np.arange(300), -score[b]))
        scores.pick_distinct(order, turns, trace, expected)
        np.testing.assert_array_equal(picks[b], expected)


def test_no_pick_where_all_are_close():
    from mpipar.kernels.device import device_scores
    from mpipar.kernels.device.device_code import launch

    turns = np.repeat(np.eye(3, dtype=np.float32)[None], 5, axis=0)
    score, picks = np.array([[1, 3, 3, 0, 2]], np.float32), np.empty((1, 3), np.int32)
    launch(device_scores.pick_distinct, 1, device_scores.PICKERS, (score, turns, 2.9, picks))
    assert picks.tolist() == [[1, -1, -1]]


@pytest.mark.parametrize("free_scale", [False, True])
def test_climb_ends_where_the_processors_ends(there, free_scale):
    from dataclasses import replace

    from mpipar.cryoem.device import device_alignment
    from mpipar.cryoem.device.device_alignment import DevicePoses

    on, reference, wanted = there
    plan = replace(PLAN, free_scale=free_scale)
    data = noisy_data(wanted.host)
    near = TURNS @ Rotation.from_rotvec([0.1, -0.05, 0.08]).as_matrix()
    shifts = np.full((3, 2), 0.4)
    owners = np.array([0, -1, 2], np.int32)
    poses = DevicePoses.of(on.xp, *map(on.to_device, (near.copy(), shifts.copy(), owners)))
    device_alignment.climb(reference, wanted, on.to_device(data), poses, plan, (RADIUS, 10))
    found = Poses(*map(on.to_host, (poses.rotations, poses.shifts, poses.score)))
    assert found.score[1] == -math.inf
    np.testing.assert_array_equal(found.rotations[1], near[1])
    for b in (0, 2):
        start = Poses(near[b : b + 1], shifts[b : b + 1], np.zeros(1))
        expected = alignment.climb(REFERENCE, wanted.host, data[b], start, plan, (RADIUS, 10))
        assert found.score[b] == pytest.approx(expected.score[0], rel=1e-4)
        np.testing.assert_allclose(found.rotations[b], expected.rotations[0], atol=2e-3)
        np.testing.assert_allclose(found.shifts[b], expected.shifts[0], atol=5e-3)
        curvature = expected.curvature[0]
        largest = np.abs(curvature).max()
        found_too = on.to_host(poses.curvature)[b]
        np.testing.assert_allclose(found_too, curvature, rtol=0.05, atol=0.01 * largest)


def test_best_poses_are_kept_as_the_processor_keeps_them():
    from mpipar.kernels.device import device_scores
    from mpipar.kernels.device.device_code import launch

    random = np.random.default_rng(3)
    turns = Rotation.from_rotvec(random.normal(0, 0.01, (8, 3))).as_matrix()[None]
    shifts = random.normal(0, 0.2, (1, 8, 2))
    score = random.integers(0, 12, (1, 8)).astype(np.float64)
    score[0, 5] = -math.inf
    picks = np.empty((1, 4), np.int32)
    limits = (8.0 * math.sin(math.radians(0.5) / 2) ** 2, 0.25**2, 10.0)
    launch(device_scores.keep_best, 1, 32, (turns, shifts, score, limits, picks))
    order = np.argsort(-score[0, score[0] > -math.inf], kind="stable")
    there = np.flatnonzero(score[0] > -math.inf)[order]
    poses = Poses(turns[0, there], shifts[0, there], score[0, there])
    kept = alignment.near_best(alignment.first(alignment.distinct(poses), 4), 10.0)
    chosen = picks[0][picks[0] >= 0]
    np.testing.assert_array_equal(turns[0, chosen], kept.rotations)
    np.testing.assert_array_equal(picks[0][len(chosen) :], -1)


@pytest.mark.parametrize("noise", [0.02, 6.0])
def test_poses_near_the_best_are_drawn_and_weighed_as_on_the_processor(there, noise):
    from mpipar.cryoem.device import device_alignment, device_spread

    on, reference, wanted = there
    data = noisy_data(wanted.host) / np.float32(noise**2)
    starts = np.stack([TURNS, TURNS @ Rotation.from_euler("y", 3, degrees=True).as_matrix()], 1)
    starts[2, 1] = Rotation.from_euler("x", 75, degrees=True).as_matrix()
    points = pose_spread.deviates(np.random.SeedSequence(4))[::4]
    radius, covered = BOX / 3, 0.4
    peaks = [
        alignment.climb(
            REFERENCE,
            wanted.host,
            data[b],
            Poses(starts[b], np.zeros((2, 2)), np.zeros(2)),
            PLAN,
            (RADIUS, 1),
        )
        for b in range(3)
    ]
    spread = pose_spread.PoseSpread(wanted.host, PLAN, radius, covered, points)
    expected = spread.about(REFERENCE, data, peaks)
    names = ("rotations", "shifts", "score", "curvature")
    arrays = {name: np.stack([getattr(each, name) for each in peaks]) for name in names}
    owners = np.repeat(np.arange(3, dtype=np.int32)[:, None], 2, axis=1)
    mixed = {name: on.to_device(values[:, ::-1]) for name, values in arrays.items()}
    found = device_alignment.DevicePoses(owners=on.to_device(owners), **mixed)
    twin = device_spread.DeviceSpread(on, wanted, PLAN, (radius, covered), points)
    poses = twin.about(reference, on.to_device(data), found)
    np.testing.assert_array_equal(on.to_host(poses.image), expected.image)
    np.testing.assert_allclose(on.to_host(poses.rotations), expected.rotations, atol=1e-9)
    np.testing.assert_allclose(on.to_host(poses.shifts), expected.shifts, atol=1e-9)
    np.testing.assert_allclose(on.to_host(poses.weight), expected.weight, rtol=1e-2, atol=1e-5)
    assert (len(poses.image) == 3) == (noise < 1)
