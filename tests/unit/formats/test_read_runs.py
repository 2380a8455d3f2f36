"""Near images are one read, each image goes to its own place, and nothing else is touched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.formats import read_runs
from mpipar.formats.read_runs import plan_reads

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE = 10


def carried_out(wanted: Sequence[tuple[int, int]], memory: bytearray, data: bytes) -> list[int]:
    """Do the planned reads of `data`; the sizes of these."""
    runs, copies = plan_reads(wanted, SIZE)
    for run in runs:
        at = run.first * SIZE
        for view in run.views(memoryview(memory)):
            view[:] = data[at : at + len(view)]
            at += len(view)
        assert at == run.first * SIZE + run.size
    for start, other in copies:
        memory[other : other + SIZE] = memory[start : start + SIZE]
    return [run.size for run in runs]


@given(
    numbers=st.lists(st.integers(0, 29), max_size=20),
    gap=st.sampled_from([0, 10, 35, 1000]),
    largest=st.sampled_from([10, 25, 1000]),
    seed=st.integers(0, 99),
)
def test_every_image_comes_to_its_place(
    numbers: list[int], gap: int, largest: int, seed: int
) -> None:
    data = os.urandom(300)
    places = np.random.default_rng(seed).permutation(len(numbers) + 3)[: len(numbers)]
    wanted = [(n, int(p) * SIZE) for n, p in zip(sorted(numbers), places, strict=True)]
    memory = bytearray(b"-" * SIZE * (len(numbers) + 3))
    expected = bytearray(memory)
    for number, start in wanted:
        expected[start : start + SIZE] = data[number * SIZE : (number + 1) * SIZE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_runs, "LONGEST_GAP", gap)
        patch.setattr(read_runs, "LARGEST_READ", largest)
        sizes = carried_out(wanted, memory, data)
    assert memory == expected
    assert all(size <= largest for size in sizes)


def test_neighbours_that_stay_neighbours_are_one_part() -> None:
    (run,), copies = plan_reads([(5, 0), (6, 10), (7, 20), (8, 50)], SIZE)
    assert run.parts == [(0, 30), (50, 60)]
    assert copies == []


def test_a_read_has_no_more_parts_than_linux_takes() -> None:
    runs, _ = plan_reads([(number, -10 * number + 30_000) for number in range(2500)], SIZE)
    assert [len(run.parts) for run in runs] == [1000, 1000, 500]
