"""How a command ends: what the machine refuses is one message, a bug keeps its traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mpipar.cli.outcome import attempt
from mpipar.errors import MissingInputError


def ends_with(error: BaseException, rank: int = 0) -> int:
    def action() -> int:
        raise error

    return attempt(action, rank)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.EACCES, os.strerror(errno.EACCES), "/a/b"),
            "mpipar: /a/b: Permission denied; ask its owner",
        ),
        (
            OSError(errno.ENOENT, os.strerror(errno.ENOENT), b"/a/b"),
            "mpipar: /a/b: No such file or directory; make sure",
        ),
        (
            OSError(errno.EXDEV, os.strerror(errno.EXDEV), "/a", None, "/b"),
            "mpipar: /a to /b: Invalid cross-device link",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "mpipar: No space left on device; the"),
        (MemoryError("Unable to allocate 9 GiB"), "mpipar: out of memory: Unable to allocate 9"),
        (MemoryError(), "mpipar: out of memory: no more could be had; start fewer ranks"),
    ],
)
@pytest.mark.parametrize("rank", [0, 3])
def test_what_the_machine_refuses_is_one_message(
    capsys: pytest.CaptureFixture[str], error: Exception, message: str, rank: int
) -> None:
    assert ends_with(error, rank) == 74
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_a_current_folder_that_is_gone_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert attempt(lambda: len(str(Path("p.star").absolute())), rank=0) == 66
    assert capsys.readouterr().err.startswith("mpipar: the current folder has been removed")


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EBADF, "bad"), OSError("what")])
def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    assert ends_with(error) == 70
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "this is a bug in mpipar" in said


def test_other_ranks_leave_errors_of_the_input_to_rank_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ends_with(MissingInputError("p.star does not exist"), rank=1) == 0
    assert capsys.readouterr().err == ""
    assert ends_with(MissingInputError("p.star does not exist")) == 66
    assert capsys.readouterr().err == "mpipar: p.star does not exist\n"
