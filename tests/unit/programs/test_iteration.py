"""One iteration as pure steps: sums that cannot overflow, the next state."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mpipar.cryoem import reconstruction, symmetry
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.fourier import components
from mpipar.cryoem.matches import Matches
from mpipar.cryoem.search_plan import plan_search
from mpipar.programs import iteration
from mpipar.programs.stages import AlignResult
from tests.support.small_refinement import Small, small

if TYPE_CHECKING:
    from numpy.typing import NDArray

BOX, RADIUS = 16, 7
LARGEST = 2**62


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("input"))


def one_slice(
    scales: reconstruction.FixedPoint,
    largest: NDArray[np.float64],
    noise: NDArray[np.float64],
    contrast: float,
    rotation: Rotation,
) -> NDArray[np.int64]:
    """Sums of one image whose every component is as large as the data set's bounds allow."""
    wanted = components(BOX, RADIUS)
    values = np.empty((1, len(wanted.shell), 3), np.float32)
    weight = 1.0 / noise[wanted.shell]
    values[..., 0] = values[..., 1] = largest[wanted.shell] * contrast * weight / np.sqrt(2)
    values[..., 2] = contrast**2 * weight
    sums = reconstruction.empty_sums(RADIUS)
    reconstruction.insert(sums, values, rotation.as_matrix()[None], wanted, scales)
    return sums


@settings(deadline=None, max_examples=60)
@given(
    exponents=st.lists(st.floats(-15, 15), min_size=RADIUS + 1, max_size=RADIUS + 1),
    spectrum=st.lists(st.floats(-12, 12), min_size=RADIUS + 1, max_size=RADIUS + 1),
    contrast=st.floats(1, 100),
    count=st.sampled_from([4, 1000, 10_000_000]),
    seed=st.integers(0, 10**6),
)
def test_no_sum_can_overflow(
    made: Small,
    exponents: list[float],
    spectrum: list[float],
    contrast: float,
    count: int,
    seed: int,
) -> None:
    """Not even if all images of a half set are as bright as the brightest, and of one pose."""
    largest, noise = 10.0 ** np.array(exponents), 10.0 ** np.array(spectrum)
    data = dataclasses.replace(
        made.data, largest=largest, largest_ctf=contrast, half=np.tile([1, 2], count)
    )
    state = dataclasses.replace(made.state, noise=np.stack([noise, noise * 3]))
    scales = iteration.fixed_point(data, state)
    sums = one_slice(scales, largest, noise, contrast, Rotation.random(random_state=seed))
    biggest = max(int(sums.max()), -int(sums.min()))
    assert biggest * count < LARGEST
    # and the integers are long enough: what one image adds at most is known to a millionth
    assert int(np.abs(sums[..., :2]).max()) > 2**20
    assert int(np.abs(sums[..., 2]).max()) > 2**20


def test_the_larger_half_set_counts(made: Small) -> None:
    def scales(first: int, second: int) -> reconstruction.FixedPoint:
        half = np.array([1] * first + [2] * second, np.int8)
        return iteration.fixed_point(dataclasses.replace(made.data, half=half), made.state)

    assert scales(10, 1000) == scales(1000, 10) == scales(1000, 1000)
    assert scales(10, 10).value > scales(10, 1000).value
    assert scales(10, 10).weight > scales(10, 1000).weight


def test_shared_arrays_change_with_the_iteration_and_the_seed_only(made: Small) -> None:
    plan = plan_search(made.data.sampling, 5, exhaustive=True, free_scale=False)

    def orientations(**changes: int) -> NDArray[np.generic]:
        of_data = {name: n for name, n in changes.items() if name == "seed"}
        of_state = {name: n for name, n in changes.items() if name == "iteration"}
        data = dataclasses.replace(made.data, **of_data)  # type: ignore[arg-type]
        state = dataclasses.replace(made.state, **of_state)  # type: ignore[arg-type]
        return iteration.shared_arrays(data, state, plan)["orientations"]

    assert np.array_equal(orientations(), orientations())
    assert not np.array_equal(orientations(), orientations(seed=1))
    assert not np.array_equal(orientations(), orientations(iteration=1))
    local = dataclasses.replace(plan, exhaustive=False)
    without = {"noise", "reference1", "reference2"}
    assert set(iteration.shared_arrays(made.data, made.state, local)) == without | {"deviates"}
    free = dataclasses.replace(local, free_scale=True)  # no likelihood is known
    assert set(iteration.shared_arrays(made.data, made.state, free)) == without


def results_of(made: Small, residual: float) -> list[AlignResult]:
    """Poses that tell whose they are."""
    results = []
    for rows in made.data.blocks:
        turns = Rotation.from_rotvec(np.outer(rows + 1, [0, 0, 0.01])).as_matrix()
        shifts = np.stack([rows, -rows], axis=1).astype(float)
        power = np.full(RADIUS + 1, residual * len(rows))
        matches = Matches(*np.asarray([rows + 1000.0 * term for term in range(4)], np.float64))
        results.append(AlignResult(Poses(turns, shifts, rows.astype(float)), power, matches))
    return results


def test_poses_come_back_in_the_order_of_the_list(made: Small) -> None:
    poses = iteration.collect_poses(
        made.data, [result.poses for result in results_of(made, 1.0)], made.state
    )
    count = np.arange(made.inputs.particles.count)
    np.testing.assert_array_equal(poses.score, count)
    np.testing.assert_array_equal(poses.shifts, np.stack([count, -count], axis=1))
    assert (made.state.poses.score == -np.inf).all(), "the state itself does not change"
    matches = iteration.collect_matches(made.data, results_of(made, 1.0))
    np.testing.assert_array_equal(matches.own_cross, count)
    np.testing.assert_array_equal(matches.held_quadratic, count + 3000.0)


def test_noise_is_the_mean_residual_and_unseen_shells_keep_theirs(made: Small) -> None:
    radius = 4
    results = [
        dataclasses.replace(result, residual=result.residual[: radius + 1])
        for result in results_of(made, 6.0)
    ]
    noise = iteration.updated_noise(made.data, results, radius, made.state)
    wanted = components(BOX, radius)
    per_shell = np.diff(np.append(wanted.starts, len(wanted.shell)))
    np.testing.assert_allclose(noise[:, : radius + 1], np.stack([6.0 / per_shell] * 2))
    np.testing.assert_array_equal(noise[:, radius + 1 :], made.state.noise[:, radius + 1 :])


def test_a_symmetry_mate_is_no_turn(made: Small) -> None:
    count = made.inputs.particles.count
    before = Rotation.random(count, random_state=0).as_matrix()
    known = Poses(before, np.zeros((count, 2)), np.zeros(count))
    mates = symmetry.operators("d3")[np.arange(count) % 6] @ before
    slight = mates @ Rotation.from_rotvec([0, 0, np.radians(2)]).as_matrix()
    data = dataclasses.replace(made.data, symmetry=symmetry.operators("d3"))
    after = dataclasses.replace(known, rotations=slight)
    np.testing.assert_allclose(iteration.orientation_changes(data, known, after), 2.0, atol=1e-6)
    alone = iteration.orientation_changes(made.data, known, after)
    assert np.count_nonzero(alone > 10) >= count * 4 // 6
    unknown = dataclasses.replace(known, score=np.full(count, -np.inf))
    np.testing.assert_array_equal(iteration.orientation_changes(data, unknown, after), 180.0)
