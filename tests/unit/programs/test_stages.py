"""The two stages, against images whose truth is known in closed form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem import noise as noise_module
from mpipar.cryoem import reconstruction, symmetry
from mpipar.cryoem.alignment import Poses, Reference, SearchPlan, make_reference, slices_of
from mpipar.cryoem.ctf import CtfParameters
from mpipar.cryoem.fourier import components
from mpipar.cryoem.orientation_grids import orientation_grid
from mpipar.cryoem.resolution import fourier_shell_correlation
from mpipar.cryoem.rotations import angle_between
from mpipar.cryoem.search_plan import Sampling, plan_search
from mpipar.programs.block_rows import ImageGeometry, ParticleRows
from mpipar.programs.stages import AlignResult, AlignStage, AlignState, MeasureStage
from mpipar.runtime.stage import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

BOX, PIXEL_SIZE, RADIUS = 32, 3.0, 11.0
BLOBS = np.array([[6.0, 0, 0], [-3, 5, 0], [0, -4, 5], [2, 2, -6], [-5, -4, -2]])  # x y z in pixels
WIDTHS = np.array([1.6, 2.0, 1.5, 2.2, 1.7])
AXIS = np.arange(BOX) - BOX // 2


def phantom() -> NDArray[np.float32]:
    """Gaussian blobs, (z, y, x)."""
    volume = np.zeros((BOX,) * 3)
    for (x, y, z), width in zip(BLOBS, WIDTHS, strict=True):
        lines = [np.exp(-0.5 * ((AXIS - centre) / width) ** 2) for centre in (z, y, x)]
        volume += np.einsum("i,j,k->ijk", *lines)
    return volume.astype(np.float32)


def pictures(
    rotations: NDArray[np.float64], shifts: NDArray[np.float64], noise: float
) -> NDArray[np.float32]:
    """Projections of the blobs in closed form: along z, after turning the map to the image."""
    images = np.random.default_rng(3).normal(scale=noise, size=(len(rotations), BOX, BOX))
    for n, (rotation, shift) in enumerate(zip(rotations, shifts, strict=True)):
        for blob, width in zip(BLOBS, WIDTHS, strict=True):
            x, y = (rotation.T @ blob)[:2] + shift
            line = [np.exp(-0.5 * ((AXIS - centre) / width) ** 2) for centre in (y, x)]
            images[n] += width * np.sqrt(2 * np.pi) * np.outer(*line)
    return images.astype(np.float32)


def no_contrast_transfer(count: int) -> CtfParameters:
    """A microscope whose transfer is 1 everywhere: all amplitude contrast, in focus."""
    zero, one = np.zeros(count), np.ones(count)
    return CtfParameters(zero, zero, zero, 300 * one, zero, one, zero, zero, one)


@dataclass
class Trial:
    """Images of known poses, and the stage that has to find them."""

    rotations: NDArray[np.float64]
    shifts: NDArray[np.float64]
    images: NDArray[np.float32]
    rows: ParticleRows
    stage: AlignStage
    shared: dict[str, Any]
    scales: reconstruction.FixedPoint
    plan: SearchPlan

    def run(self, half: int = 1, state: AlignState | None = None) -> tuple[AlignResult, AlignState]:
        state = state or self.stage.start(self.shared)
        task = Task(0, 0, dataclasses.replace(self.rows, half=half))
        return self.stage.run(task, {"images": self.images}, state), state


def trial(count: int = 12, noise: float = 0.3, *, exhaustive: bool = True) -> Trial:
    random = np.random.default_rng(0)
    rotations = Rotation.random(count, random_state=1).as_matrix()
    shifts = random.uniform(-1.5, 1.5, size=(count, 2))
    unknown = Poses(
        np.broadcast_to(np.eye(3), (count, 3, 3)).copy(),
        np.zeros((count, 2)),
        np.full(count, -np.inf),
    )
    geometry = ImageGeometry(BOX, PIXEL_SIZE, RADIUS)
    sampling = Sampling(BOX, 2 * RADIUS, BOX // 2 - 1)
    plan = plan_search(sampling, 9, exhaustive=exhaustive, free_scale=False)
    radius = BOX // 2 - 1
    scales = reconstruction.fixed_point(1e6, 1.0, count)
    transform = make_reference(phantom(), plan.radius).transform[None]
    shared = {
        "reference1": transform,
        "reference2": transform,
        "noise": np.full((2, radius + 1), (noise * BOX) ** 2),
        "orientations": orientation_grid(
            plan.step, symmetry.operators("c1"), np.random.SeedSequence(0)
        ),
    }
    rows = ParticleRows(
        1,
        no_contrast_transfer(count),
        np.zeros(count),
        np.ones(count),
        unknown,
        np.zeros(count, bool),
    )
    stage = AlignStage(geometry, plan, radius, scales)
    images = pictures(rotations, shifts, noise)
    return Trial(rotations, shifts, images, rows, stage, shared, scales, plan)


def errors(done: Trial, found: Poses) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors in degrees and in pixels."""
    shifted = np.hypot(*(found.shifts - done.shifts).T)
    return angle_between(found.rotations, done.rotations), shifted


