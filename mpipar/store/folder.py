"""Making a project folder, undoing that, and removing what dead writers have left in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from typing import TYPE_CHECKING, Final

from mpipar.errors import OutputError, StoreError
from mpipar.store import durable, schema, witnesses
from mpipar.store.epoch import epochs

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_RESERVED: Final = schema.temporary_name(0, "reserved")


def next_free(parent: Path, prefix: str) -> Path:
    """Make and return the next free folder, such as refine_03; no two runs get the same."""
    taken = re.compile(re.escape(prefix) + r"_(\d+)")
    try:
        matches = [taken.fullmatch(entry.name) for entry in parent.iterdir()]
        number = max((int(match[1]) for match in matches if match), default=0) + 1
        while True:
            path = parent / f"{prefix}_{number:02d}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()  # atomic: of two processes one gets the name
                # a folder with this mark may be removed again if the creation fails
                (path / _RESERVED).touch()
                return path
            number += 1
    except OSError as error:
        raise OutputError(
            f"{parent}: no output folder can be made there: {error.strerror}"
        ) from error


def require_free(path: Path) -> None:
    """Raise the OutputError that making a project there would raise; nothing is written."""
    try:
        found = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if found == path:
            _refuse_if_taken(path)
        elif not found.is_dir():
            raise OutputError(f"{path}: cannot be made: {found} is not a folder")
        if not os.access(found, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: no files can be made in {found}; choose another --path")
    except OSError as error:
        raise OutputError(f"{path}: cannot be made: {error.strerror or error}") from error


def _refuse_if_taken(path: Path) -> None:
    if not path.is_dir():
        raise OutputError(f"{path}: exists and is not a folder; choose another --path")
    if not schema.is_vacant(path):
        raise OutputError(
            f"{path}: exists and is not empty; choose another --path, or add --resume to go on "
            "with the run in it"
        )


class NewFolder:
    """The folders made for a new project; `undo` removes them if the creation fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []  # outermost first
        try:
            self._make()
        except OSError as error:
            self.undo(owned=False)
            if durable.is_disk_full(error):
                raise durable.disk_full(path, schema.SMALL_FILE, error) from error
            raise OutputError(f"{path}: cannot be made: {error.strerror or error}") from error
        except BaseException:
            self.undo(owned=False)
            raise

    def _make(self) -> None:
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self._made.append(folder)
        reserved = self.path / _RESERVED
        if self.path.is_dir() and reserved.exists():
            reserved.unlink()
            self._made.append(self.path)
        if self.path not in self._made:
            _refuse_if_taken(self.path)
        for name in schema.FOLDERS:
            (self.path / name).mkdir(exist_ok=True)
        for folder in (self.path, *(made.parent for made in reversed(self._made))):
            durable.sync_folder(folder)

    def undo(self, *, owned: bool) -> None:
        """Remove what was made, unless another run has claimed the folder meanwhile.

        owned   whether this process has claimed epoch 1: then its files are removed, too
        """
        try:
            claimed = max(epochs(self.path), default=0)
        except StoreError:
            return  # nothing is removed from a folder that cannot be looked into
        if claimed > int(owned):
            return
        for name in schema.FOLDERS:
            if owned:
                shutil.rmtree(self.path / name, ignore_errors=True)
            _remove_if_empty(self.path / name)
        if owned:
            for entry in self.path.glob(schema.TEMPORARY + "*"):
                durable.discard(entry)
            for name in (schema.PROJECT, schema.STATUS, schema.VERDICT):
                durable.discard(self.path / name)
        for folder in reversed(self._made):
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_temporaries(project: Path, epoch: int) -> None:
    """Remove the unfinished files of epochs before `epoch`.

    So a writer that was stopped between its last look at the claims and its rename, and goes on
    after this, has nothing to rename any more.
    """
    with durable.named_read_errors(project):
        own = [entry for entry in project.iterdir() if entry.is_dir() and not entry.is_symlink()]
    for folder in {project, *own, *(project / name for name in schema.FOLDERS)}:
        for entry in folder.glob(schema.TEMPORARY + "*"):
            owner = schema.epoch_of_temporary(entry.name)
            if owner is not None and owner < epoch:
                durable.discard(entry)


def remove_leftovers(
    project: Path, epoch: int, counted: Collection[str], pruned: Collection[str]
) -> None:
    """Clear what epochs before `epoch` left: unfinished files, and segments not `counted`.

    These segments are whole files: they are moved to the folder of orphans, not removed, unless the
    journal says that they are `pruned`.
    """
    remove_temporaries(project, epoch)
    orphans = project / schema.ORPHANS
    for name in witnesses.segment_names(project):
        owner = schema.epoch_of_segment(name)
        if name in pruned:
            durable.discard(project / schema.SEGMENTS / name)
        elif owner is not None and owner < epoch and name not in counted:
            with durable.named_errors(orphans, 0):
                orphans.mkdir(exist_ok=True)
                (project / schema.SEGMENTS / name).replace(orphans / name)
