"""A worker dies at every single moment of a run, and rank 0 notices soon or late.

The moments are the steps of an undisturbed run, which the same dice repeat up to the death. Six
workers give both trees, of Begin and of the reduction, an inner node.
"""

from __future__ import annotations

import random

import pytest

from mpipar.errors import RequeueError
from mpipar.runtime.stage import Stage
from tests.support.ledger_runs import check, make_tasks
from tests.support.loopback import Cluster, Ledger

WORKERS, TASKS = 6, 20


class Plain(Stage):
    """Has results, but no sums."""

    def run(self, task, block, state):
        return 7 * task.id


def begun(seed, stage=None, workers=WORKERS):
    blind = {2, 5} if seed == 3 else ()
    cluster = Cluster(workers, shuffle=seed % 2 or None, hosts=1 + seed % 3, blind=blind)
    run = cluster.begin(stage or Ledger(TASKS), make_tasks(TASKS, with_blocks=seed % 3 > 0))
    return cluster, run


def moments(seed, stage=None):
    cluster, run = begun(seed, stage)
    dice, steps = random.Random(seed), 0
    while not run.over:
        steps += 1
        if not cluster.step(dice):
            cluster.tick()
    return steps


def killed_at(moment, seed, kills, stage=None):
    """Play a run up to a moment, kill workers there and later, and play to the end."""
    cluster, run = begun(seed, stage)
    dice, fate = random.Random(seed), random.Random(f"{seed} {moment}")
    for _ in range(moment):
        if not cluster.step(dice):
            cluster.tick()
    for _ in range(kills):
        cluster.die(fate.choice(sorted(cluster.workers)), fate)
        for _ in range(fate.choice([0, 1, 5, 1000])):
            if run.over or not cluster.step(fate):
                break
        if fate.random() < 0.7:
            cluster.notice()
    cluster.finish(run, fate)
    return cluster, run


@pytest.mark.parametrize("kills", [1, 2, WORKERS - 1])
@pytest.mark.parametrize("seed", range(4))
def test_death_at_every_moment_costs_no_result_and_counts_nothing_twice(seed, kills):
    count = moments(seed)
    assert count > 100, "too few moments: the test tests nothing"
    for moment in range(count):
        cluster, run = killed_at(moment, seed, kills)
        check(run, TASKS)
        cluster.end()
        again = cluster.begin(Ledger(TASKS), make_tasks(TASKS, with_blocks=False))
        cluster.finish(again, random.Random(moment))
        check(again, TASKS)


def test_finished_tasks_without_sums_are_not_run_again():
    for moment in range(moments(1, Plain())):
        cluster, run = begun(1, Plain())
        dice = random.Random(1)
        for _ in range(moment):
            cluster.step(dice)
        done = run.scheduler.finished
        for rank in range(1, WORKERS):
            cluster.lose(rank)
        assert run.scheduler.finished == done
        cluster.finish(run, dice)
        assert [run.results[task] for task in range(TASKS)] == [7 * n for n in range(TASKS)]


@pytest.mark.parametrize("seed", range(3))
def test_worker_that_joins_at_any_moment_works_and_can_be_lost(seed):
    shares = []
    for moment in range(moments(seed)):
        cluster, run = begun(seed)
        dice, fate = random.Random(seed), random.Random(f"{seed} {moment}")
        for _ in range(moment):
            if not cluster.step(dice):
                cluster.tick()
        cluster.lose(fate.choice(sorted(cluster.workers)))
        cluster.join()
        for _ in range(fate.choice([0, 5, 50, 1000])):
            if run.over or not cluster.step(fate):
                break
        if fate.random() < 0.5:
            cluster.die(WORKERS + 1, fate)
        cluster.finish(run, fate)
        check(run, TASKS)
        shares.append(run.done.get(WORKERS + 1, 0))
        cluster.end()
        again = cluster.begin(Ledger(TASKS), make_tasks(TASKS, with_blocks=False))
        while cluster.unnoticed:
            cluster.notice()
        cluster.finish(again, random.Random(moment))
        check(again, TASKS)
    assert sum(shares) > 20, "who joins does not work"


def test_death_of_all_at_every_moment_is_a_requeue():
    ends = []
    for moment in range(moments(0)):
        cluster, run = begun(0)
        dice = random.Random(0)
        for _ in range(moment):
            cluster.step(dice)
        for rank in range(1, WORKERS + 1):
            cluster.die(rank, dice)
        cluster.finish(run, dice)
        if run.error is None:  # the sums were on their way already
            check(run, TASKS)
        ends.append(type(run.error))
    assert ends.count(RequeueError) > 100
    assert ends.count(type(None)) < 10
