"""Segments: sealed HDF5 that gives back each bit, and tells when the disk was full."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpipar.errors import CorruptStoreError, DiskFullError, StoreError
from mpipar.store import schema, segments
from mpipar.store.segments import SegmentContents, StoredArrays, seal_of, write_segment

if TYPE_CHECKING:
    from pathlib import Path

INTEGERS = ["i1", "u1", "i2", "u2", ">u2", "i4", "u4", ">i4", "i8", "u8"]
DTYPES = ["?", *INTEGERS, "f2", "f4", "f8", ">f8", "g", "c8", "c16", ">c8", "S1", "S7"]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def round_trip(folder: Path, **given_arrays: np.ndarray) -> dict[str, np.ndarray]:
    schema.check_arrays(given_arrays)
    write_segment(folder / "s.h5", SegmentContents(given_arrays, {}, {}))
    return dict(StoredArrays(folder / "s.h5"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_random_bits_of_each_type_come_back(tmp_path, dtype, shape):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(1).integers(0, 2 if dtype == "?" else 256, count, np.uint8)
    array = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
    assert same_bits(round_trip(tmp_path, a=array)["a"], array)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8"])
def test_the_payload_of_a_nan_comes_back(tmp_path, dtype):
    array = np.frombuffer(b"\xff" * 64 + b"\x01\x7f\xff\xff" * 4 + b"\x00\x7c" * 8, dtype)
    assert same_bits(round_trip(tmp_path, a=array)["a"], array)


def test_strided_and_transposed_arrays_come_back(tmp_path):
    array = np.arange(60).reshape(3, 4, 5)[::2, ::-1].T
    assert np.array_equal(round_trip(tmp_path, a=array)["a"], array)


def test_a_large_array_is_cut_into_chunks_of_at_most_4_mib(tmp_path):
    array = np.zeros((3, 700, 1000), np.float64)
    assert same_bits(round_trip(tmp_path, a=array)["a"], array)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["a"].chunks == (1, 524, 1000)
        assert file["a"].fletcher32


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:+\- ]{0,9}", fullmatch=True),
        arrays.arrays(st.sampled_from(["f4", "i8", "?", "S3"]), arrays.array_shapes(min_side=0)),
        max_size=4,
    )
)
def test_any_names_and_shapes_come_back(tmp_path_factory, given_arrays):
    found = round_trip(tmp_path_factory.mktemp("s"), **given_arrays)
    assert found.keys() == given_arrays.keys()
    assert all(same_bits(found[name], array) for name, array in given_arrays.items())


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", ".a", "a\nb", "ä"])
def test_other_names_are_refused(name):
    with pytest.raises(StoreError, match="array name"):
        schema.check_arrays({name: np.zeros(1)})


@pytest.mark.parametrize("dtype", ["O", "U3", "M8[s]", "V3", [("a", "i4")]])
def test_other_types_are_refused(dtype):
    with pytest.raises(StoreError, match="dtype"):
        schema.check_arrays({"a": np.zeros(1, dtype)})


def test_the_file_is_of_the_default_version_that_needs_no_repair(tmp_path):
    write_segment(tmp_path / "s.h5", SegmentContents({"a": np.arange(3)}, {}, {}))
    data = (tmp_path / "s.h5").read_bytes()
    assert data[:8] == b"\x89HDF\r\n\x1a\n"
    assert data[8] == 0, "superblock of HDF5 1.6, which everything reads"


def test_the_seal_is_of_the_file(tmp_path):
    sealed = write_segment(tmp_path / "s.h5", SegmentContents({"a": np.arange(3)}, {"x": 1}, {}))
    assert seal_of(tmp_path / "s.h5") == sealed
    assert sealed.size == (tmp_path / "s.h5").stat().st_size


def test_attributes_are_there_for_people(tmp_path):
    long = {"names": ["x" * 100] * 1000}
    attributes = {"a": 1.5, "b": [1, 2], "c": "text", "d": long, "e": None, "f": 2**70, "g": True}
    write_segment(tmp_path / "s.h5", SegmentContents({}, attributes, {}))
    with h5py.File(tmp_path / "s.h5") as file:
        found = dict(file.attrs)
        assert schema.decode(bytes(file["long_attributes/d"][:])) == long
    assert found == {"a": 1.5, "b": "[1,2]", "c": "text", "e": "null", "f": str(2**70), "g": True}
    assert dict(StoredArrays(tmp_path / "s.h5")) == {}


def test_a_damaged_array_is_told_by_name(tmp_path):
    array = np.random.default_rng(1).integers(0, 256, 9999, np.uint8)
    write_segment(tmp_path / "s.h5", SegmentContents({"a": array}, {}, {}))
    data = bytearray((tmp_path / "s.h5").read_bytes())
    data[data.index(array[:50].tobytes()) + 9] ^= 1
    (tmp_path / "s.h5").write_bytes(data)
    with pytest.raises(CorruptStoreError, match="array 'a' is damaged"):
        StoredArrays(tmp_path / "s.h5")["a"]


@pytest.mark.parametrize("content", [None, b"", b"not HDF5 at all"])
def test_a_file_that_is_not_hdf5_is_told_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "s.h5").write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"s\.h5"):
        StoredArrays(tmp_path / "s.h5")


def test_an_array_that_is_not_there_is_a_key_error(tmp_path):
    write_segment(tmp_path / "s.h5", SegmentContents({"a": np.arange(3)}, {}, {}))
    with pytest.raises(KeyError):
        StoredArrays(tmp_path / "s.h5")["b"]


def disk_of(room: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Only so many bytes can be written by os.pwrite from now on."""
    write = os.pwrite
    left = [room]

    def limited(fd, data, offset):
        if left[0] <= 0:
            raise OSError(code, os.strerror(code))
        written = write(fd, memoryview(data)[: left[0]], offset)
        left[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", limited)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("room", [0, 1, 100, 2000, 5000, 40_000, 80_000])
def test_a_full_disk_is_told_with_path_and_bytes_and_leaves_nothing(
    tmp_path, monkeypatch, room, code
):
    write_segment(tmp_path / "before.h5", SegmentContents({"a": np.arange(10)}, {}, {}))
    given_arrays = {"a": np.arange(5000.0), "b": np.arange(5000.0)}
    disk_of(room, monkeypatch, code)
    with pytest.raises(DiskFullError, match=r"s\.h5.*: \d{5} bytes were needed and \d+ are free"):
        write_segment(tmp_path / "s.h5", SegmentContents(given_arrays, {"x": 1}, {}))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["before.h5"]
    assert dict(StoredArrays(tmp_path / "before.h5"))["a"].tolist() == [*range(10)]
    write_segment(tmp_path / "s.h5", SegmentContents(given_arrays, {"x": 1}, {}))
    assert same_bits(dict(StoredArrays(tmp_path / "s.h5"))["b"], given_arrays["b"])


def test_any_other_error_is_told_with_its_path(tmp_path, monkeypatch):
    disk_of(100, monkeypatch, errno.EIO)
    with pytest.raises(StoreError, match=r"s\.h5: cannot be written: Input/output error"):
        write_segment(tmp_path / "s.h5", SegmentContents({"a": np.arange(5000.0)}, {}, {}))


def test_a_mistake_in_what_is_written_is_not_hidden(tmp_path):
    def fill(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        segments.write_hdf5(tmp_path / "s.h5", fill, lambda _: True, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_is_lost_is_found_out(tmp_path, monkeypatch):
    """As when an interrupt stops one of HDF5's calls to us, and h5py drops the exception."""
    given_arrays = {"a": np.arange(5000.0), "b": np.arange(5000.0)}
    write, found_out = os.pwrite, 0
    left = [0]

    def losing(fd, data, offset):
        left[0] -= 1
        return len(data) if left[0] == 0 else write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", losing)
    for nth in range(1, 20):
        left[0] = nth
        try:
            write_segment(tmp_path / "s.h5", SegmentContents(given_arrays, {"x": 1}, {}))
        except StoreError:
            found_out += 1
            assert list(tmp_path.iterdir()) == []
        else:
            kept = dict(StoredArrays(tmp_path / "s.h5"))
            assert all(same_bits(kept[name], array) for name, array in given_arrays.items())
            (tmp_path / "s.h5").unlink()
    assert found_out > 5


def test_a_file_of_the_first_version_has_no_checksum_after_its_end(tmp_path):
    def fill(file):
        file["x"] = np.arange(1000)
        file.attrs["epoch"] = 1

    for signed in (False, True):
        path = tmp_path / f"{signed}.h5"
        segments.write_hdf5(path, fill, lambda _: True, 0, signed=signed)
        segments.require_signed(path)
        for change in (b"", b"\0", b"more"):
            data = path.read_bytes()
            (tmp_path / "changed.h5").write_bytes(data + change if change else data[:-1])
            with pytest.raises(CorruptStoreError, match="is damaged"):
                segments.require_signed(tmp_path / "changed.h5")
