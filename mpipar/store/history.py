"""What a project holds, as its journals alone tell.

    newest epoch whose journal begins with a whole manifest
        |--- its pins ---> so many bytes of each older epoch's journal
        +--- all whole records of its own journal

What an older epoch's owner adds after it was passed over lies beyond the pin and is not read. A
journal that holds less than its owner's release mark says, or is not that of its claim, is damaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mpipar.errors import CorruptStoreError
from mpipar.store import durable, journal, schema
from mpipar.store import epoch as epochs
from mpipar.store.schema import COMMIT, JOURNAL, MANIFEST, PRUNED, CommitInfo, Identity, Pin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mpipar.store.journal import Journal, Record

REMEDY: Final = "restore it from a copy, or see `mpipar check`"


@dataclass(frozen=True)
class History:
    """The records of a project that count, oldest first, and what the next epoch would pin."""

    identity: Identity
    pins: tuple[Pin, ...]
    records: tuple[Record, ...]  # the program's own and the commits, without manifests
    commits: tuple[CommitInfo, ...]
    pruned: frozenset[str]  # segments of commits that were given up, and may be gone
    closed: bool  # the newest epoch's owner has recorded what its journal holds, and it is there

    @property
    def epoch(self) -> int:
        """The newest epoch that counts; 0 if none has begun its journal."""
        return self.pins[-1].epoch if self.pins else 0


def identity_of(project: Path) -> Identity:
    """Return what the project is, from its claims, or from a journal if none can be read.

    raises   StoreError if a later version of mpipar wrote it
    """
    try:
        return epochs.identity_from_claims(project, epochs.epochs(project))
    except CorruptStoreError:
        for number in reversed(epochs.used_epochs(project)):
            found = _parse(project / JOURNAL / schema.journal_name(number), -1)
            if found.records and found.records[0].kind == MANIFEST:
                return schema.manifest_from_json(found.records[0].payload)[0]
        raise


def read(project: Path) -> History:
    """Read the newest history. A writer may be at work: the records that are whole now count."""
    identity = identity_of(project)
    for number in reversed(epochs.used_epochs(project)):
        kept = _released_journal(project, number)  # first, so that the journal is not older
        current = _load(project, number)
        if kept is not None:
            _require_kept(project, kept, current)
        if current.records and current.records[0].kind == MANIFEST:
            return _follow(project, identity, number, current, closed=kept is not None)
    return History(identity, (), (), (), frozenset(), closed=False)


def _released_journal(project: Path, number: int) -> Pin | None:
    try:
        return epochs.released_journal(project, number)
    except ValueError:  # `mpipar check` says so; the journal is judged without it
        return None


def _require_kept(project: Path, kept: Pin, current: Journal) -> None:
    """Raise CorruptStoreError unless a journal begins with what its owner left in it."""
    end = next((r for r in current.records if r.end == kept.size), None)
    found = (end.serial + 1, end.chain) if end else (0, 0)
    if kept.records and found != (kept.records, kept.chain):
        raise CorruptStoreError(
            f"{project / JOURNAL / schema.journal_name(kept.epoch)}: {len(current.records)} of "
            f"the {kept.records} records that its writer left there can be read; {REMEDY}"
        )


def _load(project: Path, number: int, size: int = -1) -> Journal:
    path = project / JOURNAL / schema.journal_name(number)
    found = _parse(path, size)
    if found.damaged:  # or the writer took a batch back while we read
        found = _parse(path, size)
    if found.damaged:
        what = "its header" if found.epoch is None else f"a record at byte {found.size}"
        raise CorruptStoreError(f"{path}: {what}, which was whole, can no longer be read; {REMEDY}")
    claim = epochs.read_claim(project, number)
    if claim is not None and found.epoch is not None:
        own = (claim.epoch, claim.nonce)
        if (found.epoch, found.nonce.hex()) != own:
            raise CorruptStoreError(f"{path}: is not the journal of this epoch's claim; {REMEDY}")
    return found


def _parse(path: Path, size: int) -> Journal:
    try:
        with path.open("rb") as file:
            return journal.parse(file.read(size))
    except FileNotFoundError:
        return journal.parse(b"")
    except OSError as error:
        raise durable.not_readable(path, error) from error


def _follow(
    project: Path, known: Identity, number: int, current: Journal, *, closed: bool
) -> History:
    identity, pins = schema.manifest_from_json(current.records[0].payload)
    if not identity.is_same_run(known):
        raise CorruptStoreError(
            f"{project / JOURNAL / schema.journal_name(number)}: is the journal of another run; "
            "move it away"
        )
    parts = [(pin.epoch, _pinned(project, pin).records) for pin in pins]
    parts.append((number, current.records))
    own = Pin(number, current.size, len(current.records), current.chain)
    records = tuple(r for _, part in parts for r in part if r.kind != MANIFEST)
    gone = pruned_of([(r.kind, r.payload) for r in records])
    return History(identity, (*pins, own), records, _commits_of(records, gone), gone, closed)


def _pinned(project: Path, pin: Pin) -> Journal:
    found = _load(project, pin.epoch, pin.size)
    if (found.size, len(found.records), found.chain) != (pin.size, pin.records, pin.chain):
        path = project / JOURNAL / schema.journal_name(pin.epoch)
        raise CorruptStoreError(
            f"{path}: its first {pin.size} bytes are not those that the next epoch accepted; "
            f"{REMEDY}"
        )
    return found


def _commits_of(records: Sequence[Record], gone: frozenset[str]) -> tuple[CommitInfo, ...]:
    found = (schema.commit_from_json(r.payload) for r in records if r.kind == COMMIT)
    return tuple(info for info in found if info.segment not in gone)


def pruned_of(records: Sequence[tuple[str, bytes]]) -> frozenset[str]:
    """Return the segments that records, (kind, payload) each, say are pruned.

    No name comes twice, so it does not matter where such a record stands.
    """
    lists = (schema.pruned_from_json(payload) for kind, payload in records if kind == PRUNED)
    return frozenset(name for names in lists for name in names)


def payloads(records: Sequence[Record], kind: str, *, every: bool) -> list[bytes]:
    """Return the program's records of one kind: those since the latest commit, or every one."""
    start = 0
    if not every:
        start = max((i + 1 for i, r in enumerate(records) if r.kind == COMMIT), default=0)
    return [r.payload for r in records[start:] if r.kind == kind]
