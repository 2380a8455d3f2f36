"""Workers hang, come back, or are cut off one way, and tasks take too long: no clock, no sleep.

What rank 0 and the workers decide when time passes, on a cluster of real machines (`loopback`).
"""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpipar.errors import RequeueError
from mpipar.runtime.machines.messages import MASTER
from mpipar.runtime.machines.orders import Compute
from mpipar.runtime.stage import TIMEOUT, Policy
from tests.support.ledger_runs import check, make_tasks
from tests.support.loopback import FORGIVING, Cluster, Ledger

WORKERS, TASKS, PATIENCE = 4, 12, 4.0
MOST = 200
"""Messages in half a second: more than are needed, but a thief may ask a victim again and again
that does not hear rank 0."""


def begun(policy=FORGIVING, workers=WORKERS, **how):
    cluster = Cluster(workers, patience=PATIENCE, **how)
    run = cluster.begin(Ledger(TASKS), make_tasks(TASKS, with_blocks=False), policy)
    return cluster, run


def under_way(seed, policy=FORGIVING, steps=40):
    """A cluster, some steps after the beginning of a run."""
    cluster, run = begun(policy)
    dice = random.Random(seed)
    for _ in range(steps):
        cluster.step(dice)
    return cluster, run, dice


@pytest.mark.parametrize("seed", range(10))
def test_hung_worker_costs_its_tasks_and_not_the_run(seed):
    cluster, run, dice = under_way(seed, steps=10 * seed)
    cluster.hang(2)
    cluster.finish(run, dice)
    check(run, TASKS)
    assert set(cluster.cut_off) <= {2}


@pytest.mark.parametrize("seed", range(10))
def test_worker_that_comes_back_in_time_is_kept(seed):
    cluster, run, dice = under_way(seed)
    for _ in range(5):
        cluster.hang(2)
        cluster.deliver_all()
        cluster.tick(0.6 * PATIENCE)
        cluster.go_on(2)
        cluster.deliver_all()
        cluster.tick(1.0)
    cluster.finish(run, dice)
    check(run, TASKS)
    assert (cluster.losses, sorted(cluster.workers)) == ([], [1, 2, 3, 4])


@pytest.mark.parametrize("seed", range(10))
def test_worker_that_comes_back_late_is_told_why_and_leaves(seed):
    cluster, run, dice = under_way(seed)
    cluster.hang(2)
    cluster.tick(1.2 * PATIENCE)
    (loss,) = cluster.losses
    assert (loss.rank, loss.left) == (2, 3)
    assert "so hung or cut off" in loss.reason
    cluster.go_on(2)
    cluster.finish(run, dice)
    check(run, TASKS)
    cluster.deliver_all()
    assert cluster.left == {2: loss.reason}


def test_all_workers_hung_is_a_requeue():
    cluster, run, dice = under_way(1)
    for rank in range(1, WORKERS + 1):
        cluster.hang(rank)
    cluster.finish(run, dice)
    assert isinstance(run.error, RequeueError)
    assert [loss.left for loss in cluster.losses] == [3, 2, 1, 0]
    assert str(cluster.losses[-1]) in str(run.error)


@pytest.mark.parametrize("seed", range(10))
def test_worker_that_rank_0_does_not_hear_is_cut_off_and_told(seed):
    cluster, run, dice = under_way(seed)
    cluster.lose_what_is_sent(3, MASTER)
    cluster.finish(run, dice)
    check(run, TASKS)
    cluster.deliver_all()
    assert set(cluster.left) == set(cluster.cut_off) <= {3}


def test_worker_that_does_not_hear_rank_0_leaves_by_itself():
    cluster, run, dice = under_way(1)
    cluster.lose_what_is_sent(MASTER, 3)
    while not cluster.left:
        cluster.tick(1.0)
    assert cluster.left == {3: "nothing was heard of rank 0 for 40 s"}
    assert cluster.losses == [], "rank 0 has heard it all the time"
    cluster.finish(run, dice)
    check(run, TASKS)


@pytest.mark.parametrize("seed", range(10))
def test_one_way_link_between_workers_costs_at_most_one_of_them(seed):
    cluster, run, dice = under_way(seed, steps=seed)
    cluster.lose_what_is_sent(1, 2)
    cluster.finish(run, dice)
    check(run, TASKS)
    assert len(cluster.losses) <= 1
    assert all("do not reach each other" in loss.reason for loss in cluster.losses)


