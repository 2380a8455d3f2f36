"""Any tree, any sizes, any order of delivery: the sum at rank 0 is the sum, memory is bounded."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mpipar.runtime.machines.messages import Collect, Partial
from mpipar.runtime.machines.reduction import (
    CHUNK,
    WINDOW,
    RootReduction,
    WholeSums,
    WorkerReduction,
)


@given(
    ranks=st.integers(1, 20),
    sizes=st.dictionaries(
        st.text("abc", min_size=1, max_size=3), st.integers(0, 7), min_size=1, max_size=3
    ),
    seed=st.integers(0, 10**9),
)
@settings(deadline=None)
def test_sum_is_right_and_no_rank_piles_up_chunks(ranks, sizes, seed):
    dice = random.Random(seed)
    numbers = np.random.default_rng(seed)
    shapes = {name: (size, CHUNK // 4) for name, size in sizes.items()}
    own = {
        rank: {
            name: _numbers(numbers, shape) for name, shape in shapes.items() if dice.random() < 0.8
        }
        for rank in range(1, ranks + 1)
    }
    branches, layouts = dict[int, WorkerReduction](), dict[int, Any]()
    for rank, sums in own.items():
        branches[rank] = WorkerReduction()
        branches[rank].collect(Collect(1, 1))
        layouts[rank] = branches[rank].gathered(sums)
    root = RootReduction(1, 1, layouts)
    _drive(root, branches, dice)
    assert root.done
    assert isinstance(root.totals, WholeSums)
    found = root.totals.sums
    for name, shape in shapes.items():
        parts = [sums[name] for sums in own.values() if name in sums]
        if parts:
            assert found[name].tobytes() == np.sum(parts, axis=0, dtype=np.int64).tobytes()
            assert found[name].shape == shape


def _numbers(numbers, shape):
    array = np.zeros(shape, np.int64)
    array[:, ::100] = numbers.integers(-(2**40), 2**40, (shape[0], -(-shape[1] // 100)))
    return array


def _drive(root, branches, dice):
    wires = {}

    def post(source, sends):
        for send in sends:
            wires.setdefault((source, send.rank), deque()).append(send.message)

    post(0, root.start())
    while busy := sorted(wire for wire, waiting in wires.items() if waiting):
        source, target = dice.choice(busy)
        message = wires[source, target].popleft()
        if target == 0:
            post(0, root.add(message))
        else:
            post(target, branches[target].handle(message))
        for waiting in wires.values():
            assert sum(isinstance(message, Partial) for message in waiting) <= WINDOW
