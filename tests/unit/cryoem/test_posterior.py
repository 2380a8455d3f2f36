"""The posterior over a grid and the expected sums, against a slow twin that visits each pose."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpipar.cryoem import alignment
from mpipar.cryoem.alignment import Reference, make_reference, phases, shift_grid, slices_of
from mpipar.cryoem.fourier import components
from mpipar.cryoem.orientation_grids import orientation_grid
from mpipar.cryoem.posterior import GridPosterior, SoftPlan, compressed, principal
from mpipar.cryoem.rotations import HALF_TURN, angle_between
from mpipar.cryoem.symmetry import operators
from tests.support import naive

if TYPE_CHECKING:
    from numpy.typing import NDArray

BOX, COUNT = 24, 3
PLAN = SoftPlan(
    radius=5,
    insertion_radius=7,
    step=40.0,
    reach=2.0,
    shift_step=1.0,
    spread=1.5,
    free_scale=False,
)
WANTED = components(BOX, PLAN.insertion_radius)
CENTRES = np.array([[0.0, 0.0], [0.5, -1.0], [-2.0, 1.0]])
GRID = orientation_grid(PLAN.step, operators("c1"), np.random.SeedSequence(4), half_turn=True)
NOISE = 400.0
WEIGHTS = np.full(len(WANTED.shell), 1 / NOISE, np.float32)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference(naive.blobs(BOX, seed=1).volume(BOX), PLAN.insertion_radius)


@pytest.fixture(scope="module")
def data(reference: Reference) -> NDArray[np.float32]:
    """Noisy slices in poses near those of the grid."""
    random = np.random.default_rng(5)
    turns = GRID[[3, 8, 20]].astype(np.float64)
    turns[1] = turns[1] @ HALF_TURN
    values = slices_of(reference, turns, WANTED.frequencies).view(np.complex64)
    values = values * phases(CENTRES + np.array([1.0, 0.0]), WANTED.frequencies, BOX).conj()
    noise = random.normal(scale=np.sqrt(NOISE / 2), size=(*values.shape, 2))
    ctf = np.linspace(0.4, 1.0, values.shape[1], dtype=np.float32) * np.ones((COUNT, 1), np.float32)
    images = (ctf * values + noise[..., 0] + 1j * noise[..., 1]).astype(np.complex64)
    return alignment.weigh(images, ctf, WEIGHTS)


@pytest.fixture
def lossless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that are multiplied as they are, so that poses hardly apart do not change places."""
    for name in ("LOST", "LOST_OF_ONE"):
        monkeypatch.setattr(f"mpipar.cryoem.posterior.{name}", 0.0)