def test_a_search_finds_the_poses() -> None:
    done = trial()
    turned, moved = errors(done, done.run()[0].poses)
    assert turned.max() < 1.5
    assert moved.max() < 0.25


def test_offset_and_gain_are_taken_off_first() -> None:
    done = trial()
    done.images = done.images * np.float32(50) + np.float32(300)
    count = len(done.images)
    done.rows = dataclasses.replace(
        done.rows, offset=np.full(count, 300.0), gain=np.full(count, 0.02)
    )
    expected = trial().run()[0].poses
    found = done.run()[0].poses
    np.testing.assert_allclose(found.rotations, expected.rotations, atol=1e-3)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-3)


def near(done: Trial, degrees: float) -> Poses:
    """The truth, turned a little."""
    turn = Rotation.from_rotvec([0, 0, np.radians(degrees)]).as_matrix()
    return Poses(done.rotations @ turn, done.shifts + 0.4, np.zeros(len(done.rotations)))


def test_local_refinement_climbs_from_the_last_pose() -> None:
    done = trial(exhaustive=False)
    done.rows = dataclasses.replace(done.rows, poses=near(done, 4))
    turned, moved = errors(done, done.run()[0].poses)
    assert turned.max() < 1.5
    assert moved.max() < 0.25


def test_settled_images_are_not_searched_again() -> None:
    """They climb only: from a pose far off there is no way back."""
    done = trial()
    count = len(done.images)
    settled = np.arange(count) < count // 2
    done.rows = dataclasses.replace(done.rows, poses=near(done, 100), settled=settled)
    turned, _ = errors(done, done.run()[0].poses)
    assert turned[~settled].max() < 1.5
    assert np.median(turned[settled]) > 20.0


