"""Output that is there as a whole or not at all."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from mpipar.errors import DiskFullError, OutputError
from mpipar.results.whole_output import whole_output

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError, ZeroDivisionError),
        (KeyboardInterrupt, KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left"), DiskFullError),
        (OSError(errno.EACCES, "Permission denied"), OutputError),
    ],
)
def test_an_error_leaves_nothing(tmp_path, error, told):
    def make() -> None:
        with whole_output(tmp_path / "out") as path:
            path.mkdir()
            (path / "file").write_text("half")
            raise error

    with pytest.raises(told):
        make()
    assert names(tmp_path) == set()


def test_a_name_that_is_taken_meanwhile_is_kept(tmp_path):
    final = tmp_path / "out"

    def make() -> None:
        with whole_output(final) as path:
            path.write_text("mine")
            final.write_text("another's")

    with pytest.raises(OutputError, match="is there already"):
        make()
    assert final.read_text() == "another's"
    assert names(tmp_path) == {"out"}


def test_what_a_living_process_is_writing_is_left_alone(tmp_path):
    mine = f".tmp-out-{socket.gethostname()}"
    for name in (f"{mine}-1", f"{mine}-999999999", ".tmp-out-elsewhere-999999999"):
        (tmp_path / name).mkdir()  # process 1 lives
    with whole_output(tmp_path / "out") as path:
        path.mkdir()
    assert names(tmp_path) == {"out", f"{mine}-1", ".tmp-out-elsewhere-999999999"}
