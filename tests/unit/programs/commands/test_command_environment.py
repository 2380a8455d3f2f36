"""What a command's environment has of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpipar.programs.commands.command_environment import own_session_folder
from mpipar.runtime.process.launcher_variables import SESSION_BASE


@pytest.mark.parametrize("name", ["TMPDIR", SESSION_BASE])
def test_session_folder_is_where_temporary_files_are_to_be(tmp_path: Path, name: str) -> None:
    with own_session_folder({name: str(tmp_path), "A": "1"}) as environment:
        folder = Path(environment[SESSION_BASE])
        assert folder.parent == tmp_path
        assert environment["A"] == "1"
        (folder / "ompi.1").mkdir()
    assert not list(tmp_path.iterdir())


def test_session_folder_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with own_session_folder({"TMPDIR": "."}) as environment:
        assert Path(environment[SESSION_BASE]).is_absolute()


def test_command_runs_where_no_folder_can_be_made(tmp_path: Path) -> None:
    given = {"TMPDIR": str(tmp_path / "gone")}
    with own_session_folder(given) as environment:
        assert environment == given
