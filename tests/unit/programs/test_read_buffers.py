"""Memory comes back when nothing uses it, and never before."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from mpipar.programs.read_buffers import HUGE_PAGE, ReadBuffers


def address(array: Any) -> int:
    return int(array.ctypes.data)


def test_memory_is_used_again_when_no_view_is_left() -> None:
    buffers = ReadBuffers()
    first = buffers.take(1000)
    where = address(first)
    assert type(first) is np.ndarray, "anything else would be pickled with a copy"
    assert where % HUGE_PAGE == 0
    view = first[400:800].view(np.float32).reshape(10, 10)
    raw = pickle.PickleBuffer(view.data).raw()
    del first
    assert buffers.free_bytes() == 0
    del view
    assert buffers.free_bytes() == 0
    part = raw[:3]
    del raw
    assert buffers.free_bytes() == 0
    assert address(buffers.take(1000)) != where
    del part
    assert address(buffers.take(1000)) == where


def test_memory_of_another_size_is_not_taken() -> None:
    buffers = ReadBuffers()
    large = buffers.take(40 * HUGE_PAGE)
    large[:] = 1
    del large
    kept = buffers.free_bytes()
    small = buffers.take(5)
    assert small.nbytes == 5
    assert buffers.free_bytes() == kept
    assert buffers.take(0).nbytes == 0


def test_free_memory_is_bounded() -> None:
    buffers = ReadBuffers(most_free=7 * HUGE_PAGE)
    taken = [buffers.take(HUGE_PAGE) for _ in range(10)]
    assert len({address(array) for array in taken}) == 10
    taken.clear()
    assert buffers.free_bytes() == 6 * HUGE_PAGE
