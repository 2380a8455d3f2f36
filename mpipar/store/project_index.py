"""project.h5: the entry point for people and HDF5 viewers, made from the journal at each commit.

    /                     format, kind, created, epoch, settings (JSON), latest (number)
    /commits/<number>     external link to segments/<file>
    /latest               external link to the newest commit's segment
    /journal              table: number, epoch, segment, size, sha256, time

project.h5 is derived: if it is missing or old, the next writer makes it again. But what it lists
has been committed: a journal that holds less is damaged. After the HDF5 file follow a magic and the
sha256 of it, so that damage is found without HDF5, which may crash on it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h5py
import numpy as np

from mpipar.errors import CorruptStoreError
from mpipar.store import durable, schema, segments
from mpipar.store.schema import CommitInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.store.epoch import Ownership
    from mpipar.store.schema import Identity

log = logging.getLogger(__name__)

_ROW: Final = np.dtype(
    {
        "names": ["number", "epoch", "segment", "size", "sha256", "time"],
        "formats": ["<i8", "<i8", "S64", "<i8", "S64", "<f8"],
    }
)
_BYTES_PER_COMMIT: Final = 1024


@contextlib.contextmanager
def prepared(
    ownership: Ownership, identity: Identity, commits: Sequence[CommitInfo]
) -> Iterator[Callable[[], bool]]:
    """Write the next project.h5, durable, under a temporary name; yield a function that renames it.

    The function returns whether that was done. So a full disk shows before a commit is recorded,
    and after that only the rename is left.
    """
    project, epoch = ownership.project, ownership.claim.epoch
    temporary = project / schema.temporary_name(epoch, schema.PROJECT)
    _write(temporary, epoch, identity, commits)
    try:
        yield functools.partial(_publish, ownership, temporary, project / schema.PROJECT)
    finally:
        durable.discard(temporary)


def _publish(ownership: Ownership, temporary: Path, final: Path) -> bool:
    try:
        with ownership.told_first():
            durable.replace(temporary, final, verify=ownership.verify)
    except OSError as error:  # the commit stands without project.h5
        log.warning("%s: stays as it was until the next commit: %s", final, error)
        return False
    return True


def _write(temporary: Path, epoch: int, identity: Identity, commits: Sequence[CommitInfo]) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["format"] = identity.format
        file.attrs["kind"] = identity.kind
        created = dt.datetime.fromtimestamp(identity.created, dt.timezone.utc)
        file.attrs["created"] = created.isoformat(timespec="seconds")
        file.attrs["epoch"] = epoch
        segments.put_attribute(file, "settings", identity.settings)
        group = file.create_group("commits")
        for info in commits:
            group[f"{info.number:04d}"] = _link(info)
        if commits:
            file.attrs["latest"] = commits[-1].number
            file["latest"] = _link(commits[-1])
        file["journal"] = _table(commits)

    def is_whole(file: h5py.File) -> bool:
        return bool(file["journal"][...].tobytes() == _table(commits).tobytes())

    needed = _BYTES_PER_COMMIT * (len(commits) + 16)
    segments.write_hdf5(temporary, fill, is_whole, needed, signed=True)


def _link(info: CommitInfo) -> h5py.ExternalLink:
    return h5py.ExternalLink(f"{schema.SEGMENTS}/{info.segment}", "/")


def _table(commits: Sequence[CommitInfo]) -> NDArray[np.void]:
    rows = [
        (c.number, c.epoch, c.segment.encode(), c.size, c.sha256.encode(), c.time) for c in commits
    ]
    return np.array(rows, _ROW)


@dataclass(frozen=True)
class ListedCommits:
    """What project.h5 says: the epoch that made it, and its commits, without their attributes."""

    epoch: int
    commits: tuple[CommitInfo, ...]


def listed_commits(project: Path) -> ListedCommits | None:
    """Return what project.h5 lists; None if it is missing.

    raises   CorruptStoreError if it cannot be read
    """
    path = project / schema.PROJECT
    if not path.exists():
        return None
    try:
        segments.require_signed(path)
        with segments.open_hdf5(path) as file:
            epoch, table = int(file.attrs["epoch"]), file["journal"][...]
        return ListedCommits(epoch, tuple(_from_row(row) for row in table))
    except CorruptStoreError:
        raise
    except Exception as error:  # h5py raises nearly any type for a damaged file
        raise CorruptStoreError(f"{path}: is damaged: {error}") from error


def _from_row(row: np.void) -> CommitInfo:
    return CommitInfo(
        int(row["number"]),
        int(row["epoch"]),
        row["segment"].decode(),
        int(row["size"]),
        row["sha256"].decode(),
        float(row["time"]),
        {},
    )