def twin(
    reference: Reference, data: NDArray[np.float32], plan: SoftPlan
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Log-likelihoods with prior (b, o, s); sums (o, v, 3) in the frame of each orientation."""
    turns = np.concatenate([GRID, GRID @ HALF_TURN.astype(np.float32)])
    count = WANTED.within(plan.radius)
    slices = slices_of(reference, turns, WANTED.frequencies).view(np.complex64)
    slices = slices.astype(np.complex128)
    slices[:, 0] = 0.0
    shifts = shift_grid(plan.reach, plan.shift_step)
    prior = np.exp(-(shifts**2).sum(axis=1) / (2 * plan.spread**2))
    prior = np.log(prior / prior.sum())
    images = data[..., 0].astype(np.float64) + 1j * data[..., 1]
    likely = np.empty((COUNT, len(turns), len(shifts)))
    moved = np.empty((COUNT, len(shifts), images.shape[1]), complex)
    for b in range(COUNT):
        moved[b] = images[b] * phases(CENTRES[b] + shifts, WANTED.frequencies, BOX)
        for o, one in enumerate(slices):
            cross = (one[:count].conj() * moved[b][:, :count]).real.sum(axis=1)
            power = (np.abs(one[:count]) ** 2 * data[b, :count, 2]).sum()
            fitted = np.maximum(cross, 0) ** 2 / power
            likely[b, o] = (fitted if plan.free_scale else 2 * cross - power) + prior
    weights = np.exp(likely - likely.max(axis=(1, 2), keepdims=True))
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    values = np.einsum("bos,bsv->ov", weights, moved)
    contrast = np.einsum("bos,bv->ov", weights, data[..., 2])
    return likely, weights, np.stack([values.real, values.imag, contrast], axis=2)


@pytest.mark.usefixtures("lossless")
@pytest.mark.parametrize("free_scale", [False, True])
def test_everything_is_as_a_visit_to_each_pose_gives_it(
    reference: Reference, data: NDArray[np.float32], free_scale: bool
) -> None:
    plan = replace(PLAN, free_scale=free_scale)
    likely, weights, sums = twin(reference, data, plan)
    found = GridPosterior(reference, GRID, plan, WANTED, WEIGHTS).expect(data, CENTRES)
    half = len(GRID)
    # the half-turned slice is the conjugate: both are inserted as one
    merged = sums[:half].copy()
    merged += sums[half:] * [1, -1, 1]
    whole = np.zeros_like(merged)
    whole[found.rows] = np.moveaxis(found.values, 0, 2)
    scale = np.abs(merged).max(axis=(0, 1))
    np.testing.assert_allclose(whole / scale, merged / scale, atol=0.02)
    np.testing.assert_allclose(found.values[2].sum(axis=0), data[..., 2].sum(axis=0), rtol=0.02)
    best = weights.sum(axis=2).argmax(axis=1)
    turns = np.concatenate([GRID, GRID @ HALF_TURN.astype(np.float32)])
    assert angle_between(found.found.poses.rotations, turns[best]).max() < 0.1
    np.testing.assert_allclose(found.found.peak, weights.max(axis=(1, 2)), rtol=1e-3)
    evidence = np.log(np.exp(likely).sum(axis=(1, 2)) / (2 * half))
    np.testing.assert_allclose(found.found.evidence, evidence, rtol=1e-3)
    squared = (shift_grid(plan.reach, plan.shift_step) ** 2).sum(axis=1)
    np.testing.assert_allclose(found.found.offset, weights.sum(axis=1) @ squared, rtol=1e-3)
    place = weights[np.arange(COUNT), best].argmax(axis=1)
    shifts = shift_grid(plan.reach, plan.shift_step)
    np.testing.assert_allclose(found.found.poses.shifts, CENTRES + shifts[place])
    prior = -(shifts**2).sum(axis=1) / (2 * plan.spread**2)
    prior -= np.log(np.exp(prior).sum())
    score = 0.5 * (likely[np.arange(COUNT), best, place] - prior[place])
    np.testing.assert_allclose(found.found.poses.score, score, rtol=1e-3)


def test_explained_power_is_that_of_the_expected_slices(
    reference: Reference, data: NDArray[np.float32]
) -> None:
    _, weights, _ = twin(reference, data, PLAN)
    turns = np.concatenate([GRID, GRID @ HALF_TURN.astype(np.float32)])
    count = WANTED.within(PLAN.radius)
    slices = slices_of(reference, turns, WANTED.frequencies[:count]).view(np.complex64)
    slices = slices.astype(np.complex128)
    slices[:, 0] = 0.0
    shifts = shift_grid(PLAN.reach, PLAN.shift_step)
    expected = np.zeros(count)
    for b in range(COUNT):
        image = data[b, :count, 0].astype(np.float64) + 1j * data[b, :count, 1]
        moved = image * phases(CENTRES[b] + shifts, WANTED.frequencies[:count], BOX)
        cross = np.einsum("os,ov,sv->v", weights[b], slices.conj(), moved).real
        power = np.einsum("os,ov->v", weights[b], np.abs(slices) ** 2) * data[b, :count, 2]
        expected += 2 * cross - power
    found = GridPosterior(reference, GRID, PLAN, WANTED, WEIGHTS).expect(data, CENTRES)
    np.testing.assert_allclose(found.explained, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("free_scale", [False, True])
def test_patterns_change_weights_little(
    reference: Reference, data: NDArray[np.float32], free_scale: bool
) -> None:
    plan = replace(PLAN, free_scale=free_scale)
    likely, weights, _ = twin(reference, data, plan)
    grid = GridPosterior(reference, GRID, plan, WANTED, WEIGHTS)
    found = grid.expect(data, CENTRES)
    evidence = np.log(np.exp(likely).sum(axis=(1, 2)) / (2 * len(GRID)))
    np.testing.assert_allclose(found.found.evidence, evidence, atol=0.02)
    np.testing.assert_allclose(found.found.peak, weights.max(axis=(1, 2)), rtol=0.05)


def test_evidence_alone_is_the_same(reference: Reference, data: NDArray[np.float32]) -> None:
    grid = GridPosterior(reference, GRID, PLAN, WANTED, WEIGHTS)
    found = grid.evidence(data, CENTRES)
    np.testing.assert_array_equal(found, grid.expect(data, CENTRES).found.evidence)


def test_groups_of_images_change_nothing(
    reference: Reference, data: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GridPosterior(reference, GRID, PLAN, WANTED, WEIGHTS)
    at_once = grid.expect(data, CENTRES)
    monkeypatch.setattr("mpipar.cryoem.posterior.COLUMNS_PER_PRODUCT", 1)
    monkeypatch.setattr("mpipar.cryoem.posterior.ROWS_PER_PRODUCT", 7)
    one_by_one = grid.expect(data, CENTRES)
    np.testing.assert_allclose(one_by_one.found.evidence, at_once.found.evidence, rtol=1e-5)
    found, expected = (part.values.sum(axis=1, dtype=np.float64) for part in (one_by_one, at_once))
    np.testing.assert_allclose(found, expected, atol=0.04 * np.abs(expected).max())


def test_images_one_by_one_in_their_own_orientations_give_the_same_sums(
    reference: Reference, data: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GridPosterior(reference, GRID, PLAN, WANTED, WEIGHTS)
    found = []
    for share in (0.0, 2.0):  # never, and always
        monkeypatch.setattr("mpipar.cryoem.posterior.OWN_ROWS", share)
        values = np.zeros((3, len(GRID), data.shape[1]), np.float32)
        expected = grid.expect(data, CENTRES)
        values[:, expected.rows] = expected.values
        found.append(values)
    for part in range(3):
        scale = np.abs(found[0][part]).max()
        np.testing.assert_allclose(found[1][part], found[0][part], atol=0.02 * scale)


def test_evidence_of_noise_is_below_zero_on_average(reference: Reference) -> None:
    """Its exponential has the mean 1 whatever the reference, so its mean is below 0 (Jensen)."""
    random = np.random.default_rng(6)
    shape = (400, len(WANTED.shell), 2)
    noise = random.normal(scale=np.sqrt(NOISE / 2), size=shape).astype(np.float32)
    ones = np.ones(shape[:2], np.float32)
    data = alignment.weigh(noise.view(np.complex64)[..., 0], ones, WEIGHTS)
    # a strong reference would need more images than can be had to meet a likely one
    weak = Reference(reference.transform * np.float32(0.3), reference.radius, reference.box)
    evidence = GridPosterior(weak, GRID, PLAN, WANTED, WEIGHTS).evidence(data, np.zeros((400, 2)))
    assert evidence.mean() < 0
    assert abs(np.exp(evidence).mean() - 1.0) < 0.15


def test_compressed_slices_lose_no_more_than_they_may() -> None:
    random = np.random.default_rng(7)
    few = random.normal(size=(5, 40)) * np.linspace(30, 1, 5)[:, None]
    slices = (random.normal(size=(160, 5)) @ few).astype(np.float32)
    slices += random.normal(scale=0.01, size=slices.shape).astype(np.float32)
    weights = np.linspace(0.5, 2.0, 40, dtype=np.float32)
    for allowed, most in ((0.02, 5), (1000.0, 4)):
        amounts, patterns = compressed(slices, weights, np.full(160, allowed))
        assert amounts.shape[1] == len(patterns) <= most
        lost = ((slices - amounts @ patterns) ** 2) @ weights
        assert lost.max() < 1.5 * allowed
    amounts, patterns = compressed(slices, weights, np.zeros(160))
    np.testing.assert_array_equal(amounts @ patterns, slices)


def test_principal_patterns_are_those_of_every_image() -> None:
    random = np.random.default_rng(8)
    strong, weak = random.normal(size=(2, 2, 9))
    values = np.stack(
        [random.normal(size=(50, 2)) @ strong, 1e-4 * random.normal(size=(50, 2)) @ weak], axis=1
    ).astype(np.float32)
    patterns = principal(values)
    assert patterns.shape == (4, 9)
    np.testing.assert_allclose(patterns @ patterns.T, np.eye(4), atol=1e-5)
    for b in range(2):
        kept = values[:, b] @ patterns.T @ patterns
        np.testing.assert_allclose(kept, values[:, b], atol=1e-3 * np.abs(values[:, b]).max())


def test_flat_posteriors_give_the_same_sums_from_few_patterns(
    reference: Reference, data: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = Reference(reference.transform * np.float32(0.05), reference.radius, reference.box)
    grid = GridPosterior(weak, GRID, PLAN, WANTED, WEIGHTS)
    whole = grid.expect(data, CENTRES)
    used = []

    def counted(values: NDArray[np.float32]) -> NDArray[np.float32]:
        used.append(principal(values))
        return used[-1]

    monkeypatch.setattr("mpipar.cryoem.posterior.principal", counted)
    monkeypatch.setattr("mpipar.cryoem.posterior.WEIGHTS_SAMPLED", 1)
    fewer = grid.expect(data, CENTRES)
    assert len(used) == 2
    assert max(map(len, used)) < 0.6 * len(shift_grid(PLAN.reach, PLAN.shift_step))
    for part in range(3):
        scale = np.abs(whole.values[part]).max()
        np.testing.assert_allclose(fewer.values[part], whole.values[part], atol=0.02 * scale)


def test_half_turn_grid_is_half_of_a_grid() -> None:
    seed = np.random.SeedSequence(1)
    whole = orientation_grid(20.0, operators("d2"), seed)
    half = orientation_grid(20.0, operators("d2"), seed, half_turn=True)
    assert len(whole) == 2 * len(half)
    both = np.concatenate([half, half @ HALF_TURN.astype(np.float32)])
    gaps = [angle_between(both, one).min() for one in whole]
    assert max(gaps) < 20.0
    apart = [np.sort(angle_between(both, one))[1] for one in both[:50]]
    assert min(apart) > 8.0
