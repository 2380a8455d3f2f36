"""Memory comes back when nothing uses it, and never before."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest

from mpipar.programs.read_buffers import HUGE_PAGE, PAGE, ReadBuffers


def address(array: Any) -> int:
    return int(array.ctypes.data)


def test_memory_is_used_again_when_no_view_is_left() -> None:
    buffers = ReadBuffers()
    first = buffers.take(1000)
    where = address(first)
    assert type(first) is np.ndarray, "anything else would be pickled with a copy"
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


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, 10**6, 1 << 20, HUGE_PAGE, 5 * 10**6])
def test_a_piece_is_as_long_as_wanted_and_wastes_little(size: int) -> None:
    buffers = ReadBuffers()
    array = buffers.take(size)
    array[:] = 7
    assert array.nbytes == size
    if size >= 1 << 20:
        assert address(array) % HUGE_PAGE == 0
    del array
    assert buffers.free_bytes() <= max(2 * size, PAGE) + HUGE_PAGE * (size >= 1 << 20)


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


def test_memory_of_sizes_that_are_not_wanted_any_more_goes() -> None:
    buffers = ReadBuffers()
    taken = [buffers.take(10) for _ in range(6)]
    taken.clear()
    assert buffers.free_bytes() == 6 * PAGE
    buffers.take(20 * HUGE_PAGE)
    assert buffers.free_bytes() == 2 * PAGE + 21 * HUGE_PAGE


def test_free_memory_is_bounded() -> None:
    buffers = ReadBuffers(most_free=7 * HUGE_PAGE)
    taken = [buffers.take(HUGE_PAGE) for _ in range(10)]
    assert len({address(array) for array in taken}) == 10
    taken.clear()
    assert buffers.free_bytes() == 6 * HUGE_PAGE


def test_two_pieces_are_kept_however_large() -> None:
    buffers = ReadBuffers(most_free=HUGE_PAGE)
    taken = [buffers.take(4 * HUGE_PAGE) for _ in range(4)]
    places = {address(array) for array in taken}
    taken.clear()
    assert buffers.free_bytes() == 2 * 5 * HUGE_PAGE
    assert {address(buffers.take(4 * HUGE_PAGE)) for _ in range(2)} <= places


def test_memory_comes_back_from_other_threads() -> None:
    buffers = ReadBuffers()

    def use() -> None:
        for size in (10, 3 * HUGE_PAGE, 10) * 30:
            array = buffers.take(size)
            array[:3] = threading.get_ident() % 251
            assert (array[:3] == threading.get_ident() % 251).all()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert buffers.free_bytes() <= 64 << 20
