"""project.h5: the entry point for people and HDF5 viewers, made from the journal at each commit.

    /                     format, kind, created, epoch, settings (JSON), latest (number)
    /commits/<number>     external link to segments/<file>
    /latest               external link to the newest commit's segment
    /journal              table: number, epoch, segment, size, sha256, time

project.h5 is derived: if it is missing or old, the next writer makes it again. Only `mpipar check`
reads it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import logging
from typing import TYPE_CHECKING, Final

import h5py
import numpy as np

from mpipar.store import durable, schema, segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.store.schema import CommitInfo, Identity

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
    project: Path, epoch: int, identity: Identity, commits: Sequence[CommitInfo]
) -> Iterator[Callable[[], None]]:
    """Write the next project.h5, durable, under a temporary name; yield a function that renames it.

    So a full disk shows before a commit is recorded, and after that only the rename is left.
    """
    temporary = project / schema.temporary_name(epoch, schema.PROJECT)
    _write(temporary, epoch, identity, commits)
    try:
        yield functools.partial(_publish, temporary, project / schema.PROJECT)
    finally:
        durable.discard(temporary)


def _publish(temporary: Path, final: Path) -> None:
    try:
        durable.replace(temporary, final)
    except OSError as error:  # the commit stands without project.h5
        log.warning("%s: stays as it was until the next commit: %s", final, error)


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

    segments.write_hdf5(temporary, fill, is_whole, _BYTES_PER_COMMIT * (len(commits) + 16))


def _link(info: CommitInfo) -> h5py.ExternalLink:
    return h5py.ExternalLink(f"{schema.SEGMENTS}/{info.segment}", "/")


def _table(commits: Sequence[CommitInfo]) -> NDArray[np.void]:
    rows = [
        (c.number, c.epoch, c.segment.encode(), c.size, c.sha256.encode(), c.time) for c in commits
    ]
    return np.array(rows, _ROW)


def listed_commits(project: Path) -> list[tuple[int, str, str]] | None:
    """Return (number, segment, sha256) of the commits in project.h5; None if it is missing."""
    path = project / schema.PROJECT
    if not path.exists():
        return None
    with segments.open_hdf5(path) as file:
        table = file["journal"][...]
    return [(int(r["number"]), r["segment"].decode(), r["sha256"].decode()) for r in table]
