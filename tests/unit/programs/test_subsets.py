"""Large sets begin with some of their particles, and go on with all if these show no signal."""

from __future__ import annotations

import dataclasses
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.errors import NoSignalError
from mpipar.programs import (
    checkpoints,
    convergence,
    dataset,
    iteration,
    refine,
    soft_iteration,
    soft_session,
    subsets,
)
from mpipar.programs.convergence import SOFT
from mpipar.programs.subsets import soft_part
from mpipar.runtime.clusters.thread_cluster import open_pool
from mpipar.settings import RefineSettings
from mpipar.store.project import Project
from mpipar.views.progress import View
from tests.support.blocks import write_particle_input
from tests.support.small_refinement import Small, small

if TYPE_CHECKING:
    from pathlib import Path

COUNT, SUBSET = 64, 24


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What `soft_part` looks at."""

    half: np.ndarray
    fold: np.ndarray
    blocks: tuple[np.ndarray, ...]
    served_as: tuple[int, ...] = ()


@given(st.integers(2, 60_000), st.booleans())
def test_some_of_a_large_set_take_part_evenly_from_both_half_sets(count: int, folded: bool) -> None:
    half = np.resize(np.array([1, 2], np.int8), count)
    data: Any = Blocks(half, np.full(count, folded, np.int8), dataset.blocks_of(half))
    part = soft_part(data, everyone=False)
    assert soft_part(data, everyone=True) is data
    if folded or count <= subsets.LARGE * subsets.SUBSET:
        assert part is data
        return
    rows = np.concatenate(part.blocks)
    assert all(data.blocks[n] is mine for n, mine in zip(part.served_as, part.blocks, strict=True))
    assert len(rows) == subsets.size_of(part) == len(np.unique(rows))
    assert len(rows) == pytest.approx(subsets.SUBSET, rel=0.03)
    assert np.count_nonzero(half[rows] == 1) == pytest.approx(len(rows) / 2, rel=0.03)
    share = np.histogram(rows, 4, (0, count))[0] / len(rows)
    np.testing.assert_allclose(share, 0.25, atol=0.04)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of some dozens of particles are large ones, without folds."""
    monkeypatch.setattr(subsets, "SUBSET", SUBSET)
    monkeypatch.setattr(dataset, "MOST_FOLDED", 1)
    monkeypatch.setattr(convergence, "MOST_SOFT", 3)


@pytest.fixture
def made(few: None, tmp_path: Path) -> Small:
    return small(tmp_path / "input", COUNT)


def test_particles_that_take_no_part_keep_what_is_known_of_them(made: Small) -> None:
    data, state = made.data, made.state
    part = soft_part(data, everyone=False)
    mine = np.zeros(COUNT, bool)
    mine[np.concatenate(part.blocks)] = True
    assert 0 < np.count_nonzero(mine) < COUNT
    plan = soft_session.plan_of(data, state, free_scale=False)
    stage = soft_iteration.soft_stage(part, state, plan)
    shared = soft_iteration.soft_arrays(part, state, plan)
    ctf, centres = dataset.ctf_of(made.inputs.particles), np.zeros((COUNT, 2))
    tasks = soft_iteration.soft_tasks(part, ctf, state, plan, centres)
    with ExitStack() as stack:
        pool = stack.enter_context(open_pool(1))
        pool.serve(made.inputs.stacks.divided(data.blocks))
        outcome = pool.run(stage, shared, tasks)
        whole = pool.run(stage, shared, soft_iteration.soft_tasks(data, ctf, state, plan, centres))
    new, _ = soft_iteration.soft_next_state(part, state, stage, outcome)
    assert np.isfinite(new.poses.score[mine]).all()
    assert (new.poses.score[~mine] == -np.inf).all()
    np.testing.assert_array_equal(new.poses.shifts[~mine], state.poses.shifts[~mine])
    np.testing.assert_allclose(new.peak[~mine], new.peak[mine].mean())
    assert new.jumped == 1.0, "no orientation was known before"
    evidence = np.concatenate([result.found.evidence for result in outcome.results])
    assert new.evidence == pytest.approx(evidence.mean())
    assert np.all(new.noise > 0)
    places = [place for place, rows in enumerate(data.blocks) if mine[rows[0]]]
    for result, place in zip(outcome.results, places, strict=True):
        alone = whole.results[place].found
        np.testing.assert_array_equal(result.found.evidence, alone.evidence, "other images")
    assert len(iteration.collect_poses(part, [r.found.poses for r in outcome.results], state).score)


def test_without_signal_in_some_all_take_part(few: None, tmp_path: Path) -> None:
    star = write_particle_input(tmp_path, COUNT, 16)
    run = tmp_path / "run"
    settings = RefineSettings(input=star, model=tmp_path / "init.mrc", path=run)
    said: list[str] = []
    with ExitStack() as stack:

        def pool(threads: int, cache: int):
            return stack.enter_context(open_pool(1, threads=threads, cache_bytes=cache))

        with pytest.raises(NoSignalError):
            refine.run(settings, pool, Listening(said))
    with Project.open(run, writer=False) as project:
        history = checkpoints.load_history(project)
    assert {step.kind for step in history} == {SOFT}
    everyone = [step.everyone for step in history]
    assert everyone == sorted(everyone)
    assert everyone.count(False) >= 3
    assert everyone.count(True) >= 3
    text = "\n".join(said)
    assert re.search(r"soft iterations begin with 32 of the 64 particles", text)
    assert text.count("some particles have shown no signal yet; going on with all") == 1


class Listening(View):
    """A view that keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def _say(self, text: str) -> None:
        self._said.append(text)

    def _show(self, line: str, share: float) -> None:
        pass
