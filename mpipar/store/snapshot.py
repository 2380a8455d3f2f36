"""A project as it is at one moment, file by file, also while its writer is at work.

Files that are replaced are read, or held open, before the journals: so the journals tell of all
that is in them. Journals count up to their last whole record, and segments never change. If a file
was replaced meanwhile, all is taken again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from mpipar.errors import StoreError
from mpipar.store import durable, history, published, schema, takeover

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mpipar.store.history import History

__all__ = ["SnapshotFile", "snapshot"]

_TRIES: Final = 20
_READ_BYTES: Final = 1 << 20
_MOST_HELD: Final = 500  # segments; systems usually allow 1,024 open files
_REPLACED: Final = (schema.PROJECT, schema.VERDICT)


@dataclass(frozen=True)
class SnapshotFile:
    """A file of a project at one moment: what `pieces` gives, `size` bytes in all.

    name   in the project's folder, with slashes
    """

    name: str
    path: Path
    size: int
    data: bytes | None = None  # of a small file
    held: BinaryIO | None = None  # of one that may be replaced

    def pieces(self) -> Iterator[bytes]:
        """Yield the contents piece by piece; StoreError if the file has become shorter."""
        if self.data is not None:
            yield self.data
            return
        with contextlib.ExitStack() as stack, durable.named_read_errors(self.path):
            file = self.held or stack.enter_context(self.path.open("rb"))
            file.seek(0)
            left = self.size
            while left and (piece := file.read(min(left, _READ_BYTES))):
                left -= len(piece)
                yield piece
        if left:
            raise StoreError(f"{self.path}: has become shorter while it was read; try again")


@contextlib.contextmanager
def snapshot(project: Path) -> Iterator[list[SnapshotFile]]:
    """Yield the files of a project as it is now; nothing is written.

    Left out are unfinished files, the lock, and what writers have added after they lost the
    project.

    raises   MissingInputError if there is no project, CorruptStoreError if it is damaged
    """
    takeover.require_project(project)
    for attempt in range(1, _TRIES + 1):
        with contextlib.ExitStack() as held, durable.named_read_errors(project):
            taken = _take(project, held, last=attempt == _TRIES)
            if taken is not None:
                yield taken
                return
    raise StoreError(f"{project}: changes faster than it can be read; try again when it is calmer")


def _take(project: Path, held: contextlib.ExitStack, *, last: bool) -> list[SnapshotFile] | None:
    """Return the files; None if one was replaced while they were looked at."""
    small, others = _small_files(project), _other_files(project, held)
    found = history.read(project)
    if small != _small_files(project):
        return None
    if not last and _exports_are_older(found, others):
        return None
    status = {}
    with contextlib.suppress(FileNotFoundError):
        status[schema.STATUS] = (project / schema.STATUS).read_bytes()
    journals = [
        SnapshotFile(name, project / name, pin.size)
        for pin in found.pins
        for name in [f"{schema.JOURNAL}/{schema.journal_name(pin.epoch)}"]
    ]
    segments = _segments(project, found, held)
    if segments is None:
        return None
    files = [
        SnapshotFile(name, project / name, len(data), data)
        for name, data in (small | status).items()
        if _counts(name, found)
    ]
    return [*files, *journals, *segments, *others]


def _segments(
    project: Path, found: History, held: contextlib.ExitStack
) -> list[SnapshotFile] | None:
    """Return the segments, held open so that they may be pruned; None if one is gone already."""
    files: list[SnapshotFile] = []
    for info in found.commits:
        path = project / schema.SEGMENTS / info.segment
        try:
            file = held.enter_context(path.open("rb")) if len(files) < _MOST_HELD else None
        except FileNotFoundError:
            return None
        files.append(SnapshotFile(f"{schema.SEGMENTS}/{info.segment}", path, info.size, held=file))
    return files


def _small_files(project: Path) -> dict[str, bytes]:
    """Return claims, marks, project.h5 and verdict.json by name."""
    names = [f"{schema.EPOCH}/{name}" for name in os.listdir(project / schema.EPOCH)]  # noqa: PTH208
    names = [name for name in names if schema.named_epochs([name.rpartition("/")[2]])]
    found = {}
    for name in sorted([*names, *_REPLACED]):
        with contextlib.suppress(FileNotFoundError):
            found[name] = (project / name).read_bytes()
    return found


def _counts(name: str, found: History) -> bool:
    """Whether a claim or mark is of an epoch that has begun its journal; other files count."""
    epochs = schema.named_epochs([name.rpartition("/")[2]])
    return not epochs or max(epochs) <= found.epoch


def _other_files(project: Path, held: contextlib.ExitStack) -> list[SnapshotFile]:
    """Return exports, logs and what else lies in the folder; those at its root are held open."""
    files = []
    for folder, folders, names in os.walk(project):
        here = project / os.path.relpath(folder, project)
        if here == project:
            folders[:] = [name for name in folders if name not in schema.FOLDERS]
        for name in sorted(names):
            path = here / name
            inner = path.relative_to(project).as_posix()
            own = inner in {*_REPLACED, schema.STATUS} or name.startswith(schema.TEMPORARY)
            if own or not stat.S_ISREG(path.lstat().st_mode):
                continue
            file = held.enter_context(path.open("rb")) if here == project else None
            files.append(SnapshotFile(inner, path, path.stat().st_size, held=file))
    return files


def _exports_are_older(found: History, others: list[SnapshotFile]) -> bool:
    """Whether journals tell of an export that came, or was replaced, after files were looked at."""
    files = {file.name: file for file in others}
    for name, accepted in published.accepted_exports(found).items():
        if name not in files:
            if accepted[0].is_done:
                return True
            continue
        digest, size = hashlib.sha256(), 0
        for piece in files[name].pieces():
            digest.update(piece)
            size += len(piece)
        if (size, digest.hexdigest()) not in {(e.size, e.sha256) for e in accepted}:
            return True
    return False
