"""A project folder: through this class alone rank 0 stores and reads a run.

    commit:  segment sealed, published -> journal record durable: the commit -> project.h5 replaced

The journal is the store of record. The claim is verified before and after each write: a writer that
was taken for dead and passed over gets an error before any write of it is acknowledged.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpipar.errors import CorruptStoreError, MpiparError, OutputError, StoreError
from mpipar.store import (
    durable,
    epoch,
    evidence,
    history,
    project_index,
    schema,
    segments,
    takeover,
    witnesses,
)
from mpipar.store.epoch import LEASE, Ownership, WriterClaim
from mpipar.store.folder import NewFolder, remove_leftovers, remove_temporaries
from mpipar.store.journal import JournalWriter
from mpipar.store.schema import (
    COMMIT,
    EXPORT,
    EXPORTING,
    MANIFEST,
    PRUNED,
    VERDICT_RECORD,
    CommitInfo,
    ExportInfo,
    Identity,
    Pin,
)
from mpipar.store.segments import SegmentContents
from mpipar.store.status import Heartbeat, verdict_of, write_verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commit:
    """A commit as it is read. Each array is read when asked for; `dict(arrays)` loads all."""

    number: int
    arrays: Mapping[str, NDArray[Any]]
    attributes: dict[str, Any]


class _Writer:
    """The writer's side of a project: claim, journal and heart-beat of the newest epoch."""

    def __init__(self, path: Path, claim: WriterClaim) -> None:
        self.claim = claim
        self.ownership = Ownership(path, claim)
        self.serial = 0  # of the latest segment in this epoch
        self.verdict = verdict_of(claim, "requeue", schema.NOT_ENDED)
        journal = path / schema.JOURNAL / schema.journal_name(claim.epoch)
        try:
            remove_temporaries(path, claim.epoch)  # first: an owner that wakes up finds none
            # read after claiming: all that the older owner acknowledged is on disk by now
            found = witnesses.read_agreeing(path)
            self.accepted, self.pruned = found.commits, found.pruned
            manifest = schema.manifest_to_json(claim.identity, found.pins)
            with durable.named_errors(journal, len(manifest)):
                self.journal = JournalWriter(
                    journal, claim.epoch, bytes.fromhex(claim.nonce), self.ownership.verify
                )
            try:
                self.journal.append([(MANIFEST, manifest)])
                self.heartbeat = Heartbeat(self.ownership)  # verifies the claim
            except BaseException:
                self.journal.close()
                raise
        except BaseException:
            self.ownership.release()
            raise

    def close(self) -> None:
        self.heartbeat.end(self.verdict)
        journal = self.journal
        journal.close()
        self.ownership.release(Pin(self.claim.epoch, journal.size, journal.records, journal.chain))


