"""Speed of the kernels that a refinement spends its time in; run as plain tests by default.

`pytest tests/bench --benchmark-enable` measures. Divide by the number in `extra_info` for the time
per component.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem.alignment import (
    GridSearch,
    Poses,
    Reference,
    SearchPlan,
    climb,
    make_reference,
    slices_of,
    weigh,
)
from mpipar.cryoem.fourier import components, filter_shells, lowpass_gain
from mpipar.cryoem.orientation_grids import orientation_grid
from mpipar.cryoem.posterior import GridPosterior, SoftPlan
from mpipar.cryoem.reconstruction import (
    OrientationSums,
    empty_sums,
    fixed_point,
    half_sums,
    insert,
)
from mpipar.cryoem.symmetry import operators
from tests.support import naive

BOX, RADIUS, COUNT = 64, 31, 16
WANTED = components(BOX, RADIUS)
TURNS = Rotation.random(COUNT, random_state=0).as_matrix()
PLAN = SearchPlan(
    coarse_radius=9,
    middle_radius=14,
    radius=RADIUS,
    step=10.0,
    shift_range=5.4,
    shift_step=1.8,
    candidates=24,
    survivors=4,
    free_scale=False,
    exhaustive=True,
)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference(naive.blobs(BOX).volume(BOX), RADIUS)


@pytest.fixture(scope="module")
def data(reference: Reference) -> np.ndarray:
    clean = slices_of(reference, TURNS, WANTED.frequencies).view(np.complex64)
    ctf = np.cos(0.3 * WANTED.distance)[None].repeat(COUNT, axis=0).astype(np.float32)
    noise = np.random.default_rng(0).normal(size=(2, *clean.shape))
    images = (clean * ctf + noise[0] + 1j * noise[1]).astype(np.complex64)
    return weigh(images, ctf, np.ones(len(WANTED.shell), np.float32))


def test_extract_slices(benchmark: Any, reference: Reference) -> None:
    benchmark.extra_info["components"] = COUNT * len(WANTED.shell)
    flat = benchmark(slices_of, reference, TURNS, WANTED.frequencies)
    assert flat.shape == (COUNT, 2 * len(WANTED.shell))


@pytest.mark.parametrize(("radius", "steps", "poses"), [(14, 4, 24), (RADIUS, 10, 5)])
def test_climb(
    benchmark: Any, reference: Reference, data: np.ndarray, radius: int, steps: int, poses: int
) -> None:
    off = Rotation.random(poses, random_state=1).as_rotvec() * 0.02
    start = Poses(
        TURNS[:1] @ Rotation.from_rotvec(off).as_matrix(), np.zeros((poses, 2)), np.zeros(poses)
    )
    benchmark.extra_info["components"] = poses * (steps + 1) * WANTED.within(radius)
    found = benchmark(climb, reference, WANTED, data[0], start, PLAN, (radius, steps))
    assert len(found.score) == poses


def test_insert_slices(benchmark: Any, data: np.ndarray) -> None:
    sums, scales = empty_sums(RADIUS), fixed_point(1e3, 1.0, 10**6)
    benchmark.extra_info["components"] = COUNT * len(WANTED.shell)
    benchmark(insert, sums, data, TURNS, WANTED, scales)
    assert sums.any()


def test_grid_search(benchmark: Any, reference: Reference, data: np.ndarray) -> None:
    seed = np.random.SeedSequence(0)
    orientations = orientation_grid(PLAN.step, operators("C2"), seed, half_turn=True)
    search = GridSearch(reference, orientations, PLAN, WANTED)
    benchmark.extra_info["orientations"] = 2 * len(orientations) * COUNT
    found = benchmark(search.best_candidates, data, np.zeros((COUNT, 2)))
    assert len(found) == COUNT


def test_symmetry_average(benchmark: Any, data: np.ndarray) -> None:
    radius = 15
    sums, scales = empty_sums(radius), fixed_point(1e3, 1.0, 100)
    wanted = components(BOX, radius)
    insert(sums, np.ascontiguousarray(data[:, : len(wanted.shell)]), TURNS, wanted, scales)
    halves = benchmark(half_sums, sums, scales, operators("O"), BOX)
    assert halves.weight.any()


SOFT_RADIUS = 11
SOFT_PLAN = SoftPlan(
    radius=SOFT_RADIUS,
    insertion_radius=SOFT_RADIUS,
    step=8.2,
    reach=5.4,
    shift_step=1.45,
    spread=2.0,
    free_scale=False,
)


@pytest.mark.parametrize(("posterior", "shells", "power"), [("flat", 5, 0.3), ("sharp", 11, 200.0)])
def test_soft_iteration(benchmark: Any, posterior: str, shells: int, power: float) -> None:
    """One block of a soft iteration; divide by COUNT for the time per image.

    shells  that the reference has
    power   of the images' signal over noise
    """
    wanted = components(BOX, SOFT_RADIUS)
    truth = naive.blobs(BOX).volume(BOX)
    clean = slices_of(make_reference(truth, SOFT_RADIUS), TURNS, wanted.frequencies)
    noise = 2.0 * float((clean.astype(np.float64) ** 2).sum(axis=1).mean()) / power
    off = np.random.default_rng(0).normal(scale=np.sqrt(noise / 2), size=clean.shape)
    weights = np.full(len(wanted.shell), 1.0 / noise, np.float32)
    images = (clean + off.astype(np.float32)).view(np.complex64)
    data = weigh(images, np.full(images.shape, np.sqrt(0.5), np.float32), weights)
    reference = make_reference(filter_shells(truth, lowpass_gain(BOX, shells)), SOFT_RADIUS)
    grid = orientation_grid(
        SOFT_PLAN.step, operators("C1"), np.random.SeedSequence(1), half_turn=True
    )
    posterior_of = GridPosterior(reference, grid, SOFT_PLAN, wanted, weights)
    sums = OrientationSums(grid, wanted, fixed_point(float(np.abs(data).max()), 1.0, COUNT))

    def block() -> float:
        expected = posterior_of.expect(data, np.zeros((COUNT, 2)))
        sums.add(expected.values, expected.rows)
        return float(expected.found.peak.mean())

    peak = benchmark(block)
    benchmark.extra_info["images"] = COUNT
    assert peak < 0.01 if posterior == "flat" else peak > 0.1
