"""A block of images on a simulated GPU, against the same block on the processor."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem import (
    alignment,
    orientation_grids,
    pose_spread,
    reconstruction,
    rotations,
    symmetry,
)
from mpipar.cryoem.alignment import Poses, SearchPlan
from mpipar.cryoem.ctf import CtfParameters
from mpipar.cryoem.posterior import SoftPlan
from mpipar.programs.block_rows import ImageGeometry, ParticleRows
from mpipar.programs.devices import DeviceChoice
from mpipar.programs.soft_stage import SoftStage
from mpipar.programs.stages import AlignStage
from mpipar.runtime.stage import Task
from tests.support.naive import blobs
from tests.support.simulated import FETCHED, few_threads, only_simulated, simulated_device

__all__ = ["few_threads"]

pytestmark = [only_simulated, pytest.mark.usefixtures("few_threads")]

BOX, IMAGES = 16, 3
GEOMETRY = ImageGeometry(BOX, 3.0, 7.0)
MOLECULE = blobs(BOX)
OTHER = blobs(BOX, seed=5)
THIRD = blobs(BOX, seed=6)
TURNS = Rotation.random(IMAGES, random_state=3).as_matrix()


class Simulated(DeviceChoice):
    """A choice without a GPU."""

    def open(self):
        return simulated_device()


def block() -> tuple[np.ndarray, CtfParameters]:
    random = np.random.default_rng(0)
    shifts = random.uniform(-1, 1, (IMAGES, 2))
    images = np.array(
        [MOLECULE.image(BOX, r, tuple(s)) for r, s in zip(TURNS, shifts, strict=True)]
    )
    images += random.normal(0, 0.01, images.shape)
    one, zero = np.ones(IMAGES), np.zeros(IMAGES)
    ctf = CtfParameters(
        8000 * one, 7000 * one, 20 * one, 300 * one, one, one * 0.9, zero, zero, one
    )
    return images.astype(np.float32), ctf


def reference_of(molecule, plan) -> np.ndarray:
    return alignment.make_reference(molecule.volume(BOX), plan.radius).transform


@pytest.mark.parametrize(
    ("exhaustive", "free_scale", "spread"),
    [(True, True, False), (True, False, False), (False, False, True)],
)
def test_block_has_the_processors_poses_residual_and_sums(exhaustive, free_scale, spread):
    images, ctf = block()
    plan = SearchPlan(4, 5, 6, 60.0, 1.0, 1.0, 4, 2, free_scale, exhaustive)
    known = Poses(
        TURNS @ Rotation.from_rotvec([0.1, 0, 0]).as_matrix(),
        np.zeros((IMAGES, 2)),
        np.zeros(IMAGES),
    )
    if free_scale:  # the first iteration
        known = Poses(known.rotations, known.shifts, np.full(IMAGES, -np.inf))
    settled = np.array([False, not free_scale, False])
    zero, one = np.zeros(IMAGES), np.ones(IMAGES)
    rows = ParticleRows(1, ctf, zero, one, known, settled, 1, folded=True)
    seed = np.random.SeedSequence(1)
    shared = {
        "noise": np.full((2, 9), 0.03),
        "reference1": np.stack([reference_of(THIRD, plan), reference_of(MOLECULE, plan)]),
        "reference2": np.stack([reference_of(THIRD, plan), reference_of(OTHER, plan)]),
        "orientations": orientation_grids.orientation_grid(60.0, symmetry.operators("C1"), seed),
    }
    if spread:
        shared["deviates"] = pose_spread.deviates(seed)[::4]
    scales = reconstruction.fixed_point(1e5, 1e4, IMAGES)
    stage = AlignStage(GEOMETRY, plan, 7, scales, first_independent_shell=2)
    state = stage.start(shared)
    expected = stage.run(Task(0, 0, rows), {"images": images}, state)
    there = AlignStage(GEOMETRY, plan, 7, scales, Simulated(()), first_independent_shell=2)
    device_state = there.start(shared)
    found = there.run(Task(0, 0, rows), {"images": images}, device_state)
    poses, residual = found.poses, found.residual
    assert [shape[0] for shape in FETCHED] == [
        IMAGES,
        IMAGES,
        IMAGES,
        len(state.wanted.shell),
        4,
    ]
    # climbs end after some steps, so where the score is flat they may end a little apart
    assert rotations.angle_between(poses.rotations, expected.poses.rotations).max() < 0.3
    np.testing.assert_allclose(poses.shifts, expected.poses.shifts, atol=0.05)
    np.testing.assert_allclose(poses.score, expected.poses.score, rtol=1e-4)
    np.testing.assert_allclose(residual, expected.residual, rtol=0.05)
    for name in found.matches.__dataclass_fields__:
        values, usual = getattr(found.matches, name), getattr(expected.matches, name)
        np.testing.assert_allclose(values, usual, rtol=0.02, atol=0.02 * np.abs(usual).max())
    sums, usual = there.partial(device_state)["half1.1"], stage.partial(state)["half1.1"]
    apart = np.linalg.norm((sums - usual).astype(np.float64))
    assert apart < 0.05 * np.linalg.norm(usual.astype(np.float64))


@pytest.mark.parametrize("free_scale", [True, False])
def test_soft_block_has_the_processors_posterior_residual_and_sums(free_scale, monkeypatch):
    from mpipar.cryoem.device import device_posterior

    monkeypatch.setattr(device_posterior, "SOFT_ROWS", 10)  # two groups of images
    images, ctf = block()
    images += np.random.default_rng(2).normal(0, 0.3, images.shape).astype(np.float32)
    plan = SoftPlan(4, 6, 60.0, 1.0, 1.0, 0.7, free_scale)
    unknown = Poses(
        np.broadcast_to(np.eye(3), (IMAGES, 3, 3)), np.zeros((IMAGES, 2)), np.zeros(IMAGES)
    )
    zero, one = np.zeros(IMAGES), np.ones(IMAGES)
    rows = ParticleRows(2, ctf, zero, one, unknown, np.zeros(IMAGES, bool))
    grid = orientation_grids.orientation_grid(
        60.0, symmetry.operators("C1"), np.random.SeedSequence(1), half_turn=True
    )
    shared = {
        "noise": np.full((2, 9), 25.0),
        "reference2": reference_of(MOLECULE, SearchPlan(4, 4, 4, 60, 1, 1, 1, 1, False, True))[
            None
        ],
        "orientations": grid,
    }
    scales = reconstruction.fixed_point(1e5, 1e4, IMAGES)
    stage, there = (SoftStage(GEOMETRY, plan, scales, on) for on in (None, Simulated(())))
    state, device_state = stage.start(shared), there.start(shared)
    for twice in range(2):
        expected = stage.run(Task(twice, 0, rows), {"images": images}, state)
        found = there.run(Task(twice, 0, rows), {"images": images}, device_state)
    assert len(FETCHED) == 2 * 7
    assert expected.found.peak.max() < 0.9
    np.testing.assert_array_equal(found.found.poses.rotations, expected.found.poses.rotations)
    np.testing.assert_array_equal(found.found.poses.shifts, expected.found.poses.shifts)
    for name in ("peak", "evidence", "offset"):
        values, usual = getattr(found.found, name), getattr(expected.found, name)
        np.testing.assert_allclose(values, usual, rtol=0.02, atol=0.02)
    # the processor writes slices as sums of a few patterns
    np.testing.assert_allclose(found.found.poses.score, expected.found.poses.score, atol=0.1)
    np.testing.assert_allclose(found.residual, expected.residual, rtol=0.01)
    sums, usual = there.partial(device_state)["half2"], stage.partial(state)["half2"]
    apart = np.linalg.norm((sums - usual).astype(np.float64))
    assert apart < 0.02 * np.linalg.norm(usual.astype(np.float64))
