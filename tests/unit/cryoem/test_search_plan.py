"""Plans stay within their box, and the work they ask for stays bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.cryoem.alignment import shift_grid
from mpipar.cryoem.fourier import components
from mpipar.cryoem.search_plan import BEYOND_START, Sampling, plan_search, plan_soft

boxes = st.integers(4, 256).map(lambda half: 2 * half)  # 8 to 512


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    box = draw(boxes)
    finest = draw(st.integers(min(4, box // 2), box // 2))
    return Sampling(box, draw(st.floats(0.05, 1.0)) * box, finest)


@given(sampling=samplings(), resolved=st.integers(0, 300), exhaustive=st.booleans())
def test_plan_fits_its_box(sampling, resolved, exhaustive):
    plan = plan_search(sampling, resolved, exhaustive=exhaustive, free_scale=False)
    assert 1 <= plan.coarse_radius <= plan.middle_radius <= plan.radius <= sampling.finest_shell
    assert plan.exhaustive == exhaustive
    for last in (False, True):
        inserted = sampling.insertion_radius(plan.radius, last)
        assert plan.radius <= inserted <= sampling.box // 2
        components(sampling.box, inserted)
    assert sampling.insertion_radius(plan.radius, last=True) == sampling.box // 2
    assert 0 < plan.shift_step < plan.shift_range < sampling.box / 2
    assert plan.survivors <= plan.candidates


@given(sampling=samplings(), resolved=st.integers(0, 300))
def test_search_is_bounded(sampling, resolved):
    plan = plan_search(sampling, resolved, exhaustive=True, free_scale=False)
    assert components(sampling.box, plan.coarse_radius).within(plan.coarse_radius) < 1000
    assert 9 <= len(shift_grid(plan.shift_range, plan.shift_step)) < 250


@given(sampling=samplings(), resolved=st.integers(0, 300))
def test_better_resolution_never_looks_at_less(sampling, resolved):
    coarser = plan_search(sampling, resolved, exhaustive=True, free_scale=False)
    finer = plan_search(sampling, resolved + 1, exhaustive=True, free_scale=False)
    assert finer.radius >= coarser.radius
    assert finer.coarse_radius >= coarser.coarse_radius
    assert finer.middle_radius >= coarser.middle_radius


def test_plan_of_a_usual_particle():
    plan = plan_search(Sampling(128, 80.0, 63), 21, exhaustive=True, free_scale=True)
    assert (plan.coarse_radius, plan.middle_radius, plan.radius) == (13, 20, 24)
    assert plan.shift_range == pytest.approx(0.085 * 128)
    assert plan.free_scale


@pytest.mark.parametrize(
    ("reach", "step", "count"), [(0.0, 1.0, 1), (0.9, 1.0, 1), (1.0, 1.0, 5), (3.0, 1.0, 29)]
)
def test_shift_grid_fills_a_disc_from_its_centre(reach, step, count):
    grid = shift_grid(reach, step)
    assert len(grid) == count
    assert tuple(grid[0]) == (0, 0)
    assert ((grid**2).sum(axis=1) <= reach**2 + 1e-6).all()


@pytest.mark.parametrize(
    ("spread", "reach"),
    [(None, 5.44), (1.5, 2.75 * 1.5), (0.2, 2.75 * 5.44 / 5), (4.0, 5.44)],
)
def test_soft_iterations_look_no_farther_than_shifts_are(spread: float | None, reach: float):
    plan = plan_soft(Sampling(64, 57.0, 30), 11, 6, spread=spread, free_scale=False)
    assert plan.reach == pytest.approx(max(reach, 2 * plan.shift_step))
    assert plan.shift_step == pytest.approx(64 / (4 * plan.radius))


@given(sampling=samplings(), start=st.integers(2, 40), more=st.integers(0, 40))
def test_soft_iterations_reach_beyond_their_start(sampling, start, more):
    """Else no signal could be found there, however good the images are."""
    shell = min(start, sampling.finest_shell)
    plan = plan_soft(sampling, shell + more, shell, spread=None, free_scale=False)
    assert 1 <= plan.radius <= plan.insertion_radius <= sampling.finest_shell
    assert plan.insertion_radius >= min(shell + BEYOND_START, sampling.finest_shell)
