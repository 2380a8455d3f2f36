"""Who may write: claims by epoch, and when a dead owner's claim may be passed over.

    claim n published by link() --- owner writes, each name carries n --- released by close()
        |                               |
        |                               +-- finds claim n+1: stops (it was passed over)
        +-- next writer: may_take_over(claim, evidence)
                -> TAKE: link() claim n+1 | REFUSE | WATCH the heart-beat

No claim is ever changed or removed, no number is used twice, the highest epoch is the only writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from mpipar.errors import CorruptStoreError, MpiparError, ProjectLockedError, StoreError
from mpipar.store import durable, schema
from mpipar.store.schema import Identity, Pin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEASE: Final = 30.0  # seconds; there is a heart-beat every third of a lease
LEASES_TO_WATCH: Final = 3
_MARK_FIELDS: Final = {"by", "time"}
_given_up: Final[set[str]] = set()  # nonces of the claims that this process has made and released


@dataclass(frozen=True)
class BatchJob:
    """The batch job a process runs in."""

    system: str  # "slurm" or "sge"
    cluster: str  # job ids mean something within one cluster only; "" if it cannot be told
    job: str
    restarts: int


@dataclass(frozen=True)
class WriterClaim:
    """One writer's claim to a project, as written in epoch/."""

    epoch: int
    nonce: str  # hex; tells two runs apart whatever else is equal
    host: str
    boot: str  # the kernel's boot id, "" if unknown
    namespace: str  # of process ids: a container may share the boot id but not the ids
    process: int
    process_start: str  # in the kernel's ticks, "" if unknown
    batch: BatchJob | None
    started: str  # local time with offset, for people; never compared
    lease: float  # seconds
    identity: Identity

    def owner(self) -> str:
        """Return who the owner is, for an error message."""
        job = f", {self.batch.system} job {self.batch.job}" if self.batch else ""
        if self.batch and self.batch.restarts:
            job += f" (restart {self.batch.restarts})"
        return f"process {self.process} on {self.host}{job}, since {self.started}"


class OwnerProcess(Enum):
    """Whether the owner's process lives; UNKNOWN on any machine but its own."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class HeartbeatSeen(Enum):
    """What the next writer saw of the owner's heart-beat counter."""

    UNWATCHED = "unwatched"
    MOVED = "moved"
    STOOD_STILL = "stood still"


@dataclass(frozen=True)
class Evidence:
    """All that speaks for or against a claim's owner being alive."""

    released: bool = False  # the owner closed the project
    unlocked: bool = False  # a person said that the owner is dead
    process: OwnerProcess = OwnerProcess.UNKNOWN
    restarted: bool = False  # the next writer is the same batch job, restarted by the scheduler
    job_over: bool = False  # the scheduler says that the job is over
    beat: HeartbeatSeen = HeartbeatSeen.UNWATCHED


class Verdict(Enum):
    """What to do about an older claim."""

    TAKE = "take"
    REFUSE = "refuse"
    WATCH = "watch"


@dataclass(frozen=True)
class Decision:
    """A verdict with its reason, for the log or the error message."""

    verdict: Verdict
    reason: str


def may_take_over(claim: WriterClaim | None, evidence: Evidence) -> Decision:
    """Whether the next epoch may be claimed. The first rule that applies decides.

    claim   None if it cannot be read
    """
    rules = (
        (evidence.released, Verdict.TAKE, "its owner closed the project"),
        (evidence.unlocked, Verdict.TAKE, "it was unlocked by hand"),
        (evidence.process is OwnerProcess.ALIVE, Verdict.REFUSE, "that process is alive"),
        (evidence.process is OwnerProcess.GONE, Verdict.TAKE, "that process is gone"),
        (evidence.restarted, Verdict.TAKE, "the scheduler has restarted that job as this one"),
        (evidence.job_over, Verdict.TAKE, "the scheduler says that the job is over"),
        (evidence.beat is HeartbeatSeen.MOVED, Verdict.REFUSE, "its heart-beat goes on"),
        (
            evidence.beat is HeartbeatSeen.STOOD_STILL,
            Verdict.TAKE,
            "its heart-beat stood still for three leases",
        ),
    )
    for applies, verdict, reason in rules:
        if applies:
            return Decision(verdict, reason)
    watched = "the owner's heart-beat" if claim else "whether the claim's maker still works on it"
    return Decision(Verdict.WATCH, f"no evidence yet; watching {watched}")


