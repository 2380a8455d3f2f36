from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpipar.runtime.node_memory import shared_arrays as depot_module
from mpipar.runtime.node_memory.shared_arrays import (
    LARGE,
    ArrayHandle,
    SharedArrays,
    UnmappableError,
    has_tickets,
    memory_name,
)
from mpipar.runtime.stage import frozen
from tests.support.memory import inode_of

RNG = np.random.default_rng(1)
VALUES = frozen(
    {
        "volume": RNG.normal(size=(65, 64, 63)).astype(np.complex64),
        "bytes": np.arange(LARGE + 3).astype(np.uint8),
        "records": np.zeros(LARGE // 8, [("x", "<i4"), ("when", "<M8[s]")]),
        "small": np.arange(7.0),
        "text": "hello",
    }
)
LARGE_ONES = {"volume", "bytes", "records"}


def descriptors():
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


@pytest.fixture
def lodged():
    before = descriptors()
    depot = SharedArrays.lodge(VALUES)
    yield depot
    if depot.tickets:
        depot.close()
    assert descriptors() == before


def ticket_of(depot):
    return depot.tickets["volume"]


def unreachable(tickets, reason):
    before = descriptors()
    with pytest.raises(UnmappableError, match=reason):
        SharedArrays.find(tickets)
    assert descriptors() == before


def test_large_arrays_are_found_as_they_were_read_only_aligned_and_in_one_memory(lodged):
    found = SharedArrays.find(lodged.tickets)
    assert {name for name, value in lodged.tickets.items() if isinstance(value, ArrayHandle)} == (
        LARGE_ONES
    )
    for name, value in VALUES.items():
        array = found.values[name]
        assert np.array_equal(array, value), name
        if name in LARGE_ONES:
            assert (array.dtype, array.shape) == (value.dtype, value.shape)
            assert array.flags.c_contiguous
            assert array.flags.aligned
            assert not array.flags.writeable
            assert inode_of(array) == inode_of(lodged.values[name]) == ticket_of(lodged).inode
    with pytest.raises(ValueError, match="WRITEABLE"):
        found.values["volume"].flags.writeable = True
    found.close()


def test_other_process_finds_what_tickets_lead_to(lodged):
    wire = pickle.dumps(lodged.tickets)
    assert len(wire) < 3000
    script = (
        "import pickle, sys\n"
        "from mpipar.runtime.node_memory.shared_arrays import SharedArrays\n"
        "values = SharedArrays.find(pickle.load(sys.stdin.buffer)).values\n"
        "print(repr(values['volume'].sum()), values['text'])\n"
    )
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, input=wire, capture_output=True, check=False)
    assert done.stdout.decode().strip() == f"{VALUES['volume'].sum()!r} hello", done.stderr.decode()


def test_who_found_it_can_pass_it_on_when_the_lender_has_gone(lodged):
    second = SharedArrays.find(lodged.tickets)
    lodged.close()
    third = SharedArrays.find(second.tickets)
    second.close()
    assert np.array_equal(third.values["bytes"], VALUES["bytes"])
    arrays = dict(third.values)
    third.close()
    assert np.array_equal(arrays["volume"], VALUES["volume"])


def test_memory_is_sealed(lodged):
    path = f"/proc/self/fd/{ticket_of(lodged).descriptor}"
    writing = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(writing, b"x", 100)
        with pytest.raises(PermissionError):
            os.ftruncate(writing, 0)
    finally:
        os.close(writing)


def test_descriptor_number_that_is_another_file_by_now_is_not_mistaken(lodged):
    tickets = dict(lodged.tickets)
    number = ticket_of(lodged).descriptor
    lodged.close()
    unreachable(tickets, "No such file")
    other = SharedArrays.lodge(VALUES)  # as large, and at the same number
    assert ticket_of(other).descriptor == number
    unreachable(tickets, "another file")
    other.close()


def test_same_number_and_inode_on_another_host_is_not_mistaken(lodged):
    mine = lodged.tickets
    forged = {
        name: replace(value, token=bytes(16)) if isinstance(value, ArrayHandle) else value
        for name, value in mine.items()
    }
    unreachable(forged, "another file")


def test_pipe_at_that_number_is_not_waited_for(lodged):
    reading, writing = os.pipe()
    status = os.fstat(reading)
    forged = replace(
        ticket_of(lodged), descriptor=reading, inode=status.st_ino, size=status.st_size
    )
    unreachable({"x": forged}, "no file")
    os.close(reading)
    os.close(writing)


def test_process_that_has_ended_has_nothing_to_find(lodged):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    unreachable({"x": replace(ticket_of(lodged), process=ended.pid)}, "No such file")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(LARGE, np.uint8),
        np.asfortranarray(np.zeros((LARGE, 2), np.uint8)),
        np.full(LARGE, None),
        np.zeros(LARGE - 1, np.uint8),
    ],
    ids=["writeable", "Fortran order", "objects", "small"],
)
def test_other_arrays_are_sent_as_they_are(array):
    if array.dtype.hasobject or array.size < LARGE or not array.flags.c_contiguous:
        array.flags.writeable = False
    assert SharedArrays.lodge({"x": array}) is None


def test_without_such_memory_nothing_is_lodged(monkeypatch):
    before = descriptors()
    monkeypatch.setattr(depot_module, "_write", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert SharedArrays.lodge(VALUES) is None
    monkeypatch.delattr(os, "memfd_create")
    assert SharedArrays.lodge(VALUES) is None
    assert memory_name() == ""
    assert descriptors() == before


def test_tickets_are_recognised(lodged):
    assert has_tickets(lodged.tickets)
    assert not has_tickets(lodged.values)


def test_writes_go_on_where_the_kernel_stopped(monkeypatch):
    monkeypatch.setattr(depot_module, "PIECE", 100_001)
    depot = SharedArrays.lodge(VALUES)
    assert np.array_equal(depot.values["volume"], VALUES["volume"])
    depot.close()
