"""Scheduler, deques, file server and reduction together, in any order of events, with losses.

Rules let one thing happen in a cluster of real machines: a message arrives, a compute thread or
the I/O thread gets on, time passes, a task raises, a worker dies or comes. At every moment no two
live workers have the same task; at the end every task was counted exactly once.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpipar.runtime.machines.orders import (
    Compute,
)
from mpipar.runtime.machines.task_state import TaskState
from mpipar.runtime.stage import QUARANTINED, Policy
from tests.support.ledger_runs import check, make_tasks
from tests.support.loopback import STEPS, Cluster, Ledger


class AnyOrder(RuleBasedStateMachine):
    """One run after another on one cluster."""

    @initialize(
        workers=st.integers(1, 5),
        threads=st.integers(1, 2),
        count=st.integers(0, 12),
        with_blocks=st.booleans(),
        cache_bytes=st.sampled_from([0, 64, 1 << 20]),
        shuffle=st.none() | st.integers(0, 9),
    )
    def start(self, workers, threads, count, with_blocks, cache_bytes, shuffle):
        words = {"threads": threads, "cache_bytes": cache_bytes, "shuffle": shuffle}
        self.cluster = Cluster(workers, **words, hosts=1 + workers % 3)
        self.cluster.expected = 1
        self.count = count
        self.tasks = make_tasks(count, with_blocks)
        self.begin()

    def begin(self):
        self.later = self.tasks[: len(self.tasks) // 2]
        now = self.tasks[len(self.later) :]
        self.run = self.cluster.begin(Ledger(self.count), now, sealed=False)

    @precondition(lambda self: not self.run.sealed)
    @rule(data=st.data())
    def more_tasks_come(self, data):
        count = data.draw(st.integers(0, len(self.later)))
        if not self.run.over:
            self.cluster.add(self.later[:count])
            del self.later[:count]
            if not self.later:
                self.cluster.seal()

    @precondition(lambda self: self.cluster.busy_wires())
    @rule(data=st.data())
    def message_arrives(self, data):
        self.cluster.deliver(data.draw(st.sampled_from(self.cluster.busy_wires())))

    @precondition(lambda self: self.cluster.busy_threads())
    @rule(data=st.data(), newest=st.booleans())
    def thread_gets_on(self, data, newest):
        rank = data.draw(st.sampled_from(self.cluster.busy_threads()))
        orders = self.cluster.threads[rank].orders
        # Several threads may overtake each other, but not the start of a stage.
        ready = all(isinstance(order, Compute) for order in orders)
        self.cluster.work(rank, len(orders) - 1 if newest and ready else 0)

    @precondition(lambda self: self.cluster.busy_threads())
    @rule(data=st.data())
    def task_raises(self, data):
        rank = data.draw(st.sampled_from(self.cluster.busy_threads()))
        order = self.cluster.threads[rank].orders[0]
        if isinstance(order, Compute) and order.serial == self.run.begin.serial:
            tracked = self.run.scheduler.tasks[order.work[0][0].id]
            if len(tracked.failed_on) < 2:
                self.cluster.work(rank, fails=True)

    @precondition(lambda self: self.cluster.reading)
    @rule(data=st.data())
    def block_is_read(self, data):
        self.cluster.read(data.draw(st.integers(0, len(self.cluster.reading) - 1)))

    @rule(seconds=st.sampled_from([0.05, 1.0]))
    def time_passes(self, seconds):
        self.cluster.tick(seconds)

    @precondition(lambda self: self.cluster.workers)
    @rule(data=st.data())
    def worker_dies(self, data):
        rank = data.draw(st.sampled_from(sorted(self.cluster.workers)))
        self.cluster.die(rank, random.Random(data.draw(st.integers(0, 3))))

    @precondition(lambda self: self.cluster.unnoticed)
    @rule()
    def death_is_noticed(self):
        self.cluster.notice()

    @precondition(lambda self: len(self.cluster.workers) < 5)
    @rule()
    def worker_comes(self):
        self.cluster.join()

    @precondition(lambda self: self.run.over)
    @rule()
    def next_run_begins(self):
        check(self.run, self.count)
        self.cluster.end()
        self.begin()

    @invariant()
    def no_task_is_in_two_places(self):
        if hasattr(self, "cluster"):
            assert all(len(ranks) == 1 for ranks in self.cluster.owners().values())

    @invariant()
    def worker_with_a_task_owns_it(self):
        """The scheduler knows the worker of each task, so that each report is legal."""
        if hasattr(self, "cluster") and not self.run.over:
            tasks = self.run.scheduler.tasks
            serial = self.run.begin.serial
            for rank, worker in self.cluster.workers.items():
                if worker.run is not None and worker.run.serial == serial:
                    for task in worker.run.deque.tasks:
                        assert (tasks[task.id].state, tasks[task.id].rank) == (
                            TaskState.PLACED,
                            rank,
                        )

    @invariant()
    def books_agree(self):
        """States, loads, victims and counts of the scheduler agree."""
        if hasattr(self, "cluster"):
            self.run.scheduler.sanity_check()

    def teardown(self):
        if hasattr(self, "cluster"):
            if not self.run.sealed:
                self.cluster.add(self.later)
                self.cluster.seal()
            if not self.cluster.workers:
                self.cluster.join()
            self.cluster.finish(self.run, random.Random(0))
            check(self.run, self.count)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(stateful_step_count=60, deadline=None)


@given(seed=st.integers(0, 10**9))
@settings(deadline=None)
def test_sum_is_the_serial_sum_whatever_the_dice_say(seed):
    dice = random.Random(seed)
    count, kills, fails = dice.randint(0, 60), dice.choice([0, 0.01, 0.05]), dice.choice([0, 0.05])
    cluster = Cluster(
        dice.randint(1, 8),
        threads=dice.randint(1, 3),
        cache_bytes=dice.choice([0, 100, 1 << 20]),
        shuffle=dice.choice([None, seed]),
    )
    for _ in range(2):
        run = cluster.begin(Ledger(count), make_tasks(count, dice.random() < 0.7))
        for _ in range(STEPS):
            if run.over:
                break
            if dice.random() < kills and len(cluster.workers) > 1:
                cluster.lose(dice.choice(sorted(cluster.workers)))
            _maybe_fail(cluster, run, dice, fails)
            if not cluster.step(dice):
                cluster.tick()
                assert cluster.busy_wires() or cluster.reading or run.over, "hung"
        check(run, count)
        cluster.end()


def _maybe_fail(cluster, run, dice, probability):
    for rank in cluster.busy_threads():
        order = cluster.threads[rank].orders[0]
        if not isinstance(order, Compute) or order.serial != run.begin.serial:
            continue
        tries = len(run.scheduler.tasks[order.work[0][0].id].failed_on)
        if tries < 2 and dice.random() < probability:
            cluster.work(rank, fails=True)


@pytest.mark.parametrize("workers", [1, 2, 17])
def test_number_of_messages_is_bounded(workers):
    """No ping-pong and no storm: a constant per task and rank, however long the end takes."""
    count = 40
    cluster = Cluster(workers)
    run = cluster.begin(Ledger(count), make_tasks(count, with_blocks=False))
    cluster.finish(run, random.Random(1))
    assert cluster.delivered < 6 * count + 30 * workers


@given(seed=st.integers(0, 10**9))
@settings(deadline=None)
def test_tasks_that_kill_are_set_aside_and_all_others_are_done(seed):
    dice = random.Random(seed)
    count, poisons = dice.randint(1, 30), {}
    for task in dice.sample(range(count), min(count, dice.randint(1, 2))):
        poisons[task] = 0
    cluster = Cluster(8, threads=dice.randint(1, 2), shuffle=dice.choice([None, seed]))
    run = cluster.begin(
        Ledger(count), make_tasks(count, with_blocks=False), Policy(deaths=3), sealed=False
    )
    cluster.seal()
    for _ in range(STEPS):
        if run.over:
            break
        for task, rank in killing(cluster, poisons):
            poisons[task] += 1
            cluster.die(rank)
            while cluster.wires.get((rank, 0)):  # its last words
                cluster.deliver((rank, 0))
            cluster.notice()
        if not cluster.step(dice):
            cluster.tick()
            assert cluster.busy_wires() or run.over, "hung"
    assert run.error is None
    assert all(deaths <= 3 for deaths in poisons.values())
    for task in range(count):
        if task in poisons:
            assert run.results[task].kind == QUARANTINED
        else:
            assert run.results[task] == 7 * task
    assert run.sums["counted"].tolist() == [int(task not in poisons) for task in range(count)]


def killing(cluster, poisons):
    """Return the first worker whose thread is about to run a task that kills, and that task."""
    for rank in cluster.busy_threads():
        order = cluster.threads[rank].orders[0]
        if isinstance(order, Compute) and order.work[0][0].id in poisons:
            return [(order.work[0][0].id, rank)]
    return []