def epochs(project: Path) -> list[int]:
    """Return all claimed epochs, lowest first.

    The folder is opened each time, because that makes an NFS client ask the server.
    """
    try:
        return schema.claimed_epochs(os.listdir(project / schema.EPOCH))  # noqa: PTH208 - names are enough
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise durable.not_readable(project, error) from error


def used_epochs(project: Path) -> list[int]:
    """Return the epochs that any file in epoch/ and journal/ names, lowest first.

    Each has a claim, unless that was lost: it was there before anything else.
    """
    used: set[int] = set()
    for folder in (project / schema.EPOCH, project / schema.JOURNAL):
        with (
            durable.named_read_errors(folder),
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
        ):
            used |= schema.named_epochs(os.listdir(folder))  # noqa: PTH208 - names are enough
    return sorted(used)


def claim_path(project: Path, epoch: int) -> Path:
    """Return the path of an epoch's claim."""
    return project / schema.EPOCH / schema.claim_name(epoch)


def read_claim(project: Path, epoch: int) -> WriterClaim | None:
    """Read a claim; None if it is damaged, or not whole (on a file system without hard links).

    raises   StoreError if it cannot be read, or if a later version of mpipar wrote it
    """
    path = claim_path(project, epoch)
    try:
        value = schema.decode_signed(path.read_bytes())
        value["identity"] = schema.identity_from_json(value["identity"], str(path))
        value["batch"] = BatchJob(**value["batch"]) if value["batch"] else None
        return schema.build(WriterClaim, value, str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise durable.not_readable(project, error) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def identity_from_claims(project: Path, claimed: list[int]) -> Identity:
    """Return what the project is, from the newest claim that can be read."""
    for epoch in reversed(claimed):
        claim = read_claim(project, epoch)
        if claim is not None:
            return claim.identity
    raise CorruptStoreError(
        f"{project / schema.EPOCH}: holds no claim that can be read; restore it from a copy, or "
        "see `mpipar check`"
    )


def publish_claim(project: Path, claim: WriterClaim) -> None:
    """Take an epoch; FileExistsError if another process has taken it: exactly one gets it."""
    final = claim_path(project, claim.epoch)
    name = schema.temporary_name(claim.epoch, f"{claim.nonce}-{final.name}")
    durable.write_temporary(final.with_name(name), schema.sign(schema.encode(asdict(claim))))
    try:
        durable.publish(final.with_name(name), final)
    except FileExistsError:
        raise
    except BaseException:
        _given_up.add(claim.nonce)
        if is_own(project, claim):  # it was published, and then its folder was not synced
            with contextlib.suppress(OSError):
                mark(project, schema.released_name(claim.epoch), claim.owner())
        raise


def is_given_up(claim: WriterClaim) -> bool:
    """Whether this process has made the claim and released it, with or without a mark."""
    return claim.nonce in _given_up


def is_own(project: Path, claim: WriterClaim) -> bool:
    """Whether the claim of this epoch in the folder is this one."""
    try:
        found = read_claim(project, claim.epoch)
    except (OSError, StoreError):
        return False
    return found is not None and found.nonce == claim.nonce


def mark(project: Path, name: str, by: str, journal: Pin | None = None) -> None:
    """Publish a mark beside a claim, unless it is there: released or unlocked, and by whom.

    journal   what the owner's journal holds, if its owner makes the mark
    """
    final = project / schema.EPOCH / name
    temporary = final.with_name(
        schema.temporary_name(int(name.split(".", maxsplit=1)[0]), f"{os.getpid()}-{name}")
    )
    text = {"by": by, "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    kept = {"journal": asdict(journal)} if journal else {}
    durable.write_temporary(temporary, schema.sign(schema.encode(text | kept)))
    with contextlib.suppress(FileExistsError):
        durable.publish(temporary, final)


def is_marked(project: Path, name: str) -> bool:
    """Whether a mark is there; by open(), not stat(): over NFS only an open asks the server."""
    path = project / schema.EPOCH / name
    with durable.named_read_errors(path):
        try:
            os.close(os.open(path, os.O_RDONLY))
        except FileNotFoundError:
            return False
    return True


def released_journal(project: Path, epoch: int) -> Pin | None:
    """Return what an owner's journal held when it released its claim.

    None if the claim is not released, or was released on a full disk or by mpipar 0.1, which did
    not record it. ValueError if the mark is damaged.
    """
    try:
        data = (project / schema.EPOCH / schema.released_name(epoch)).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise durable.not_readable(project, error) from error
    value = schema.decode_signed(data)
    kept = value.pop("journal", None)
    if not value.keys() <= _MARK_FIELDS and "identity" not in value:  # else it is the claim itself
        raise ValueError("not a mark")
    try:
        return None if kept is None else Pin(**kept)
    except TypeError as error:
        raise ValueError(str(error)) from error


class Ownership:
    """The claim of this process; `verify` is called before and after each write."""

    def __init__(self, project: Path, claim: WriterClaim) -> None:
        self.project = project
        self.claim = claim
        self._lock = _fcntl_lock(project)

    def verify(self) -> None:
        """Raise ProjectLockedError when a later epoch exists: nothing written here counts then."""
        if os.getpid() != self.claim.process:
            raise StoreError(
                f"{self.project}: a forked child must not write to its parent's project"
            )
        highest = max(epochs(self.project), default=0)
        if highest <= self.claim.epoch:
            return
        newer = None
        with contextlib.suppress(StoreError):
            newer = read_claim(self.project, highest)
        owner = newer.owner() if newer else f"the owner of epoch {highest}"
        raise ProjectLockedError(
            f"{self.project}: this run (epoch {self.claim.epoch}) was taken for dead and passed "
            f"over by {owner}; it stops, and what it had not yet committed is that run's to do"
        )

    @contextlib.contextmanager
    def told_first(self) -> Iterator[None]:
        """Whatever fails inside is reported as "passed over by ..." if that is what happened."""
        try:
            yield
        except ProjectLockedError:
            raise
        except (OSError, MpiparError):
            with contextlib.suppress(StoreError):
                self.verify()
            raise

    def release(self, journal: Pin | None = None) -> None:
        """Mark the claim as released, so that the next writer needs no other evidence.

        journal   what this owner's journal holds: the next reader must find it all
        """
        if os.getpid() == self.claim.process:
            _given_up.add(self.claim.nonce)
            with contextlib.suppress(OSError):
                self._mark_released(journal)
        self.drop_lock()

    def _mark_released(self, journal: Pin | None) -> None:
        name = schema.released_name(self.claim.epoch)
        try:
            mark(self.project, name, self.claim.owner(), journal)
        except OSError:  # a second name for the claim needs no space: it succeeds on a full disk
            os.link(claim_path(self.project, self.claim.epoch), self.project / schema.EPOCH / name)

    def drop_lock(self) -> None:
        """Give the fcntl lock up; the claim stays."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _fcntl_lock(project: Path) -> int:
    """Take an fcntl lock for the time of writing; return its descriptor, or -1 without a lock.

    On NFSv4 the lock makes the writes of a cut-off owner fail. The lock proves nothing: some
    servers keep a dead client's locks for ever, and others grant one lock twice.
    """
    try:
        fd = os.open(
            project / schema.EPOCH / schema.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
        )
    except OSError:
        return -1
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by a dead owner's client, or ENOLCK, ENOSYS: the epoch decides
        os.close(fd)
        return -1
    return fd
