from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpipar.runtime.node_memory import shared_arrays as module
from mpipar.runtime.node_memory.shared_arrays import (
    LARGE,
    ArrayHandle,
    SharedArrays,
    UnmappableError,
    has_handles,
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
def published():
    before = descriptors()
    arrays = SharedArrays.publish(VALUES)
    yield arrays
    if arrays.handles:
        arrays.close()
    assert descriptors() == before


def handle_of(arrays):
    return arrays.handles["volume"]


def unreachable(handles, reason):
    before = descriptors()
    with pytest.raises(UnmappableError, match=reason):
        SharedArrays.attach(handles)
    assert descriptors() == before


def test_large_arrays_are_found_as_they_were_read_only_aligned_and_in_one_memory(published):
    found = SharedArrays.attach(published.handles)
    handles = {name for name, value in published.handles.items() if isinstance(value, ArrayHandle)}
    assert handles == LARGE_ONES
    for name, value in VALUES.items():
        array = found.values[name]
        assert np.array_equal(array, value), name
        if name in LARGE_ONES:
            assert (array.dtype, array.shape) == (value.dtype, value.shape)
            assert array.flags.c_contiguous
            assert array.flags.aligned
            assert not array.flags.writeable
            assert inode_of(array) == inode_of(published.values[name]) == handle_of(published).inode
    with pytest.raises(ValueError, match="WRITEABLE"):
        found.values["volume"].flags.writeable = True
    found.close()


def test_other_process_attaches_by_handles(published):
    wire = pickle.dumps(published.handles)
    assert len(wire) < 3000
    script = (
        "import pickle, sys\n"
        "from mpipar.runtime.node_memory.shared_arrays import SharedArrays\n"
        "values = SharedArrays.attach(pickle.load(sys.stdin.buffer)).values\n"
        "print(repr(values['volume'].sum()), values['text'])\n"
    )
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, input=wire, capture_output=True, check=False)
    assert done.stdout.decode().strip() == f"{VALUES['volume'].sum()!r} hello", done.stderr.decode()


def test_an_attached_process_can_hand_it_on_when_the_publisher_has_gone(published):
    second = SharedArrays.attach(published.handles)
    published.close()
    third = SharedArrays.attach(second.handles)
    second.close()
    assert np.array_equal(third.values["bytes"], VALUES["bytes"])
    arrays = dict(third.values)
    third.close()
    assert np.array_equal(arrays["volume"], VALUES["volume"])


def test_memory_is_sealed(published):
    path = f"/proc/self/fd/{handle_of(published).descriptor}"
    writing = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(writing, b"x", 100)
        with pytest.raises(PermissionError):
            os.ftruncate(writing, 0)
    finally:
        os.close(writing)


def test_descriptor_number_that_is_another_file_by_now_is_not_mistaken(published):
    handles = dict(published.handles)
    number = handle_of(published).descriptor
    published.close()
    unreachable(handles, "No such file")
    other = SharedArrays.publish(VALUES)  # as large, and at the same number
    assert handle_of(other).descriptor == number
    unreachable(handles, "another file")
    other.close()


def test_same_number_and_inode_on_another_host_is_not_mistaken(published):
    mine = published.handles
    forged = {
        name: replace(value, token=bytes(16)) if isinstance(value, ArrayHandle) else value
        for name, value in mine.items()
    }
    unreachable(forged, "another file")


def test_pipe_at_that_number_is_not_waited_for(published):
    reading, writing = os.pipe()
    status = os.fstat(reading)
    forged = replace(
        handle_of(published), descriptor=reading, inode=status.st_ino, size=status.st_size
    )
    unreachable({"x": forged}, "no file")
    os.close(reading)
    os.close(writing)


def test_process_that_has_ended_has_nothing_to_attach(published):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    unreachable({"x": replace(handle_of(published), process=ended.pid)}, "No such file")


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
    assert SharedArrays.publish({"x": array}) is None


def test_without_such_memory_nothing_is_published(monkeypatch):
    before = descriptors()
    monkeypatch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert SharedArrays.publish(VALUES) is None
    monkeypatch.delattr(os, "memfd_create")
    assert SharedArrays.publish(VALUES) is None
    assert memory_name() == ""
    assert descriptors() == before


def test_handles_are_recognised(published):
    assert has_handles(published.handles)
    assert not has_handles(published.values)


def test_writes_go_on_where_the_kernel_stopped(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 100_001)
    arrays = SharedArrays.publish(VALUES)
    assert np.array_equal(arrays.values["volume"], VALUES["volume"])
    arrays.close()
