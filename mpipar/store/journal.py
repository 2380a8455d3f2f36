"""The journal, the store of record: framing and parsing, pure functions on bytes, and the writer.

    file    header, record, record, ...             one file per epoch; little-endian throughout
    header  "MPIPARJ1", epoch u32, nonce 16 bytes, crc32 of these
    record  "mRec", kind length u32, payload length u64, serial u64, batch u64, crc32, kind, payload

`serial` counts the records of the file from 0; `batch` is the serial of the first record that went
to the disk in the same write. A batch is written only after the one before it is durable, so a
record that cannot be read may be a torn tail (normal: left out): a write that was cut off leaves
less than the record, or zeros in its place. It is damage (say so) if a whole record of a *later*
batch follows it, or if the record was there from its first to its last byte. A record's CRC begins
with that of the file's header, so that a journal inside a payload is not taken for this one.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mpipar.errors import MpiparError, StoreError
from mpipar.store import durable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_FILE_MAGIC: Final = b"MPIPARJ1"
_HEADER: Final = struct.Struct("<8sI16sI")
_RECORD_MAGIC: Final = b"mRec"
_RECORD: Final = struct.Struct("<4sIQQQI")
_CRC_PLACE: Final = slice(_RECORD.size - 4, _RECORD.size)
_LONGEST_KIND: Final = 255
_SECTOR: Final = 512  # bytes; what a power loss takes from a file reads as zeros
_ZEROS: Final = 4  # zeros at the end of a file that are taken for bytes that did not arrive
NONCE_BYTES: Final = 16


@dataclass(frozen=True)
class Record:
    """One whole record of a journal."""

    serial: int
    batch: int
    kind: str
    payload: bytes
    end: int  # offset of the byte after the record
    chain: int  # CRC over this and all earlier records' CRCs: what a later epoch pins


@dataclass(frozen=True)
class Journal:
    """The contents of a journal file: its whole records, and where they end."""

    epoch: int | None  # None: not even the header is whole
    nonce: bytes
    records: tuple[Record, ...]
    size: int  # bytes of header and whole records; what follows is a torn tail
    chain: int
    damaged: bool  # header or record is unreadable though it was durable once


def frame_header(epoch: int, nonce: bytes) -> bytes:
    """Return the header of an epoch's journal as bytes."""
    head = _HEADER.pack(_FILE_MAGIC, epoch, nonce, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head))


def seed_of(header: bytes) -> int:
    """Return the number that the CRCs of a file's records begin with: the header's own CRC."""
    return int.from_bytes(header[-4:], "little")


def frame(seed: int, serial: int, batch: int, kind: str, payload: bytes) -> bytes:
    """Return one record as bytes."""
    name = kind.encode()
    if not 0 < len(name) <= _LONGEST_KIND:
        raise StoreError(f"journal: kind must have 1 to {_LONGEST_KIND} bytes: {kind!r:.60}")
    head = _RECORD.pack(_RECORD_MAGIC, len(name), len(payload), serial, batch, 0)[:-4]
    return head + struct.pack("<I", _crc(seed, head, name, payload)) + name + payload


def _crc(seed: int, *parts: bytes | memoryview) -> int:
    crc = seed
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def parse(data: bytes) -> Journal:
    """Read a journal from its bytes. Never raises: what is not whole is left out."""
    header = _parse_header(data)
    if header is None:
        # nothing follows a header before the header is durable
        return Journal(None, b"", (), 0, 0, damaged=len(data) > _HEADER.size)
    epoch, nonce, seed = header
    chain = seed
    records: list[Record] = []
    offset = _HEADER.size
    while (found := _parse_record(data, offset, seed)) is not None:
        serial, batch, kind, payload, crc, end = found
        if serial != len(records) or batch > serial:
            break
        offset = end
        chain = zlib.crc32(struct.pack("<I", crc), chain)
        records.append(Record(serial, batch, kind, payload, offset, chain))
    damaged = _is_damage(data, offset, seed, records)
    return Journal(epoch, nonce, tuple(records), offset, chain, damaged)


def _parse_header(data: bytes) -> tuple[int, bytes, int] | None:
    if len(data) < _HEADER.size:
        return None
    magic, epoch, nonce, crc = _HEADER.unpack_from(data)
    if magic != _FILE_MAGIC or crc != zlib.crc32(memoryview(data)[: _HEADER.size - 4]):
        return None
    return epoch, nonce, crc


def _parse_record(
    data: bytes, offset: int, seed: int
) -> tuple[int, int, str, bytes, int, int] | None:
    if offset + _RECORD.size > len(data):
        return None
    magic, name_size, size, serial, batch, crc = _RECORD.unpack_from(data, offset)
    start = offset + _RECORD.size
    middle, end = start + name_size, start + name_size + size
    if magic != _RECORD_MAGIC or name_size > _LONGEST_KIND or end > len(data):
        return None
    view = memoryview(data)
    if crc != _crc(seed, view[offset : start - 4], view[start:end]):
        return None
    kind = bytes(view[start:middle]).decode(errors="replace")
    return serial, batch, kind, bytes(view[middle:end]), crc, end


