"""The folder of a run, for every program: made, opened again, and closed after an error."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mpipar.errors import InputError, MissingInputError, MpiparError, RequeueError, StoppedError
from mpipar.options import Settings
from mpipar.runtime.process import signals
from mpipar.store.folder import next_free, require_free
from mpipar.store.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["close_after_error", "create", "newest_run", "reopen", "require_possible"]

S = TypeVar("S", bound=Settings)


def create(settings: Settings, path: Path | None) -> Project:
    """Make a project in a new folder; without a path, the next free one, such as refine_03."""
    kind = settings.command
    return Project.create(
        path or next_free(Path.cwd(), kind), settings=settings.to_mapping(), kind=kind
    )


def require_possible(settings: Settings, path: Path | None) -> None:
    """Raise the OutputError that `create` would raise; nothing is made."""
    require_free(path or Path.cwd() / f"{settings.command}_NN")


def newest_run(kind: str) -> Path:
    """Return the newest run of a kind in this folder. Raises MissingInputError if there is none."""
    runs = sorted(Path.cwd().glob(f"{kind}_[0-9]*"), key=lambda p: (len(p.name), p.name))
    if not runs:
        raise MissingInputError(
            f"--resume: there is no {kind}_NN in {Path.cwd()}; name it with --path"
        )
    return runs[-1]


def reopen(
    settings: S, path: Path | None, *, writer: bool, say: Callable[[str], None]
) -> tuple[Project, S]:
    """Open an earlier run, without a path the newest; return the project and its settings.

    say      is called if it takes long to find out whether the last writer still lives
    raises   MissingInputError, InputError, UsageError, StoreError, ProjectLockedError
    """
    kind = settings.command
    path = path or newest_run(kind)
    project = Project.open(path, writer=writer, say=say)
    try:
        _require_kind(project, kind)
        return project, settings.resumed_from(project.settings, where=str(path))
    except BaseException:
        project.close()
        raise


def _require_kind(project: Project, kind: str) -> None:
    if project.kind != kind:
        raise InputError(
            f"{project.path} was made by `mpipar {project.kind}`, not by `mpipar {kind}`"
        )


def close_after_error(
    project: Project | None, error: BaseException, kept: str, say: Callable[[str], None]
) -> None:
    """Write the verdict of a run that ends with an error; remove a folder with nothing to keep.

    kept   what a resumed run goes on from, in words; empty if there is nothing
    """
    signals.settle()  # the rest takes little time, and a signal must not cut it off
    if project is None or not project.is_writer:
        return
    temporary = isinstance(error, RequeueError | KeyboardInterrupt) or _is_orphaned(error)
    with suppress(MpiparError):  # a writer that was passed over, or a full disk: `error` says so
        project.verdict("requeue" if temporary else "failed", f"{type(error).__name__}: {error}")
    if isinstance(error, MpiparError) and not kept:
        project.abandon()
    elif isinstance(error, StoppedError):
        say(f"{error}; {kept} is kept: go on with --resume --path {project.path}")
    elif isinstance(error, InputError | MissingInputError):
        say(f"{kept} is kept: with sound input, go on with --resume --path {project.path}")


def _is_orphaned(error: BaseException) -> bool:
    """Whether nobody reads our output any more: mpirun or the batch system's daemon has died."""
    return isinstance(error, OSError) and error.errno in (errno.EIO, errno.EPIPE)