def test_residual_is_the_noise_once_the_poses_are_known() -> None:
    done = trial(noise=2.0)
    result, _ = done.run()
    wanted = components(BOX, BOX // 2 - 1)
    per_shell = np.diff(np.append(wanted.starts, len(wanted.shell)))
    inside = np.pi * (RADIUS + 2.5) ** 2  # pixels under the soft disc, about
    expected = inside * 2.0**2 * per_shell * len(done.images)
    ratio = result.residual[4:] / expected[4:]
    assert 0.6 < np.median(ratio) < 1.4
    silent = trial(noise=2.0)
    silent.images[:] = 0
    everything = dataclasses.replace(silent.plan, free_scale=True)
    silent.stage = AlignStage(silent.stage.geometry, everything, BOX // 2 - 1, silent.scales)
    assert silent.run()[0].residual.max() == pytest.approx(0, abs=1e-3), "no scale: no model"


def test_matches_are_with_the_own_and_the_held_out_half_map() -> None:
    done = trial(noise=1.0)
    own = done.run()[0].matches
    score = own.own_cross - 0.5 * own.own_quadratic
    np.testing.assert_allclose(score, done.run()[0].poses.score, rtol=1e-4)
    # both references are the same
    np.testing.assert_allclose(own.held_cross, own.own_cross, rtol=1e-5)
    np.testing.assert_allclose(own.held_quadratic, own.own_quadratic, rtol=1e-5)
    assert own.own_significance.min() > 12
    mirrored = make_reference(phantom()[::-1].copy(), done.plan.radius).transform
    done.shared["reference2"] = mirrored[None]
    other = done.run()[0].matches
    np.testing.assert_array_equal(other.own_cross, own.own_cross)
    assert np.median(other.held_cross / own.held_cross) < 0.95, "a mirrored one fits worse"


@pytest.mark.parametrize("first", [1, 5, BOX])
def test_held_out_matches_begin_at_the_first_independent_shell(first: int) -> None:
    done = trial(noise=1.0)
    done.stage = AlignStage(
        done.stage.geometry, done.plan, BOX // 2 - 1, done.scales, first_independent_shell=first
    )
    result = done.run()[0]
    wanted = components(BOX, done.plan.radius)
    reference = Reference(done.shared["reference2"][0], done.plan.radius, BOX)
    flat = slices_of(reference, result.poses.rotations, wanted.frequencies)
    power = np.abs(flat.view(np.complex64)) ** 2 / done.shared["noise"][0, 0]
    expected = power[:, wanted.shell >= first].sum(axis=1)
    np.testing.assert_allclose(result.matches.held_quadratic, expected, rtol=1e-4)
    np.testing.assert_allclose(result.matches.own_quadratic, power[:, 1:].sum(axis=1), rtol=1e-4)


def test_the_sums_are_the_half_sets_map() -> None:
    done = trial(count=250, noise=0.1, exhaustive=False)
    known = Poses(done.rotations, done.shifts, np.zeros(250))
    done.rows = dataclasses.replace(done.rows, poses=known)
    _, state = done.run(half=2)
    sums = done.stage.partial(state)
    assert set(sums) == {"half2"}
    assert sums["half2"].dtype == np.int64
    half = reconstruction.half_sums(sums["half2"], done.scales, symmetry.operators("c1"), BOX)
    volume = reconstruction.solve(half, None, BOX // 2 - 1)
    assert fourier_shell_correlation(volume, phantom())[1:9].min() > 0.95
    scale = (volume * phantom()).sum() / (phantom() ** 2).sum()
    assert scale == pytest.approx(1.0, abs=0.1), "on the model's own grey scale"


def test_images_are_matched_with_the_reference_of_their_fold() -> None:
    done = trial(noise=1.0)
    done.shared["reference1"] = np.concatenate([0 * done.shared["reference1"]] * 2)
    done.shared["reference1"][1] = done.shared["reference2"][0]
    done.rows = dataclasses.replace(done.rows, fold=1, folded=True)
    result, state = done.run()
    assert errors(done, result.poses)[0].max() < 4
    assert set(done.stage.partial(state)) == {"half1.1"}
    np.testing.assert_allclose(
        result.matches.held_quadratic, result.matches.own_quadratic, rtol=1e-5
    )
    done.rows = dataclasses.replace(done.rows, fold=0, folded=False)
    result, state = done.run()
    assert not result.matches.own_quadratic.any(), "the reference of that fold is empty"
    assert set(done.stage.partial(state)) == {"half1"}


def test_sums_are_the_same_in_any_order_and_division() -> None:
    done = trial(exhaustive=False)
    done.rows = dataclasses.replace(done.rows, poses=near(done, 1))

    def part(rows: list[int], state: AlignState) -> None:
        taken = np.array(rows)
        old = done.rows
        poses = Poses(old.poses.rotations[taken], old.poses.shifts[taken], old.poses.score[taken])
        payload = ParticleRows(
            1, old.ctf.take(taken), old.offset[taken], old.gain[taken], poses, old.settled[taken]
        )
        done.stage.run(Task(0, 0, payload), {"images": done.images[taken]}, state)

    def sums(*parts: list[int]) -> NDArray[np.int64]:
        state = done.stage.start(done.shared)
        for rows in parts:
            part(rows, state)
        return done.stage.partial(state)["half1"]

    a, b = [0, 3, 5, 7, 9, 11], [1, 2, 4, 6, 8, 10]
    assert np.array_equal(sums(a, b), sums(b, a))
    assert np.array_equal(sums(a, b), sums(a) + sums(b))


def test_a_task_that_fails_leaves_nothing_in_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be tried again on the same worker."""
    done = trial(exhaustive=False)
    done.rows = dataclasses.replace(done.rows, poses=near(done, 1))
    _, clean = done.run()
    state = done.stage.start(done.shared)

    def fail(*args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(noise_module, "residual_power", fail)
        with pytest.raises(MemoryError):
            done.run(state=state)
    assert not any(sums.any() for sums in done.stage.partial(state).values())
    done.run(state=state)
    assert np.array_equal(done.stage.partial(state)["half1"], done.stage.partial(clean)["half1"])


def test_measure_stage_measures_background_power_and_amplitudes() -> None:
    images = np.random.default_rng(0).normal(5.0, 3.0, size=(30, BOX, BOX)).astype(np.float32)
    images[4] = images[4] * 2 + 7
    look = MeasureStage(ImageGeometry(BOX, PIXEL_SIZE, RADIUS)).run(
        Task(0, 0, None), {"images": images}, None
    )
    x, y = np.meshgrid(AXIS, AXIS)
    outside = x**2 + y**2 > RADIUS**2
    np.testing.assert_allclose(look.mean, images[:, outside].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(look.deviation, images[:, outside].std(axis=1), rtol=1e-5)
    centred = images - look.mean[:, None, None]
    transform = np.abs(np.fft.fft2(centred))
    kx, ky = np.meshgrid(*[np.fft.fftfreq(BOX, 1 / BOX)] * 2)
    shell = np.rint(np.hypot(kx, ky))
    for number in range(1, BOX // 2 - 1):
        largest = transform[:, shell == number].max(axis=1)
        np.testing.assert_allclose(look.largest[:, number], largest, rtol=1e-4)
    wanted = components(BOX, BOX // 2)
    per_shell = np.diff(np.append(wanted.starts, len(wanted.shell)))
    under_disc = np.pi * (RADIUS + 1.9) ** 2  # the soft edge squared counts three eighths
    expected = 9.0 * under_disc * per_shell
    ratio = look.power[np.arange(30) != 4, 3:].sum(axis=0) / (29 * expected[3:])
    assert np.all(np.abs(ratio - 1) < 0.25)