def _is_damage(data: bytes, offset: int, seed: int, records: Sequence[Record]) -> bool:
    """Whether what follows the last of `records` cannot be what a write that was cut off leaves."""
    following = list(_whole_records(data, offset, seed))
    if any(found[2] > len(records) for found in following):
        return True  # of a later batch: these were durable
    if offset == len(data) or _has_lost_bytes(data, offset):
        return False
    return bool(following) or _was_whole(data, offset, seed, records)


def _whole_records(data: bytes, offset: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """Yield offset, serial and batch of each whole record, also of those after damage."""
    while (offset := data.find(_RECORD_MAGIC, offset)) >= 0:
        found = _parse_record(data, offset, seed)
        if found is not None:
            yield offset, found[0], found[1]
        offset += 1


def _has_lost_bytes(data: bytes, offset: int) -> bool:
    """Whether a part of the tail has zeros where the bytes of a cut-off write did not arrive."""
    if data.endswith(bytes(_ZEROS)):
        return True
    cuts = [offset, *range(offset - offset % _SECTOR + _SECTOR, len(data), _SECTOR), len(data)]
    return any(not any(data[start:end]) for start, end in itertools.pairwise(cuts))


def _was_whole(data: bytes, offset: int, seed: int, records: Sequence[Record]) -> bool:
    """Whether a record begins at `offset` that is there to its end, and is damaged."""
    if offset + _RECORD.size > len(data):
        return False
    magic, name_size, size, serial, batch, crc = _RECORD.unpack_from(data, offset)
    start = offset + _RECORD.size
    expected = len(records)
    batches = {expected, records[-1].batch} if records else {expected}
    plausible = magic == _RECORD_MAGIC and serial == expected and batch in batches
    if plausible and 0 < name_size <= _LONGEST_KIND and start + name_size + size <= len(data):
        return True  # the damage is in its contents, or in its checksum
    # or it is in one field of its head, and the record is the last of the file
    rest = memoryview(data)[start:]
    lengths = {(name_size, len(rest) - name_size), (len(rest) - size, size)}
    heads = (
        _RECORD.pack(_RECORD_MAGIC, name, payload, expected, first, 0)[:-4]
        for name, payload in lengths
        if 0 < name <= _LONGEST_KIND and payload >= 0
        for first in batches
    )
    return any(_crc(seed, head, rest) == crc for head in heads)


def all_whole_records(data: bytes, seed: int) -> list[Record]:
    """Return every whole record in `data`, also those after damage, oldest first."""
    records: list[Record] = []
    offset = 0
    while (offset := data.find(_RECORD_MAGIC, offset)) >= 0:
        found = _parse_record(data, offset, seed)
        if found is None:
            offset += 1
            continue
        serial, batch, kind, payload, _, offset = found
        records.append(Record(serial, batch, kind, payload, offset, 0))
    return records


class JournalWriter:
    """Appends to the journal of this process's own epoch: one fdatasync per batch."""

    def __init__(
        self, path: Path, epoch: int, nonce: bytes, verify: Callable[[], None] = lambda: None
    ) -> None:
        self.path = path
        self._verify = verify  # raises if a later epoch may have accepted what is written here
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._serial = 0
        self._size = 0
        self._chain = 0
        self._broken = False
        try:
            header = frame_header(epoch, nonce)
            self._seed = self._chain = seed_of(header)
            self._write(header, 0, self._chain)
            durable.sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def records(self) -> int:
        """How many records are durable."""
        return self._serial

    @property
    def size(self) -> int:
        """How many bytes are durable."""
        return self._size

    @property
    def chain(self) -> int:
        """CRC over the CRCs of the durable records, as in `Journal`."""
        return self._chain

    def has_only(self, records: int) -> bool:
        """Whether the file holds exactly this many records, and no part of another one."""
        return not self._broken and self._serial == records

    def append(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Add a batch of (kind, payload), durable on return; on failure the file is as before."""
        if self._broken:
            raise StoreError(
                f"{self.path}: an earlier write failed half-way; open the project again"
            )
        frames = list(self._frames(records))
        data = b"".join(frames)
        with durable.named_errors(self.path, len(data)):
            self._write(data, len(records), self._chain_after(frames))

    def _frames(self, records: Sequence[tuple[str, bytes]]) -> Iterator[bytes]:
        for serial, (kind, payload) in enumerate(records, start=self._serial):
            yield frame(self._seed, serial, self._serial, kind, payload)

    def _chain_after(self, frames: Sequence[bytes]) -> int:
        chain = self._chain
        for framed in frames:
            chain = zlib.crc32(framed[_CRC_PLACE], chain)
        return chain

    def _write(self, data: bytes, records: int, chain: int) -> None:
        self._broken = True  # until all below is done: an interrupt may fall between any two lines
        try:
            durable.write_all(self._fd, data)
            os.fdatasync(self._fd)
        except BaseException:
            self._cut_off()
            raise
        self._size += len(data)
        self._serial += records
        self._chain = chain
        self._broken = False

    def _cut_off(self) -> None:
        """Cut off a half-written batch, so that the next batch does not follow it."""
        try:
            self._verify()
            os.ftruncate(self._fd, self._size)
            os.lseek(self._fd, self._size, os.SEEK_SET)
            os.fdatasync(self._fd)
        except (OSError, MpiparError):
            return
        self._broken = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
