"""What a project holds, as its journals alone tell.

    newest epoch whose journal begins with a whole manifest
        |--- its pins ---> so many bytes of each older epoch's journal
        +--- all whole records of its own journal

What an older epoch's owner adds after it was passed over lies beyond the pin and is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpipar.errors import CorruptStoreError, StoreError
from mpipar.store import epoch as epochs
from mpipar.store import journal, schema
from mpipar.store.schema import COMMIT, JOURNAL, MANIFEST, CommitInfo, Identity, Pin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mpipar.store.journal import Journal, Record


@dataclass(frozen=True)
class History:
    """The records of a project that count, oldest first, and what the next epoch would pin."""

    identity: Identity
    pins: tuple[Pin, ...]
    records: tuple[Record, ...]  # the program's own and the commits, without manifests
    commits: tuple[CommitInfo, ...]


def read(project: Path) -> History:
    """Read the newest history. A writer may be at work: the records that are whole now count."""
    claimed = epochs.epochs(project)
    for number in reversed(claimed):
        current = _load(project, number)
        if current.records and current.records[0].kind == MANIFEST:
            return _follow(project, number, current)
    return History(epochs.identity_from_claims(project, claimed), (), (), ())


def _load(project: Path, number: int, size: int = -1) -> Journal:
    path = project / JOURNAL / schema.journal_name(number)
    found = _parse(path, size)
    if found.damaged:  # or the writer took a batch back while we read
        found = _parse(path, size)
    if found.damaged:
        raise CorruptStoreError(
            f"{path}: a record at byte {found.size} that was durable can no longer be read; "
            "restore it from a copy"
        )
    return found


def _parse(path: Path, size: int) -> Journal:
    try:
        with path.open("rb") as file:
            return journal.parse(file.read(size))
    except FileNotFoundError:
        return journal.parse(b"")
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def _follow(project: Path, number: int, current: Journal) -> History:
    identity, pins = schema.manifest_from_json(current.records[0].payload)
    parts = [(pin.epoch, _pinned(project, pin).records) for pin in pins]
    parts.append((number, current.records))
    own = Pin(number, current.size, len(current.records), current.chain)
    records = tuple(r for _, part in parts for r in part if r.kind != MANIFEST)
    return History(identity, (*pins, own), records, _commits_of(records))


def _pinned(project: Path, pin: Pin) -> Journal:
    found = _load(project, pin.epoch, pin.size)
    if (found.size, len(found.records), found.chain) != (pin.size, pin.records, pin.chain):
        path = project / JOURNAL / schema.journal_name(pin.epoch)
        raise CorruptStoreError(
            f"{path}: its first {pin.size} bytes are not those that the next epoch accepted; "
            "restore it from a copy"
        )
    return found


def _commits_of(records: Sequence[Record]) -> tuple[CommitInfo, ...]:
    return tuple(schema.commit_from_json(r.payload) for r in records if r.kind == COMMIT)


def payloads(records: Sequence[Record], kind: str, *, every: bool) -> list[bytes]:
    """Return the program's records of one kind: those since the latest commit, or every one."""
    start = 0
    if not every:
        start = max((i + 1 for i, r in enumerate(records) if r.kind == COMMIT), default=0)
    return [r.payload for r in records[start:] if r.kind == kind]
