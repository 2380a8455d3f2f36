"""The journal: what was durable is read, what is torn is left out, what is damaged is said."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.errors import DiskFullError, StoreError
from mpipar.store.journal import JournalWriter, frame, frame_header, parse, seed_of

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.store import journal

NONCE = bytes(range(16))
HEADER = frame_header(3, NONCE)
SEED = seed_of(HEADER)
BATCHES = st.lists(
    st.lists(st.tuples(st.text(min_size=1, max_size=9), st.binary(max_size=40)), max_size=3),
    max_size=5,
)


def journal_of(batches: list[list[tuple[str, bytes]]]) -> bytes:
    data, serial = HEADER, 0
    for batch in batches:
        first = serial
        for kind, payload in batch:
            data += frame(SEED, serial, first, kind, payload)
            serial += 1
    return data


def contents(found: journal.Journal) -> list[tuple[str, bytes]]:
    return [(record.kind, record.payload) for record in found.records]


@given(BATCHES)
def test_what_is_framed_is_parsed(batches):
    data = journal_of(batches)
    found = parse(data)
    assert (found.epoch, found.nonce, found.size, found.damaged) == (3, NONCE, len(data), False)
    assert contents(found) == [record for batch in batches for record in batch]


@given(BATCHES, st.data())
def test_a_torn_tail_is_left_out(batches, data):
    whole = journal_of(batches)
    cut = data.draw(st.integers(0, len(whole)))
    found = parse(whole[:cut])
    expected = [r for r in parse(whole).records if r.end <= cut]
    assert list(found.records) == expected
    assert not found.damaged
    assert found.size <= cut
    assert parse(whole[: found.size]) == found


@given(BATCHES.filter(any), st.data())
def test_a_flipped_bit_never_gives_a_wrong_record(batches, data):
    whole = bytearray(journal_of(batches))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    found = parse(bytes(whole))
    expected = [r for r in parse(journal_of(batches)).records if r.end <= at]
    assert list(found.records) == (expected if at >= len(HEADER) else [])


@given(st.binary(max_size=400))
def test_any_bytes_are_parsed_without_error(data):
    parse(data)
    assert parse(HEADER + data).epoch == 3


def test_an_unreadable_record_before_a_later_batch_is_damage():
    data = bytearray(journal_of([[("a", b"1")], [("b", b"2")]]))
    data[len(HEADER) + 20] ^= 1
    assert parse(bytes(data)).damaged


def test_a_last_batch_that_lost_a_sector_is_a_torn_tail():
    """A power loss may keep the end of a batch, and lose its beginning, which reads as zeros."""
    data = bytearray(journal_of([[("a", b"1")], [("b", b"2" * 2000), ("c", b"3")]]))
    data[512:1024] = bytes(512)
    found = parse(bytes(data))
    assert contents(found) == [("a", b"1")]
    assert not found.damaged


@pytest.mark.parametrize("zeros", [30, 600, 3000])
def test_a_last_batch_whose_bytes_did_not_arrive_is_a_torn_tail(zeros):
    whole = journal_of([[("a", b"1")], [("b", b"2" * 2000), ("c", b"3")]])
    start = parse(whole).records[0].end
    for cut in range(start, len(whole), 7):
        found = parse(whole[:cut] + bytes(zeros))
        assert contents(found)[:1] == [("a", b"1")]
        assert not found.damaged


LAST_BATCHES = [
    [("b", b"2")],
    [("b", b"2"), ("c", b"3")],
    [("long name", b"2" * 700), ("c", b""), ("d", bytes(range(256)) * 4)],
]


@pytest.mark.parametrize("batch", LAST_BATCHES)
def test_a_damaged_byte_of_a_whole_last_batch_is_damage(batch):
    """No later batch tells, and no mark: the record itself shows that it was whole."""
    whole = journal_of([[("a", b"1")], batch])
    for at in range(parse(whole).records[0].end, len(whole)):
        for bit in (0, 3, 7):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            assert parse(bytes(data)).damaged, (at, bit)


def test_many_damaged_bytes_of_a_whole_last_record_are_damage():
    data = bytearray(journal_of([[("a", b"1")], [("b", b"2" * 2000)]]))
    data[300:900] = b"x" * 600
    assert parse(bytes(data)).damaged


def test_a_torn_record_that_holds_a_journal_is_a_torn_tail():
    other = frame_header(3, NONCE[::-1])
    inner = other + frame(seed_of(other), 7, 7, "a", b"1")
    data = journal_of([[("a", b"1")], [("b", inner + b"more")]])[:-2]
    found = parse(data)
    assert contents(found) == [("a", b"1")]
    assert not found.damaged


def test_a_record_of_another_place_is_not_believed():
    data = HEADER + frame(SEED, 0, 0, "a", b"1") + frame(SEED, 5, 5, "b", b"2")
    assert contents(parse(data)) == [("a", b"1")]


def test_the_writer_writes_what_is_parsed(tmp_path: Path):
    path = tmp_path / "log"
    writer = JournalWriter(path, 3, NONCE)
    writer.append([("a", b"1"), ("b", b"")])
    writer.append([("a", b"3")])
    writer.close()
    writer.close()
    assert path.read_bytes() == journal_of([[("a", b"1"), ("b", b"")], [("a", b"3")]])
    assert writer.records == 3


def test_the_writer_never_opens_an_older_journal(tmp_path: Path):
    JournalWriter(tmp_path / "log", 3, NONCE).close()
    with pytest.raises(FileExistsError):
        JournalWriter(tmp_path / "log", 3, NONCE)


@pytest.mark.parametrize("kind", ["", "k" * 256])
def test_a_kind_has_1_to_255_bytes(tmp_path: Path, kind: str):
    writer = JournalWriter(tmp_path / "log", 3, NONCE)
    with pytest.raises(StoreError, match="kind"):
        writer.append([(kind, b"")])
    writer.append([("a", b"1")])
    writer.close()
    assert contents(parse((tmp_path / "log").read_bytes())) == [("a", b"1")]


@pytest.fixture
def full_disk(monkeypatch):
    """A switch: after full(n), n more bytes can be written, then the disk is full."""
    room: list[Any] = [None]
    write = os.write

    def limited(fd, data):
        if room[0] is None:
            return write(fd, data)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, memoryview(data)[: room[0]])
        room[0] -= written
        return written

    def full(n):
        room[0] = n

    monkeypatch.setattr(os, "write", limited)
    return full


@pytest.mark.parametrize("room", [0, 1, 30, 45])
def test_a_batch_that_does_not_fit_leaves_no_trace(tmp_path: Path, full_disk, room: int):
    path = tmp_path / "log"
    writer = JournalWriter(path, 3, NONCE)
    writer.append([("a", b"1")])
    full_disk(room)
    with pytest.raises(DiskFullError, match=r"log.*\d+ bytes were needed"):
        writer.append([("b", b"2" * 40)])
    full_disk(None)
    writer.append([("c", b"3")])
    writer.close()
    assert path.read_bytes() == journal_of([[("a", b"1")], [("c", b"3")]])


def test_after_a_batch_that_cannot_be_taken_back_nothing_more_is_written(
    tmp_path: Path, full_disk, monkeypatch
):
    def broken(*_):
        raise OSError(errno.EIO, "broken")

    writer = JournalWriter(tmp_path / "log", 3, NONCE)
    full_disk(5)
    monkeypatch.setattr(os, "ftruncate", broken)
    with pytest.raises(DiskFullError):
        writer.append([("a", b"1")])
    full_disk(None)
    assert not writer.has_only(0)
    with pytest.raises(StoreError, match="open the project again"):
        writer.append([("b", b"2")])
    writer.close()
    assert contents(parse((tmp_path / "log").read_bytes())) == []
