from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mpipar.runtime.machines.broadcast import children_of, grouped, is_neighbour

RANKS = st.integers(0, 40)
HOSTS = st.lists(st.integers(0, 6), min_size=41, max_size=41)


@given(RANKS, HOSTS, st.sets(st.integers(1, 40)))
def test_every_rank_is_reached_once_and_every_host_from_outside_once(workers, places, separate):
    hosts = {rank: f"node{places[rank]}" for rank in range(workers + 1)}
    groups = grouped(range(1, workers + 1), hosts, separate)
    edges = [(rank, child) for rank in range(workers + 1) for child in children_of(rank, groups)]
    assert sorted(child for _, child in edges) == list(range(1, workers + 1))
    reached, left = {0}, edges
    while more := {child for rank, child in left if rank in reached} - reached:
        reached |= more
    assert reached == set(range(workers + 1))
    entries = Counter(
        hosts[child]
        for rank, child in edges
        if not is_neighbour(rank, child, groups) and child not in separate
    )
    assert all(count == 1 for count in entries.values())
    assert hosts[0] not in entries


@given(RANKS, HOSTS)
def test_nobody_sends_to_more_than_three_hosts_and_three_neighbours(workers, places):
    hosts = {rank: f"node{places[rank]}" for rank in range(workers + 1)}
    groups = grouped(range(1, workers + 1), hosts)
    for rank in range(workers + 1):
        near = [is_neighbour(rank, child, groups) for child in children_of(rank, groups)]
        assert max(near.count(True), near.count(False)) <= 3
        assert all(hosts[rank] == hosts[c] for c in children_of(rank, groups)) or any(
            group[0] == rank for group in groups
        )


def test_groups_begin_with_rank_0s_and_leaders_with_the_lowest_ranks():
    hosts = {0: "b", 1: "a", 2: "b", 3: "a", 4: "c"}
    assert grouped([1, 2, 3, 4], hosts) == ((0, 2), (1, 3), (4,))
    assert grouped([1, 2, 3, 4], hosts, separate={2}) == ((0,), (1, 3), (2,), (4,))
    assert grouped([1, 2], {}) == ((0,), (1,), (2,))


def test_rank_outside_the_tree_has_no_children():
    assert children_of(5, ((0, 1), (2,))) == ()
