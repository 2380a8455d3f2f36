"""Links between hosts are broken, though all workers reach rank 0: the run ends, and is right."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpipar.runtime.machines.messages import Begin
from tests.support.ledger_runs import check, make_tasks
from tests.support.loopback import Cluster, Ledger

WORKERS, TASKS, PATIENCE = 6, 20, 4.0


def between_hosts(hosts):
    """All pairs of workers on different hosts."""
    pairs = itertools.combinations(range(1, WORKERS + 1), 2)
    return [(a, b) for a, b in pairs if a % hosts != b % hosts]


def played(hosts, broken, seed, *, runs=2):
    """Runs over such links, one after the other."""
    cluster = Cluster(
        WORKERS, hosts=hosts, broken=broken, patience=PATIENCE, shuffle=seed % 2 or None
    )
    dice = random.Random(seed)
    for _ in range(runs):
        run = cluster.begin(Ledger(TASKS), make_tasks(TASKS, with_blocks=seed % 3 > 0))
        cluster.finish(run, dice)
        check(run, TASKS)
        cluster.end()
    return cluster


@given(data=st.data(), hosts=st.integers(2, 4), seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_any_broken_links_cost_tasks_and_no_result(data, hosts, seed):
    broken = data.draw(st.sets(st.sampled_from(between_hosts(hosts)), min_size=1))
    cluster = played(hosts, broken, seed)
    assert cluster.workers


@pytest.mark.parametrize("seed", range(20))
def test_of_two_hosts_that_are_apart_one_stays_whole(seed):
    cluster = played(2, between_hosts(2), seed, runs=4)
    hosts = [cluster.names[rank] for rank in cluster.workers]
    assert hosts.count("host 1") == 3


def test_host_that_has_missed_begin_gets_it_from_rank_0_ever_after():
    """Ranks 4 and 10 are on a host that Begin reaches over rank 1."""
    cluster = Cluster(12, hosts=6, broken=[(1, 4)], patience=PATIENCE)
    for is_known in (False, True, True):
        run = cluster.begin(Ledger(TASKS), make_tasks(TASKS, with_blocks=False))
        begins = [any(isinstance(m, Begin) for m in cluster.wires[0, rank]) for rank in (4, 10)]
        assert begins == [is_known, False]
        cluster.deliver_all()
        for _ in range(0 if is_known else 3):
            cluster.tick()
        cluster.finish(run, random.Random(1))
        check(run, TASKS)
        cluster.end()
    assert len(cluster.workers) == 12, "nobody had to steal from the other"


@pytest.mark.parametrize("seed", range(5))
def test_whole_links_cost_nobody(seed):
    cluster = Cluster(WORKERS, hosts=2, patience=PATIENCE)
    run = cluster.begin(Ledger(TASKS), make_tasks(TASKS, with_blocks=True))
    cluster.finish(run, random.Random(seed))
    assert sorted(cluster.workers) == list(range(1, WORKERS + 1))
