from __future__ import annotations

from jobs.scaling.simulate import Case, simulate


def test_stealing_brings_uneven_tasks_near_a_queue_without_cost():
    verdict = simulate(Case(ranks=128, tasks=20, mean=0.3))
    assert verdict.static < 0.8
    assert verdict.efficiency > 0.95 * verdict.free
    assert verdict.messages < 1.5
    assert verdict.load < 0.5
