"""Soft iterations of a session, and its look for signal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from mpipar.cryoem.search_plan import plan_soft
from mpipar.programs import dataset, soft_iteration, subsets
from mpipar.programs.soft_stage import HeldOutStage

if TYPE_CHECKING:
    from mpipar.cryoem.posterior import SoftPlan
    from mpipar.programs.convergence import NextIteration
    from mpipar.programs.dataset import Dataset
    from mpipar.programs.iteration import Maps, RefineState
    from mpipar.programs.session import RefineSession
    from mpipar.programs.soft_iteration import Signal
    from mpipar.runtime.reports import StageStatistics
    from mpipar.runtime.stage import Task

Iterated: TypeAlias = "tuple[RefineState, Maps, int, StageStatistics]"
"""The next state, its maps, the radius out to which these go, and what the pool has counted."""


def weigh_poses(
    session: RefineSession, data: Dataset, state: RefineState, decision: NextIteration
) -> Iterated:
    """Do a soft iteration: all poses of a grid count, each with its probability."""
    plan = plan_of(data, state, free_scale=state.iteration == 0)
    data = subsets.soft_part(data, everyone=decision.everyone)
    count = subsets.size_of(data)
    if not session.history and count < len(data.half):
        session.view.say(f"soft iterations begin with {count} of the {len(data.half)} particles")
    with session.phase("preparing references"):
        stage = soft_iteration.soft_stage(data, state, plan)
        shared = soft_iteration.soft_arrays(data, state, plan)
        tasks = _tasks_of(session, data, state, plan)
    with session.phase("weighing all poses"):
        label = f"iteration {state.iteration + 1}: soft"
        outcome = session.run(label, stage, shared, tasks, state.resolution, count)
    del shared  # may be as large as the sums
    with session.phase("reconstruction"):
        state, maps = soft_iteration.soft_next_state(data, state, stage, outcome)
    return state, maps, plan.insertion_radius, outcome.statistics


def look_for_signal(
    session: RefineSession, data: Dataset, state: RefineState, maps: Maps
) -> Signal:
    """Look for detail that images agree on with a map which they are not in."""
    plan = plan_of(data, state, free_scale=False)
    plan = replace(plan, radius=plan.insertion_radius)  # all that may be beyond the start
    stage = HeldOutStage(data.geometry, plan)
    shared = soft_iteration.held_out_arrays(data, state, maps, plan)
    tasks = soft_iteration.held_out_tasks(data, _tasks_of(session, data, state, plan))
    with session.phase("looking for signal"):
        outcome = session.run("looking for signal", stage, shared, tasks)
    return soft_iteration.signal_of(outcome.results)


def plan_of(data: Dataset, state: RefineState, *, free_scale: bool) -> SoftPlan:
    """Return the plan of the next soft iteration."""
    return plan_soft(
        data.sampling,
        state.resolved_shell,
        data.start_shell,
        spread=state.spread,
        free_scale=free_scale,
    )


def _tasks_of(
    session: RefineSession, data: Dataset, state: RefineState, plan: SoftPlan
) -> list[Task]:
    particles = session.inputs.particles
    centres = dataset.first_shifts(particles)
    return soft_iteration.soft_tasks(data, dataset.ctf_of(particles), state, plan, centres)