@pytest.mark.parametrize("tries", [1, 3])
def test_task_beyond_its_time_costs_its_worker_and_not_the_run(tries):
    policy = Policy(timeout=5.0, tries=tries)
    cluster, run = begun(policy)
    dice = random.Random(tries)
    while not any(isinstance(orders_of(cluster, rank), Compute) for rank in cluster.busy_threads()):
        cluster.step(dice)
    rank = next(r for r in cluster.busy_threads() if isinstance(orders_of(cluster, r), Compute))
    task = cluster.stick(rank)
    if tries > 1:
        cluster.finish(run, dice)
        check(run, TASKS)
    else:
        while run.error is None:
            if not cluster.step(dice):
                cluster.tick(1.0)
        assert f"task {task} failed on rank {rank}: {TIMEOUT}" in str(run.error)
    assert cluster.cut_off == {rank: f"task {task} took longer than 5 s"}


def orders_of(cluster, rank):
    """The next order of a worker's threads."""
    return cluster.threads[rank].orders[0]


class Silence(RuleBasedStateMachine):
    """Workers hang and go on, links break and are mended, at any moment of one run after another.

    Time passes only when all that has been sent to workers that do not hang has arrived, so that
    nobody is slow: whoever is cut off hangs, or has a link that is broken, or waits for an answer
    of such a worker. (A worker that does not hear rank 0 answers no thief; one of the two leaves.)
    """

    @initialize(seed=st.integers(0, 9), hosts=st.integers(1, 3))
    def start(self, seed, hosts):
        self.dice = random.Random(seed)
        self.cluster, self.run = begun(hosts=hosts)
        self.touched = set()  # workers that have hung, or have had a link that was broken

    def alive(self):
        return sorted(self.cluster.workers)

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def worker_hangs(self, data):
        rank = data.draw(st.sampled_from(self.alive()))
        self.touched.add(rank)
        self.cluster.hang(rank)

    @precondition(lambda self: self.cluster.hung)
    @rule(data=st.data())
    def worker_goes_on(self, data):
        self.cluster.go_on(data.draw(st.sampled_from(sorted(self.cluster.hung))))

    @precondition(lambda self: len(self.alive()) > 1)
    @rule(data=st.data())
    def link_breaks(self, data):
        ends = st.sampled_from([MASTER, *self.alive()])
        source, target = data.draw(st.lists(ends, min_size=2, max_size=2, unique=True))
        self.touched |= {source, target} - {MASTER}
        self.cluster.lose_what_is_sent(source, target)

    @rule(steps=st.integers(1, 20))
    def something_happens(self, steps):
        for _ in range(steps):
            self.cluster.step(self.dice)

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0]))
    def time_passes(self, seconds):
        for _ in range(round(2 * seconds)):
            for _ in range(MOST):
                if wires := self.cluster.busy_wires():
                    self.cluster.deliver(self.dice.choice(wires))
            self.cluster.tick(0.5)

    @precondition(lambda self: self.cluster.unnoticed)
    @rule()
    def death_is_noticed(self):
        self.cluster.notice()

    @precondition(lambda self: self.run.over and self.run.error is None)
    @rule()
    def next_run_begins(self):
        check(self.run, TASKS)
        self.cluster.end()
        self.run = self.cluster.begin(Ledger(TASKS), make_tasks(TASKS, with_blocks=True))

    @invariant()
    def only_who_was_disturbed_is_cut_off(self):
        if hasattr(self, "cluster"):
            reasons = self.cluster.cut_off
            for rank in {*reasons, *self.cluster.left} - self.touched:
                pair = re.match(r"it and rank (\d+) on .* do not reach", reasons.get(rank, ""))
                assert pair is not None
                assert int(pair[1]) in self.touched

    @invariant()
    def who_is_cut_off_has_no_task(self):
        if hasattr(self, "cluster") and not self.run.over:
            tasks = self.run.scheduler.tasks.values()
            assert not {task.rank for task in tasks} & self.cluster.cut_off.keys()

    def teardown(self):
        if hasattr(self, "cluster"):
            if not self.cluster.master.ranks and not self.run.over:
                self.cluster.join()
            self.cluster.finish(self.run, self.dice)
            if self.run.error is None:
                check(self.run, TASKS)
            else:
                assert isinstance(self.run.error, RequeueError)
                assert not self.cluster.master.ranks


TestSilence = Silence.TestCase
TestSilence.settings = settings(stateful_step_count=40, deadline=None)
