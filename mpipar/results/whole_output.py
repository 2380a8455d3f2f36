"""Output that is there as a whole or not at all: written under a hidden name, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from mpipar.errors import OutputError
from mpipar.store import durable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["whole_output"]


@contextlib.contextmanager
def whole_output(final: Path) -> Iterator[Path]:
    """Yield a hidden path beside `final`, to make a file or folder there; on success it is renamed.

    Whatever ends this process, `final` is whole or not there. What a killed process has left is
    removed by the next one on this host that writes the same.

    raises   OutputError if `final` is there already, or cannot be written; DiskFullError
    """
    _refuse_if_there(final)
    name = f".tmp-{final.name}-{socket.gethostname()}-{os.getpid()}"
    temporary = final.with_name(name)
    try:
        with _as_output_error(final):
            _remove_leftovers(final)
            yield temporary
            _sync(temporary)
            _refuse_if_there(final)
            temporary.rename(final)
            durable.sync_folder(final.parent)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def _as_output_error(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if durable.is_disk_full(error):
            raise durable.disk_full(final, 0, error) from error
        raise OutputError(f"{final}: cannot be written: {error.strerror or error}") from error


def _refuse_if_there(final: Path) -> None:
    if os.path.lexists(final):
        raise OutputError(f"{final}: is there already, and is kept; choose another name with --to")


def _remove_leftovers(final: Path) -> None:
    """Remove what processes of this host that are gone have left of the same output."""
    left = re.compile(re.escape(f".tmp-{final.name}-{socket.gethostname()}-") + r"(\d+)")
    for path in final.parent.iterdir():
        match = left.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(path)


def _sync(path: Path) -> None:
    if path.is_file():
        durable.sync_file(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            durable.sync_file(Path(folder, name))
        durable.sync_folder(Path(folder))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        durable.discard(path)