class Project:
    """A project, open for writing in its one writer, or for reading in any process."""

    def __init__(self, path: Path, identity: Identity, writer: _Writer | None) -> None:
        self.path = path
        self.kind = identity.kind
        self.created = identity.created  # seconds since 1970
        self.settings: dict[str, Any] = identity.settings
        self.created = identity.created  # seconds since 1970
        self.format = identity.format  # version of the format that it was made or last written in
        self._identity = identity
        self._writer = writer
        self._commits: list[CommitInfo] | None = None  # None: to be read from the journal
        self._whole: set[str] = set()  # segments whose checksums this object has seen to be right
        self._exported: list[bytes] = []  # exports whose rename the journal does not record yet
        self._index_is_old = False  # whether project.h5 could not be replaced
        self._new_folder: NewFolder | None = None  # if this process made it

    @classmethod
    def create(
        cls, path: Path, *, settings: Mapping[str, Any], kind: str, lease: float = LEASE
    ) -> Self:
        """Make the folder, claim epoch 1, store the settings; on failure no folder is left.

        raises   OutputError, DiskFullError
        """
        identity = Identity(
            schema.version_text(schema.FORMAT),
            kind,
            schema.through_json(settings, "settings"),
            time.time(),
        )
        folder = NewFolder(path)
        claim = evidence.this_process(1, identity, lease)
        try:
            with durable.named_errors(path, len(schema.encode(identity.settings))):
                _claim_first(path, claim)
            project = cls._begin(path, claim)
        except StoreError as error:
            folder.undo(owned=epoch.is_own(path, claim))
            raise OutputError(str(error)) from error
        except BaseException:
            folder.undo(owned=epoch.is_own(path, claim))
            raise
        project._new_folder = folder
        return project

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        writer: bool,
        say: Callable[[str], None] = log.warning,
        lease: float = LEASE,
    ) -> Self:
        """Open a project. A reader never writes and never waits.

        A writer claims the next epoch, or raises ProjectLockedError when the newest claim's owner
        lives. If only the owner's heart-beat can tell, it is watched for three leases at most, and
        `say` is called before that.
        """
        takeover.require_project(path)
        if not writer:
            return cls(path, history.identity_of(path), None)
        with durable.named_errors(path, schema.SMALL_FILE):
            return cls._begin(path, takeover.take_next_epoch(path, lease, say))

    @classmethod
    def _begin(cls, path: Path, claim: WriterClaim) -> Self:
        """Start to write under a claim."""
        writer = _Writer(path, claim)
        project = cls(path, claim.identity, writer)
        project._commits = list(writer.accepted)
        try:
            # what stands there for good if this run is killed
            project.verdict("requeue", schema.NOT_ENDED)
            commits = project.commits()
            counted = {info.segment for info in commits}
            remove_leftovers(path, claim.epoch, counted, writer.pruned)
            with project_index.prepared(writer.ownership, claim.identity, commits) as publish:
                project._index_is_old = not publish()
        except BaseException:
            project.close()
            raise
        return project

    def commit(
        self,
        number: int,
        arrays: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
        described: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Commit a state: durable on return; after an error the commit before is the latest.

        number       greater than that of the commit before
        attributes   what JSON can hold
        described    attributes of single arrays by name, for people: units, axes, voxel size
        """
        schema.check_arrays(arrays)
        plain = schema.through_json(attributes, f"attributes of commit {number}")
        notes = schema.through_json(described or {}, f"attributes of arrays of commit {number}")
        with self._writing() as writer:
            self._commit(writer, number, SegmentContents(arrays, plain, notes))

    def _commit(self, writer: _Writer, number: int, contents: SegmentContents) -> None:
        earlier = self.commits()
        newest = earlier[-1].number if earlier else -1
        if number <= newest:
            raise StoreError(f"{self.path}: commit {number} after {newest}; numbers must grow")
        writer.ownership.verify()
        self._commits = None  # so that it is read again if anything stops us
        info = self._write_segment(writer, number, contents)
        records = writer.journal.records
        try:
            with project_index.prepared(
                writer.ownership, self._identity, [*earlier, info]
            ) as publish:
                writer.journal.append([(COMMIT, schema.commit_to_json(info))])  # the commit
                writer.ownership.verify()
                self._index_is_old = not publish()
        except BaseException:
            if writer.journal.has_only(records):  # nothing names the segment
                durable.discard(self.path / schema.SEGMENTS / info.segment)
            raise
        self._commits = [*earlier, info]
        self._whole.add(info.segment)

    def _write_segment(self, writer: _Writer, number: int, contents: SegmentContents) -> CommitInfo:
        writer.serial += 1
        name = schema.segment_name(number, writer.claim.epoch, writer.serial)
        final = self.path / schema.SEGMENTS / name
        temporary = final.with_name(schema.temporary_name(writer.claim.epoch, name))
        sealed = segments.write_segment(temporary, contents)
        with durable.named_errors(final, sealed.size):
            durable.publish(temporary, final, verify=writer.ownership.verify)
        epoch_number, attributes = writer.claim.epoch, contents.attributes
        return CommitInfo(
            number, epoch_number, name, sealed.size, sealed.sha256, time.time(), attributes
        )

    def prune(self, numbers: Collection[int]) -> list[CommitInfo]:
        """Give commits up for good and free their space; return those that were there.

        The first and the latest stay. What a reader holds open it can read on; a reader that opens
        one later is told that it was pruned.
        """
        with self._writing() as writer:
            writer.ownership.verify()
            commits = self.commits()
            gone = [info for info in commits[1:-1] if info.number in numbers]
            if gone:
                left = [info for info in commits if info not in gone]
                self._commits = None  # so that it is read again if anything stops us
                self._record_pruned(writer, left, [info.segment for info in gone])
                self._commits = left
            return gone

    def _record_pruned(self, writer: _Writer, left: list[CommitInfo], names: list[str]) -> None:
        with project_index.prepared(writer.ownership, self._identity, left) as publish:
            writer.journal.append([(PRUNED, schema.pruned_to_json(names))])
            # A later owner claims first and reads then: if there is none now, it will read this.
            writer.ownership.verify()
            self._index_is_old = not publish()
        for name in names:
            durable.discard(self.path / schema.SEGMENTS / name)
        durable.sync_folder(self.path / schema.SEGMENTS)

    def commits(self) -> list[CommitInfo]:
        """Return all commits, oldest first; a reader sees those there were when it first asked."""
        if self._commits is None:
            with self._reading():
                self._commits = list(history.read(self.path).commits)
        return list(self._commits)

    def refresh(self) -> None:
        """Let a reader see what has been committed since it first asked."""
        if self._writer is None:
            self._commits = None

    def latest(self) -> Commit | None:
        """Return the newest commit; None before the first."""
        commits = self.commits()
        return self.load(commits[-1]) if commits else None

    def load(self, info: CommitInfo) -> Commit:
        """Return the arrays and attributes of a commit.

        raises   CorruptStoreError if the segment is not what was committed, bit for bit
        """
        path = self.path / schema.SEGMENTS / info.segment
        with self._reading():
            self._require_whole(path, info)
            return Commit(info.number, segments.StoredArrays(path), dict(info.attributes))

    def _require_whole(self, path: Path, info: CommitInfo) -> None:
        """Compare a segment with its commit; its checksum is computed at its first use."""
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            if info.segment in history.read(self.path).pruned:
                raise StoreError(f"{self.path}: commit {info.number} was pruned") from error
            raise CorruptStoreError(
                f"{path}: is missing; commit {info.number} needs it; {history.REMEDY}"
            ) from error
        if size != info.size:
            raise CorruptStoreError(
                f"{path}: has {size} bytes, its journal record says {info.size}; {history.REMEDY}"
            )
        if info.segment in self._whole:
            return
        if segments.seal_of(path).sha256 != info.sha256:
            raise CorruptStoreError(
                f"{path}: is damaged: its sha256 is not that of its journal record; "
                f"{history.REMEDY}"
            )
        self._whole.add(info.segment)

    def append(self, kind: str, *payloads: bytes) -> None:
        """Add results to the journal, as one batch with one sync; durable on return."""
        with self._writing() as writer:
            if kind.startswith("@"):
                raise StoreError(
                    f"{self.path}: kinds that begin with @ are the store's own: {kind!r}"
                )
            writer.ownership.verify()
            writer.journal.append([(kind, payload) for payload in payloads])
            writer.ownership.verify()

    def records(self, kind: str, *, every: bool = False) -> list[bytes]:
        """Return what was appended under a kind, oldest first: since the latest commit, or ever."""
        with self._reading():
            return history.payloads(history.read(self.path).records, kind, every=every)

    def status(self, **fields: Any) -> None:
        """Report progress in status.json, for people; the heart-beat does not depend on that."""
        self._require_writer().heartbeat.report(schema.through_json(fields, "status"))

    def verdict(self, verdict: str, reason: str) -> None:
        """Write how this run ended: done, requeue or failed. Job scripts read that file."""
        if verdict not in schema.VERDICTS:
            raise StoreError(
                f"verdict must be one of {', '.join(schema.VERDICTS)}, not {verdict!r}"
            )
        with self._writing() as writer:
            value = verdict_of(writer.claim, verdict, reason)
            self._record(writer, VERDICT_RECORD, schema.encode(value))
            write_verdict(writer.ownership, value)
            writer.verdict = value

    def _record(self, writer: _Writer, kind: str, payload: bytes) -> None:
        """Record a file that is to be replaced, and the exports that were replaced before."""
        writer.ownership.verify()
        writer.journal.append([*((EXPORT, done) for done in self._exported), (kind, payload)])
        self._exported.clear()

    def write_files(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Write small files into a folder of the project, each as a whole; durable on return."""
        with self._writing() as writer:
            where = self.path / folder
            where.mkdir(exist_ok=True)
            for name, data in files.items():
                temporary = where / schema.temporary_name(writer.claim.epoch, name)
                with durable.named_errors(where / name, len(data)):
                    durable.write_temporary(temporary, data)
                    durable.move(temporary, where / name, verify=writer.ownership.verify)
            durable.sync_folder(where)
            durable.sync_folder(self.path)  # the name of the folder itself

    @contextlib.contextmanager
    def export(self, name: str) -> Iterator[Path]:
        """Yield a temporary path to write to; on success it becomes `name`, whole and durable."""
        writer = self._require_writer()
        final = self.path / name
        if final.parent != self.path or name in schema.OWN_NAMES or name.startswith("."):
            raise StoreError(f"{final}: an export needs a plain name that the store does not use")
        temporary = final.with_name(schema.temporary_name(writer.claim.epoch, name))
        try:
            with writer.ownership.told_first():
                yield temporary
                with durable.named_errors(final, _size(temporary)):
                    self._publish_export(writer, temporary, final)
        except OSError as error:
            if durable.is_disk_full(error):
                raise durable.disk_full(final, _size(temporary), error) from error
            raise StoreError(f"{final}: cannot be written: {error.strerror or error}") from error
        finally:
            durable.discard(temporary)

    def _publish_export(self, writer: _Writer, temporary: Path, final: Path) -> None:
        durable.sync_file(temporary)
        sealed = segments.seal_of(temporary)
        info = ExportInfo(final.name, writer.claim.epoch, sealed.size, sealed.sha256, is_done=False)
        record = schema.export_to_json(info)
        self._record(writer, EXPORTING, record)
        durable.replace(temporary, final, verify=writer.ownership.verify)
        self._exported.append(record)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[_Writer]:
        """Yield the writer; no error of the system leaves, and "passed over" goes first."""
        writer = self._require_writer()
        with durable.named_errors(self.path, 0), writer.ownership.told_first():
            yield writer

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """No error of the system leaves; a writer that was passed over is told so first."""
        told = self._writer.ownership.told_first() if self._writer else contextlib.nullcontext()
        with durable.named_read_errors(self.path), told:
            yield

    @property
    def is_writer(self) -> bool:
        """Whether this process is the project's writer, until `close`."""
        return self._writer is not None

    def close(self) -> None:
        """Release the project for the next writer; a second call does nothing."""
        if self._writer is not None:
            if self._index_is_old:
                self._replace_index(self._writer)
            self._writer.close()
            self._writer = None

    def _replace_index(self, writer: _Writer) -> None:
        """Try again to make project.h5, which an error has kept from being replaced."""
        with contextlib.suppress(MpiparError, OSError):
            commits = self.commits()
            with project_index.prepared(writer.ownership, self._identity, commits) as publish:
                publish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def abandon(self) -> None:
        """Close, and remove the folder if this process made it and it holds no commit."""
        empty = not self.commits()
        self.close()
        if self._new_folder is not None and empty:
            self._new_folder.undo(owned=True)

    def _require_writer(self) -> _Writer:
        if self._writer is None:
            raise StoreError(f"{self.path}: is not open for writing")
        return self._writer


def _claim_first(path: Path, claim: WriterClaim) -> None:
    try:
        epoch.publish_claim(path, claim)
    except FileExistsError as error:
        raise OutputError(
            f"{path}: another run has just begun there; choose another --path"
        ) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
