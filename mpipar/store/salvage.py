"""What can still be read of a damaged project, found without writing anything.

    journals    every whole record, also after damage and without a readable header: the records'
                checksums begin with that of the header, which epoch and nonce of the claim give
    project.h5  commits whose record is lost
    segments    states of the newest epochs that nothing else names

A commit counts only if its segment is whole.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mpipar.errors import MpiparError, StoreError
from mpipar.store import (
    durable,
    epoch,
    history,
    journal,
    project_index,
    schema,
    segments,
    witnesses,
)
from mpipar.store.schema import COMMIT, MANIFEST, CommitInfo, Identity

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.store.journal import Record

__all__ = ["Salvage", "salvage"]


@dataclass(frozen=True)
class Salvage:
    """What can be read of a damaged project: its records, commits included, oldest first."""

    identity: Identity
    records: tuple[tuple[str, bytes], ...]

    @property
    def commits(self) -> list[CommitInfo]:
        """The commits, oldest first."""
        gone = history.pruned_of(self.records)
        found = (_commit(record) for record in self.records if record[0] == COMMIT)
        return [info for info in found if info.segment not in gone]

    def __str__(self) -> str:
        numbers = ", ".join(str(info.number) for info in self.commits)
        others = sum(not kind.startswith("@") for kind, _ in self.records)
        commits = f"the commits {numbers}" if numbers else "no commit"
        return f"{commits}, and {others or 'none'} of the program's own records"


def salvage(project: Path) -> Salvage:
    """Find what can be read, without writing anything.

    raises   CorruptStoreError if not even the settings can be read
    """
    identity = history.identity_of(project)
    found = {n: _records_of(project, n) for n in epoch.used_epochs(project)}
    base = 0
    pins: dict[int, int] = {}
    for number in reversed(found):
        if found[number] and found[number][0].kind == MANIFEST:
            of_manifest, accepted = schema.manifest_from_json(found[number][0].payload)
            if not of_manifest.is_same_run(identity):  # a file that was put there by mistake
                found[number] = []
                continue
            base, pins = number, {pin.epoch: pin.size for pin in accepted}
            break
    records = [
        (record.kind, record.payload)
        for number, parts in found.items()
        for record in parts
        if record.kind != MANIFEST and (number >= base or record.end <= pins.get(number, 0))
    ]
    extra = _without_record(project, base, records)
    records = [r for r in records if r[0] != COMMIT or _completed(project, _commit(r)) is not None]
    for info in extra:
        _insert(records, info)
    return Salvage(identity, tuple(records))


def _commit(record: tuple[str, bytes]) -> CommitInfo:
    return schema.commit_from_json(record[1])


def _records_of(project: Path, number: int) -> list[Record]:
    path = project / schema.JOURNAL / schema.journal_name(number)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise durable.not_readable(path, error) from error
    claim = epoch.read_claim(project, number)
    header = journal.frame_header(number, bytes.fromhex(claim.nonce)) if claim else data[:32]
    by_serial: dict[int, Record] = {}  # the first of each: what follows may be a copy
    for record in journal.all_whole_records(data, journal.seed_of(header)):
        by_serial.setdefault(record.serial, record)
    return list(by_serial.values())


def _without_record(project: Path, base: int, records: list[tuple[str, bytes]]) -> list[CommitInfo]:
    """Commits that project.h5 lists, and segments of the newest epochs, whose record is lost."""
    kept = [_commit(record) for record in records if record[0] == COMMIT]
    known = {info.number for info in kept}
    gone = history.pruned_of(records)
    found = []
    with contextlib.suppress(StoreError):
        listed = project_index.listed_commits(project)
        others = [info for info in listed.commits if info.segment not in gone] if listed else []
        found = [info for info in others if info.number not in known]
    known |= {info.number for info in found}
    names = {info.segment for info in (*kept, *found)} | gone
    for name in witnesses.segment_names(project):
        owner, number = schema.epoch_of_segment(name) or 0, schema.number_of_segment(name) or 0
        if name not in names and owner >= max(base, 1) and number not in known:
            found.append(CommitInfo(number, owner, name, -1, "", 0.0, {}))
            known.add(number)
    whole = (_completed(project, info) for info in found)
    return [info for info in whole if info is not None]


def _completed(project: Path, info: CommitInfo) -> CommitInfo | None:
    """Complete a commit from its segment; None if the segment is missing or damaged."""
    path = project / schema.SEGMENTS / info.segment
    try:
        sealed = segments.seal_of(path)
        if info.sha256 and (sealed.size, sealed.sha256) != (info.size, info.sha256):
            return None
        dict(segments.StoredArrays(path))
        attributes = segments.attributes_of(path)
        time = info.time or path.stat().st_mtime
    except (OSError, MpiparError):
        return None
    return replace(info, size=sealed.size, sha256=sealed.sha256, time=time, attributes=attributes)


def _insert(records: list[tuple[str, bytes]], info: CommitInfo) -> None:
    """Put a commit before the first one with a higher number, or at the end."""
    place = next(
        (
            i
            for i, record in enumerate(records)
            if record[0] == COMMIT and _commit(record).number > info.number
        ),
        len(records),
    )
    records.insert(place, (COMMIT, schema.commit_to_json(info)))
