from __future__ import annotations

import numpy as np
import pytest

from mpipar.errors import ProtocolError
from mpipar.runtime.machines.messages import Collect, More, Partial, Reduce, Send
from mpipar.runtime.machines.reduction import (
    CHUNK,
    FAN_IN,
    WINDOW,
    PartialChunks,
    ReductionNode,
    RootReduction,
    WholeSums,
    WorkerReduction,
    check_sums,
    layout_of,
)

LAYOUT = (("a", (3,)),)


def ones(count, size=10):
    sums = {"a": np.ones(count * size, np.int64)}
    return PartialChunks(sums, layout_of(sums), size)


def reduce(parent, children, number=1):
    return Reduce(1, number, parent, children, LAYOUT)


def all_of(chunks):
    return [chunks[i].tolist() for i in range(len(chunks))]


def test_chunks_cover_all_arrays_in_order_of_name():
    sums = {"b": np.arange(5), "a": np.arange(6).reshape(2, 3), "empty": np.zeros(0, np.int64)}
    chunks = PartialChunks(sums, layout_of(sums), size=4)
    assert all_of(chunks) == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3], [4]]
    assert layout_of(sums) == (("a", (2, 3)), ("b", (5,)), ("empty", (0,)))


def test_only_int64_arrays_are_sums():
    assert check_sums(None) is None
    with pytest.raises(TypeError, match="'a' is float64"):
        check_sums({"a": np.zeros(3)})
    with pytest.raises(TypeError, match="'a' is int"):
        check_sums({"a": 3})
    strided = check_sums({"a": np.arange(10)[::2]})
    assert strided["a"].flags.c_contiguous


def test_leaf_sends_a_window_then_as_the_parent_allows():
    node = ReductionNode(reduce(0, ()), ones(WINDOW + 2))
    assert [send.message.chunk for send in node.start()] == list(range(WINDOW))
    sent = node.more(More(1, 1, WINDOW + 1))
    assert [(send.rank, send.message.chunk) for send in sent] == [(0, WINDOW)]
    assert node.more(More(1, 1, 1)) == []


def test_node_adds_children_to_its_own_and_leaves_its_own_alone():
    own = ones(1)
    node = ReductionNode(reduce(7, (2, 3)), own)
    assert node.start() == []
    assert node.add(Partial(1, 1, 0, np.full(10, 5))) == []
    up, *more = node.add(Partial(1, 1, 0, np.full(10, 6)))
    assert up.rank == 7
    assert up.message.data.tolist() == [12] * 10
    assert more == [Send(2, More(1, 1, 1 + WINDOW)), Send(3, More(1, 1, 1 + WINDOW))]
    assert own[0].tolist() == [1] * 10


def test_childs_chunk_is_not_changed_in_place():
    theirs = np.full(10, 5)
    node = ReductionNode(reduce(0, (2, 3)), ones(1))
    node.add(Partial(1, 1, 0, theirs))
    node.add(Partial(1, 1, 0, np.full(10, 6)))
    assert theirs.tolist() == [5] * 10


def test_tree_has_every_worker_once_and_a_bounded_fan_in():
    root = RootReduction(1, 1, dict.fromkeys(range(1, 60), LAYOUT))
    orders = {send.rank: send.message for send in root.start()}
    assert sorted(orders) == list(range(1, 60))
    children = [child for order in orders.values() for child in order.children]
    top = [rank for rank, order in orders.items() if order.parent == 0]
    assert sorted(children + top) == list(range(1, 60))
    assert len(top) <= FAN_IN
    assert max(len(order.children) for order in orders.values()) <= FAN_IN
    assert all(
        rank in orders[order.parent].children for rank, order in orders.items() if order.parent
    )


def test_partials_of_different_shape_are_refused_by_name():
    with pytest.raises(ProtocolError, match="ranks 1 and 2 differ"):
        RootReduction(1, 1, {1: (("a", (3,)),), 2: (("a", (4,)),)})


def test_array_that_a_worker_lacks_counts_as_zero():
    root = RootReduction(1, 1, {1: (("a", (3,)),), 2: (("b", (5,)),)})
    layout = root.start()[0].message.layout
    assert layout == (("a", (3,)), ("b", (5,)))
    assert all_of(PartialChunks({"b": np.ones(5, np.int64)}, layout, 4)) == [[0] * 3, [1] * 4, [1]]
    assert all_of(PartialChunks({"b": np.ones(5, np.int64)}, (("a", (9,)),), 4)) == [
        [0] * 4,
        [0] * 4,
        [0],
    ]


def test_arrays_without_elements_need_no_messages():
    root = RootReduction(1, 1, {1: (("a", (0, 3)),)})
    assert root.done
    assert isinstance(root.totals, WholeSums)
    assert root.totals.sums["a"].shape == (0, 3)


class Pieces:
    """Totals that note what they are given."""

    def __init__(self, layout):
        self.layout, self.taken = layout, []

    def take(self, name, start, piece):
        self.taken.append((name, start, piece.tolist()))


def test_totals_get_each_chunk_once_all_children_have_sent_it():
    layout = (("a", (CHUNK + 2,)), ("b", (1, 2)))
    root = RootReduction(1, 1, {1: layout, 2: layout}, totals=Pieces)
    assert isinstance(root.totals, Pieces)
    assert root.totals.layout == layout
    first, rest = np.ones(CHUNK, np.int64), np.array([3, 4])
    for chunk, data in enumerate((first, rest, rest)):
        assert root.add(Partial(1, 1, chunk, data)) == []
    assert root.totals.taken == []
    for chunk, data in enumerate((first, rest, rest)):
        assert not root.done
        root.add(Partial(1, 1, chunk, data))
    assert root.done
    assert root.totals.taken == [
        ("a", 0, [2] * CHUNK),
        ("a", CHUNK, [6, 8]),
        ("b", 0, [6, 8]),
    ]
    assert (first == 1).all()
    assert rest.tolist() == [3, 4]


def test_all_children_may_go_on_once_the_slowest_has_sent_a_chunk():
    layout = (("a", (CHUNK * (WINDOW + 1),)),)
    root = RootReduction(1, 1, {1: layout, 2: layout})
    data = np.ones(CHUNK, np.int64)
    for chunk in range(WINDOW):
        assert root.add(Partial(1, 1, chunk, data)) == []
    more = More(1, 1, WINDOW + 1)
    assert root.add(Partial(1, 1, 0, data)) == [Send(1, more), Send(2, more)]
    assert root.add(Partial(1, 1, 1, data)) == []  # they may send all there is


def test_chunk_of_a_child_that_is_ahead_waits_for_reduce():
    branch = WorkerReduction()
    branch.collect(Collect(1, 1))
    branch.gathered({"a": np.ones(3, np.int64)})
    assert branch.handle(Partial(1, 1, 0, np.full(3, 2))) == []
    sends = branch.handle(reduce(0, (2,)))
    assert sends[0].message.data.tolist() == [3, 3, 3]


def test_chunk_of_a_reduction_that_was_given_up_is_dropped():
    branch = WorkerReduction()
    for number in (1, 2):
        branch.collect(Collect(1, number))
        branch.gathered({"a": np.ones(3, np.int64)})
        branch.handle(reduce(0, (2,), number))
    assert branch.handle(Partial(1, 1, 0, np.full(3, 2))) == []
    assert branch.handle(More(1, 1, 9)) == []
    assert branch.handle(reduce(0, ())) == []
    assert branch.handle(Partial(1, 2, 0, np.full(3, 4)))[0].message.data.tolist() == [5, 5, 5]
