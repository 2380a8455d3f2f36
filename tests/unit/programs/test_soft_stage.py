"""The stages of soft iterations, against a slow twin that visits each pose of each image."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem import masks, reconstruction
from mpipar.cryoem.alignment import Poses, Reference, make_reference, phases, shift_grid, slices_of
from mpipar.cryoem.ctf import CtfParameters
from mpipar.cryoem.fourier import components, image_components
from mpipar.cryoem.orientation_grids import orientation_grid
from mpipar.cryoem.posterior import SoftPlan
from mpipar.cryoem.rotations import HALF_TURN
from mpipar.cryoem.symmetry import operators
from mpipar.programs.block_rows import MASK_EDGE, ImageGeometry, ParticleRows
from mpipar.programs.kept import KEPT
from mpipar.programs.soft_stage import HeldOutStage, SoftStage
from mpipar.runtime.stage import Task
from tests.support import naive

if TYPE_CHECKING:
    from numpy.typing import NDArray

BOX, COUNT, NOISE = 24, 5, 2.0
GEOMETRY = ImageGeometry(BOX, 3.0, 8.0)
PLAN = SoftPlan(
    radius=5,
    insertion_radius=8,
    step=40.0,
    reach=2.0,
    shift_step=1.0,
    spread=1.5,
    free_scale=False,
)
WANTED = components(BOX, PLAN.insertion_radius)
GRID = orientation_grid(PLAN.step, operators("c1"), np.random.SeedSequence(4), half_turn=True)
MOLECULE = naive.blobs(BOX, seed=1)
REFERENCE = make_reference(60 * MOLECULE.volume(BOX), PLAN.radius)
ONE_FOLD = REFERENCE.transform[None]
SPECTRUM = np.linspace(2.0, 1.0, BOX // 2 + 1) * (NOISE * BOX) ** 2
CENTRES = np.array([[0.0, 0.0], [1.0, -1.0], [-2.0, 1.0], [0.4, 0.4], [0.0, 2.0]])


def shared(**other: NDArray[Any]) -> dict[str, NDArray[Any]]:
    both = {"reference1": ONE_FOLD, "reference2": ONE_FOLD}
    return {**both, "noise": np.stack([SPECTRUM] * 2), "orientations": GRID, **other}


def images() -> NDArray[np.float32]:
    """Of the molecule, in poses beside those of the grid."""
    random = np.random.default_rng(3)
    turns = Rotation.random(COUNT, random_state=1).as_matrix()
    places = CENTRES + random.uniform(-1, 1, CENTRES.shape)
    seen = [
        60 * MOLECULE.image(BOX, turn, tuple(place))
        for turn, place in zip(turns, places, strict=True)
    ]
    return (np.stack(seen) + random.normal(scale=NOISE, size=(COUNT, BOX, BOX))).astype(np.float32)


def rows(half: int = 1) -> ParticleRows:
    zero, one = np.zeros(COUNT), np.ones(COUNT)
    ctf = CtfParameters(zero, zero, zero, 300 * one, zero, one, zero, zero, one)  # 1 everywhere
    turns = np.broadcast_to(np.eye(3), (COUNT, 3, 3)).copy()
    poses = Poses(turns, CENTRES, np.full(COUNT, -np.inf))
    return ParticleRows(half, ctf, zero, one, poses, np.zeros(COUNT, bool))


def twin(pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    """Power per shell of what each image has beyond its model, over all poses by their weights."""
    inner = WANTED.within(PLAN.radius)
    turns = np.concatenate([GRID, GRID @ HALF_TURN.astype(np.float32)])
    reference = Reference(REFERENCE.transform, PLAN.radius, BOX)
    slices = slices_of(reference, turns, WANTED.frequencies[:inner]).view(np.complex64)
    slices[:, 0] = 0.0
    centred = masks.soft_discs(BOX, np.zeros((1, 2)), GEOMETRY.radius, MASK_EDGE)
    noise = SPECTRUM[WANTED.shell[:inner]] / (centred.astype(float) ** 2).mean()
    shifts = shift_grid(PLAN.reach, PLAN.shift_step)
    prior = -(shifts**2).sum(axis=1) / (2 * PLAN.spread**2)
    total = np.zeros(PLAN.insertion_radius + 1)
    for picture, centre in zip(pictures, CENTRES, strict=True):
        disc = masks.soft_discs(BOX, np.rint(centre)[None], GEOMETRY.radius, MASK_EDGE)
        image = image_components(picture[None] * disc, WANTED)[0].astype(complex)
        back = phases(centre + shifts, WANTED.frequencies[:inner], BOX)
        models = slices[:, None] * back.conj()[None]  # (o, s, v)
        left = np.abs(image[:inner] - models) ** 2
        likely = prior - (left / noise).sum(axis=2)
        weights = np.exp(likely - likely.max())
        weights /= weights.sum()
        power = np.abs(image) ** 2
        power[:inner] = np.einsum("os,osv->v", weights, left)
        total += np.bincount(WANTED.shell, power, PLAN.insertion_radius + 1)
    return total


def soft(plan: SoftPlan = PLAN, half: int = 1) -> tuple[Any, dict[str, NDArray[np.int64]]]:
    stage = SoftStage(GEOMETRY, plan, reconstruction.fixed_point(1e6, 1.0, COUNT))
    state = stage.start(shared())
    result = stage.run(Task(0, 0, rows(half)), {"images": images()}, state)
    return result, stage.partial(state)


def test_residual_power_is_that_of_all_poses_by_their_weights() -> None:
    found, expected = soft()[0].residual, twin(images())
    np.testing.assert_allclose(found, expected, rtol=0.01)
    whole = soft(dataclasses.replace(PLAN, free_scale=True))[0].residual
    inner = slice(1, PLAN.radius + 1)
    assert (expected[inner] < 0.97 * whole[inner]).any(), "the model explains something"
    np.testing.assert_allclose(found[PLAN.radius + 1 :], whole[PLAN.radius + 1 :], rtol=1e-6)


@pytest.mark.parametrize("half", [1, 2])
def test_images_go_into_the_sums_of_their_half_set(half: int) -> None:
    sums = soft(half=half)[1]
    assert list(sums) == [f"half{half}"]
    assert sums[f"half{half}"].any()


@pytest.mark.parametrize("half", [1, 2])
def test_held_out_images_are_matched_to_the_references_of_their_number(half: int) -> None:
    """Those of the other number hold nothing; so they would tell nothing."""
    nothing = np.zeros_like(ONE_FOLD)
    right = {f"reference{half}": ONE_FOLD, f"coarse{half}": nothing}
    wrong = {f"reference{3 - half}": nothing, f"coarse{3 - half}": ONE_FOLD}
    stage = HeldOutStage(GEOMETRY, PLAN)
    state = stage.start(shared(**right, **wrong))
    found = stage.run(Task(0, 0, rows(half)), {"images": images()}, state)
    assert found.shape == (COUNT, 2)
    assert (found[:, 0] > 1.0).all(), "the particle is there"
    np.testing.assert_allclose(found[:, 1], 0.0, atol=1e-3)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 2, 1, 0, 3]])
def test_sums_of_folds_are_the_same_in_any_order(order: list[int]) -> None:
    """Also if those of a fold have to make room for others, and are gone on with later."""
    stage = SoftStage(GEOMETRY, PLAN, reconstruction.fixed_point(1e6, 1.0, 4 * COUNT))
    empty = np.zeros_like(ONE_FOLD)
    of_folds = np.concatenate([ONE_FOLD, empty, ONE_FOLD, ONE_FOLD])
    state = stage.start(shared(reference1=of_folds))

    def run(state: Any, fold: int) -> Any:
        payload = dataclasses.replace(rows(), fold=fold, folded=True)
        return stage.run(Task(0, 0, payload), {"images": images()}, state)

    evidence = {fold: run(state, fold).found.evidence for fold in order}
    assert len(state.grids) <= KEPT
    assert len(state.by_pose) <= KEPT
    sums = stage.partial(state)
    assert set(sums) == {f"half1.{fold}" for fold in order}
    np.testing.assert_allclose(evidence[1], 0.0, atol=1e-3, err_msg="its reference is empty")
    for fold in set(order):
        alone = stage.start(shared(reference1=of_folds))
        found = run(alone, fold).found.evidence
        np.testing.assert_array_equal(found, evidence[fold])
        expected = order.count(fold) * stage.partial(alone)[f"half1.{fold}"]
        np.testing.assert_array_equal(sums[f"half1.{fold}"], expected)
