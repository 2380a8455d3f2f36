"""Soft iterations on rank 0: sums that cannot overflow, and the look for signal."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.cryoem import alignment, reconstruction
from mpipar.cryoem.fourier import components, filter_shells
from mpipar.cryoem.masks import soft_discs
from mpipar.cryoem.search_plan import plan_soft
from mpipar.programs import dataset, iteration, soft_iteration
from mpipar.programs.block_rows import MASK_EDGE
from mpipar.programs.soft_iteration import HELD_OUT, Signal, signal_of
from mpipar.programs.soft_stage import spectrum_of, weighted
from mpipar.runtime.stage import Task
from tests.support.small_refinement import Small, small

if TYPE_CHECKING:
    from numpy.typing import NDArray

finite = st.floats(-1e3, 1e3, width=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("small") / "input", 40)


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=40), st.data())
def test_the_signal_is_the_mean_gain_and_its_standard_error(
    rows: list[tuple[float, float]], draw: st.DataObject
) -> None:
    """However the particles are dealt to tasks."""
    cut = draw.draw(st.integers(1, len(rows) - 1))
    found = signal_of([np.array(rows[:cut]), np.array(rows[cut:])])
    gains = [fine - coarse for fine, coarse in rows]
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / len(gains)
    assert math.isclose(found.gain, mean, rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(found.error, math.sqrt(variance / len(gains)), rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(found.coarse, np.mean([c for _, c in rows]), rel_tol=1e-6, abs_tol=1e-6)


def test_signal_must_be_sure() -> None:
    assert Signal(1.0, 0.1, 0.31, 0.1).found
    assert not Signal(1.0, 0.1, 0.29, 0.1).found
    assert not Signal(1.0, 0.1, -0.5, 0.1).found, "worse than the coarse reference"
    assert not Signal(0.0, 0.0, 0.0, 0.0).found, "all the same: nothing is shown"


def test_the_verdict_is_one_line_and_tells_empty_images_from_weak_ones() -> None:
    weak = Signal(1.0, 0.1, 0.1, 0.1).verdict(60.0, "run")
    doubtful = Signal(1.0, 0.5, 0.1, 0.1).verdict(60.0, "run")
    empty = Signal(0.1, 0.1, 0.1, 0.1).verdict(60.0, "run")
    assert "something of the model's coarse shape" in weak
    assert "no particle like the model at all" in doubtful
    assert "no particle like the model at all" in empty
    assert "a finer start" in weak
    assert "a coarser start (--lowpass 40)" in Signal(1.0, 0.1, 0.1, 0.1).verdict(13.0, "run")
    for said in (weak, doubtful, empty):
        assert said.startswith("no signal found: no detail finer than the 60 A")
        assert "\n" not in said


@given(st.integers(1, 300), st.integers(2, 64))
def test_some_tasks_of_both_half_sets_are_held_out(tasks: int, size: int) -> None:
    made = [Task(number, number, None) for number in range(2 * tasks)]

    @dataclasses.dataclass
    class Blocks:
        half: NDArray[np.int8]
        blocks: tuple[int, ...]

    data = Blocks(np.zeros(2 * tasks * size, np.int8), (0,) * (2 * tasks))
    chosen = soft_iteration.held_out_tasks(data, made)  # type: ignore[arg-type]
    assert [task.id for task in chosen] == list(range(len(chosen))), "numbered anew"
    blocks = [task.block or 0 for task in chosen]
    assert len(set(blocks)) == len(blocks)
    assert min(blocks) < tasks <= max(blocks), "the first blocks are of one half set"
    assert len(chosen) == 2 * tasks or HELD_OUT <= len(chosen) * size < HELD_OUT + 2 * size


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.booleans())
def test_sums_of_images_in_discs_cannot_overflow(
    made: Small, seed: int, loud: float, worst: bool
) -> None:
    """No component of any image in its disc is larger than what the scales allow."""
    data, state = made.data, made.state
    random, box, count = np.random.default_rng(seed), data.geometry.box, 4
    if worst:  # all components are as large, with such phases that the disc adds them up
        disc = np.fft.fft2(soft_discs(box, np.zeros((1, 2)), data.geometry.radius, MASK_EDGE))
        images = np.fft.ifft2(np.exp(1j * np.angle(disc))).real.repeat(count, axis=0)
    else:
        images = random.normal(size=(count, box, box))
    loudly = (loud * images).astype(np.float32)
    largest = np.full_like(data.largest, np.abs(np.fft.fft2(loudly)).max())
    data = dataclasses.replace(
        data, largest=largest, offset=0 * data.offset, gain=0 * data.gain + 1
    )
    scales = soft_iteration.soft_fixed_point(data, state)
    ctf = dataset.ctf_of(made.inputs.particles)
    plan = plan_soft(data.sampling, 4, 3, spread=1.0, free_scale=False)
    centres = np.zeros((len(data.half), 2))
    task = soft_iteration.soft_tasks(data, ctf, state, plan, centres)[0]
    rows = task.payload
    shifts = random.uniform(-2, 2, (count, 2))
    rows = dataclasses.replace(
        rows,
        ctf=rows.ctf.take(np.arange(count)),
        offset=rows.offset[:count],
        gain=rows.gain[:count],
        poses=type(rows.poses)(rows.poses.rotations[:count], shifts, rows.poses.score[:count]),
        settled=rows.settled[:count],
    )
    wanted = components(box, box // 2 - 1)
    spectrum = spectrum_of({"noise": state.noise}, rows.half, data.geometry)
    _, values = weighted(rows, loudly, data.geometry, wanted, spectrum)
    per_half = max(np.count_nonzero(data.half == half) for half in (1, 2))
    most = per_half * reconstruction.SLICES_PER_VOXEL
    assert np.hypot(values[..., 0], values[..., 1]).max() * scales.value * most < 2.0**62
    assert values[..., 2].max() * scales.weight * most < 2.0**62


def test_no_reference_that_is_held_out_has_seen_its_half_set(made: Small) -> None:
    """The first half set is matched to the map of the second, and the other way round."""
    data, box = made.data, made.data.geometry.box
    random = np.random.default_rng(2)
    halves = random.normal(size=(2, box, box, box)).astype(np.float32)
    curve = np.ones(box // 2 + 1)
    state = dataclasses.replace(made.state, correlation=curve)
    maps = iteration.Maps(halves, data.sphere, halves.mean(axis=0), curve, curve, curve)
    plan = plan_soft(data.sampling, 4, 3, spread=1.0, free_scale=False)
    shared = soft_iteration.held_out_arrays(data, state, maps, plan)
    for half, other in ((1, halves[1]), (2, halves[0])):
        whole = filter_shells(other, curve)  # without the corners beyond Nyquist
        expected = alignment.make_reference(whole * data.sphere, plan.radius).transform
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            shared[f"reference{half}"][0] / scale, expected / scale, atol=1e-5
        )
        assert np.abs(np.subtract(shared[f"coarse{half}"][0], expected)).max() > 0.1 * scale
