"""Poses planted in images are found again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem import alignment
from mpipar.cryoem.alignment import (
    GridSearch,
    Poses,
    Reference,
    SearchPlan,
    best_of,
    climb,
    distinct,
    find_poses,
    first,
    grid_score,
    joined,
    make_reference,
    near_best,
)
from mpipar.cryoem.fourier import components, image_components
from mpipar.cryoem.orientation_grids import orientation_grid
from mpipar.cryoem.rotations import angle_between
from mpipar.cryoem.search_plan import Sampling, plan_search
from mpipar.cryoem.symmetry import operators
from tests.support import naive

BOX, RADIUS, COUNT = 32, 12, 5
WANTED = components(BOX, 15)
MOLECULE = naive.blobs(BOX, seed=1)
TURNS = Rotation.random(COUNT, random_state=8).as_matrix()
SHIFTS = np.array([[0, 0], [1.3, -0.6], [-2.2, 1.1], [0.4, 2.4], [-1.7, -1.9]])
PLAN = SearchPlan(
    coarse_radius=8,
    middle_radius=10,
    radius=RADIUS,
    step=12.0,
    shift_range=3.0,
    shift_step=1.0,
    candidates=24,
    survivors=4,
    free_scale=False,
    exhaustive=True,
)
NOWHERE = Poses(np.tile(np.eye(3), (COUNT, 1, 1)), np.zeros((COUNT, 2)), np.full(COUNT, -np.inf))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference(MOLECULE.volume(BOX), RADIUS)


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    """Images with CTF and some noise."""
    pairs = zip(TURNS, SHIFTS, strict=True)
    images = np.array([MOLECULE.image(BOX, turn, tuple(shift)) for turn, shift in pairs])
    ctf = np.cos(0.25 * WANTED.distance)[None].repeat(COUNT, axis=0).astype(np.float32)
    spectra = image_components(images.astype(np.float32), WANTED) * ctf
    deviation = 0.05
    noise = np.random.default_rng(0).normal(size=(2, *spectra.shape)) * deviation
    weights = np.full(len(WANTED.shell), 1 / deviation**2, np.float32)
    weighed = alignment.weigh(
        (spectra + noise[0] + 1j * noise[1]).astype(np.complex64), ctf, weights
    )
    weighed[:, 0] = 0
    return weighed


GRID = orientation_grid(PLAN.step, operators("C1"), np.random.SeedSequence(0), half_turn=True)


@pytest.fixture(scope="module")
def grid(reference) -> GridSearch:
    return GridSearch(reference, GRID, PLAN, WANTED)


def grid_with(reference: Reference, orientations: np.ndarray, **changed: Any) -> GridSearch:
    return GridSearch(reference, orientations.astype(np.float32), replace(PLAN, **changed), WANTED)


def test_grid_search_has_the_planted_pose_among_its_first(grid, data):
    found = grid.best_candidates(data, np.zeros((COUNT, 2)))
    for image, turn, shift in zip(found, TURNS, SHIFTS, strict=True):
        assert (np.diff(image.score) <= 0).all()
        near = angle_between(image.rotations, turn) < PLAN.step
        near &= np.hypot(*(image.shifts - shift).T) < 1.5
        assert near[:6].any()


def test_candidates_are_well_apart(grid, data):
    for image in grid.best_candidates(data, np.zeros((COUNT, 2))):
        angles = angle_between(image.rotations[:, None], image.rotations[None])
        assert angles[~np.eye(len(angles), dtype=bool)].min() > 1.19 * PLAN.step


def find(reference: Reference, *rest: Any) -> Poses:
    """The best pose of each image."""
    return best_of(find_poses(reference, WANTED, *rest))


@pytest.mark.parametrize("free", [False, True])
def test_poses_are_found_from_nothing(reference, grid, data, free):
    plan = replace(PLAN, free_scale=free)
    search = GridSearch(reference, GRID, plan, WANTED)
    found = find(reference, data, NOWHERE, plan, (search, np.ones(COUNT, bool)))
    assert angle_between(found.rotations, TURNS).max() < 1.5
    assert np.abs(found.shifts - SHIFTS).max() < 0.1
    assert (found.score > 0).all()


def test_images_that_need_no_search_climb_from_where_they_were(reference, grid, data):
    off = Rotation.from_rotvec(np.radians([3, -2, 2])).as_matrix()
    near = Poses(TURNS @ off, SHIFTS + 0.4, np.zeros(COUNT))
    alone = find(reference, data, near, PLAN, None)
    assert angle_between(alone.rotations, TURNS).max() < 1.5
    none = find(reference, data, near, PLAN, (grid, np.zeros(COUNT, bool)))
    np.testing.assert_array_equal(none.rotations, alone.rotations)


def test_known_poses_stay_candidates(reference, data):
    """A search that finds nothing good cannot make a good pose worse."""
    known = Poses(TURNS, SHIFTS, np.zeros(COUNT))
    elsewhere = TURNS[::-1] @ Rotation.from_euler("x", 90, degrees=True).as_matrix()
    search = grid_with(reference, elsewhere), np.ones(COUNT, bool)
    found = find(reference, data, known, PLAN, search)
    assert angle_between(found.rotations, TURNS).max() < 1.5


def test_grid_scores_are_the_likelihoods_of_its_poses(reference, data):
    orientations = Rotation.random(5, random_state=3).as_matrix()
    search = grid_with(reference, orientations, candidates=5, step=0.1)
    found = search.best_candidates(data[:1], np.array([[1.0, 0.0]]))[0]
    count = WANTED.within(PLAN.coarse_radius)
    shifts = np.array([1.0, 0.0]) + alignment.shift_grid(3.0, 1.0)
    for rotation, shift, score in zip(found.rotations, found.shifts, found.score, strict=True):
        flat = alignment.slices_of(reference, rotation[None], WANTED.frequencies[:count])
        model = flat.view(np.complex64)[0]
        image = data[0, :count, 0] + 1j * data[0, :count, 1]
        moved = image * alignment.phases(shifts, WANTED.frequencies[:count], BOX)
        cross = (model.conj() * moved).real.sum(axis=1)
        quadratic = (data[0, :count, 2] * np.abs(model) ** 2).sum()
        assert score == pytest.approx(cross.max() - quadratic / 2, rel=1e-3, abs=0.1)
        np.testing.assert_allclose(shift, shifts[cross.argmax()])


@pytest.mark.parametrize("count", [1, 3, 20])
def test_grid_with_fewer_orientations_than_candidates(reference, data, count):
    search = grid_with(reference, Rotation.random(count, random_state=0).as_matrix())
    for image in search.best_candidates(data, np.zeros((COUNT, 2))):
        assert 1 <= len(image.score) <= 2 * count


def test_grid_of_a_high_symmetry(reference, data):
    orientations = orientation_grid(10.0, operators("I"), np.random.SeedSequence(0))
    found = grid_with(reference, orientations).best_candidates(data, np.zeros((COUNT, 2)))
    assert all(len(image.score) == PLAN.candidates for image in found)


def test_grid_of_one_shift(reference, data):
    orientations = Rotation.random(50, random_state=0).as_matrix()
    search = grid_with(reference, orientations, shift_range=0.5)
    centres = np.arange(2.0 * COUNT).reshape(COUNT, 2)
    for centre, image in zip(centres, search.best_candidates(data, centres), strict=True):
        np.testing.assert_array_equal(image.shifts, np.broadcast_to(centre, image.shifts.shape))


def test_a_block_is_as_good_as_its_images_one_by_one(grid, data, monkeypatch):
    together = grid.best_candidates(data, SHIFTS)
    monkeypatch.setattr(alignment, "COLUMNS_PER_PRODUCT", 1)
    for one, apart in zip(together, grid.best_candidates(data, SHIFTS), strict=True):
        np.testing.assert_allclose(one.score, apart.score, rtol=1e-5)
        np.testing.assert_array_equal(one.rotations[0], apart.rotations[0])


@pytest.mark.parametrize("free", [False, True])
def test_empty_reference_gives_no_nan(grid, data, free):
    plan = replace(PLAN, free_scale=free)
    empty = make_reference(np.zeros((BOX,) * 3, np.float32), RADIUS)
    search = GridSearch(empty, GRID[:200], plan, WANTED), np.ones(COUNT, bool)
    found = find(empty, data, NOWHERE, plan, search)
    np.testing.assert_array_equal(found.score, 0)
    assert np.isfinite(found.rotations).all()
    assert np.isfinite(found.shifts).all()
    assert found.rotations.shape == (COUNT, 3, 3)


@pytest.mark.parametrize("grey", [1e-12, 1.0, 1e12])
def test_free_scale_scores_do_not_depend_on_the_grey_scale(reference, grid, data, grey):
    plan = replace(PLAN, free_scale=True)
    scaled = replace(reference, transform=reference.transform * np.float32(grey))
    found = GridSearch(scaled, GRID[:500], plan, WANTED)._score(data, SHIFTS)[0]
    plain = GridSearch(reference, GRID[:500], plan, WANTED)._score(data, SHIFTS)[0]
    np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-3 * plain.max())


@pytest.mark.parametrize(("box", "resolved"), [(8, 2), (12, 3), (16, 2), (20, 9), (32, 5)])
@pytest.mark.parametrize("fill", [0.4, 0.98])
def test_small_boxes_work(box, resolved, fill):
    """From the plan to the poses, for a box as small as people may try."""
    sampling = Sampling(box, fill * box, box // 2 - 1)
    plan = plan_search(sampling, resolved, exhaustive=True, free_scale=True)
    wanted = components(box, sampling.insertion_radius(plan.radius, last=False))
    molecule = naive.blobs(box)
    reference = make_reference(molecule.volume(box), plan.radius)
    images = np.array([molecule.image(box, turn) for turn in TURNS[:3]], np.float32)
    ones = np.ones((3, len(wanted.shell)), np.float32)
    data = alignment.weigh(image_components(images, wanted), ones, ones[0] * 100)
    orientations = orientation_grid(20.0, operators("C2"), np.random.SeedSequence(0))
    search = GridSearch(reference, orientations, plan, wanted), np.ones(3, bool)
    found = best_of(find_poses(reference, wanted, data, first(NOWHERE, 3), plan, search))
    assert np.isfinite(found.score).all()
    assert found.rotations.shape == (3, 3, 3)


def test_climb_returns_its_poses_best_first(reference, data):
    start = Poses(TURNS, np.zeros((COUNT, 2)), np.zeros(COUNT))
    found = climb(reference, WANTED, data[2], start, PLAN, (RADIUS, 8))
    assert len(found.score) == COUNT
    assert (np.diff(found.score) <= 0).all()
    assert angle_between(found.rotations[0], TURNS[2]) < 1.5
    np.testing.assert_array_equal(start.rotations, TURNS)  # left alone
    np.testing.assert_array_equal(start.shifts, 0)


def scored(*score: float) -> Poses:
    count = len(score)
    turns = Rotation.from_euler("z", np.arange(count)[:, None] * 10.0, degrees=True).as_matrix()
    return Poses(turns, np.zeros((count, 2)), np.array(score))


def test_first_and_joined():
    assert first(scored(3, 2, 1), 2).score.tolist() == [3, 2]
    assert joined(scored(3, 2), scored(5), scored(4)).score.tolist() == [3, 2, 5, 4]


@pytest.mark.parametrize(
    ("score", "kept"), [((30, 25, 20.1, 20, 5), 3), ((30,), 1), ((np.nan, np.nan), 1)]
)
def test_near_best_keeps_those_close_behind_and_never_none(score, kept):
    assert len(near_best(scored(*score), 10.0).score) == kept


def test_distinct_drops_poses_that_met():
    turns = Rotation.from_rotvec(
        np.radians([0, 0.3, 0.3, 2.0, 0.0])[:, None] * [0, 0, 1]
    ).as_matrix()
    shifts = np.array([[0, 0], [0, 0.1], [0.5, 0], [0, 0], [0.1, 0.1]])
    kept = distinct(Poses(turns, shifts, np.arange(5.0)[::-1]))
    assert kept.score.tolist() == [4, 2, 1]  # near in angle and shift: dropped; far in either: kept


def test_grid_score():
    cross, quadratic = np.array([3, -3, 2], np.float32), np.array([2, 2, 0], np.float32)
    np.testing.assert_allclose(grid_score(cross, quadratic, free_scale=False), [2, -4, 2])
    free = grid_score(cross, quadratic, free_scale=True)
    np.testing.assert_allclose(free[:2], [2.25, 0], rtol=1e-6)
    assert np.isfinite(
        grid_score(np.zeros(1, np.float32), np.zeros(1, np.float32), free_scale=True)
    ).all()
