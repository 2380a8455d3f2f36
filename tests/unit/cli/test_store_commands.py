"""`mpipar check` and `mpipar unlock`: what they say, and their exit codes."""

from __future__ import annotations

import os

import numpy as np
import pytest

from mpipar.cli.main import main
from mpipar.errors import CorruptStoreError
from mpipar.store import Project
from tests.unit.store.projects import die


@pytest.fixture
def path(tmp_path):
    with Project.create(tmp_path / "run", settings={}, kind="test") as project:
        project.commit(1, {"x": np.arange(10)}, {})
    return tmp_path / "run"


def test_a_sound_run_is_said_to_be(path, capsys):
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: sound\n"


def test_how_the_latest_run_stands_is_said(path, capsys):
    def said():
        main(["check", str(path)])
        return capsys.readouterr().err

    assert said() == f"{path}: the latest run has closed it without a word about how it ended\n"
    with Project.open(path, writer=True) as project:
        assert f"{path}: is being written by process {os.getpid()} on " in said()
        project.verdict("failed", "the input is wrong")
    assert said() == f"{path}: the latest run has ended: failed (the input is wrong)\n"
    die(Project.open(path, writer=True))
    assert "the latest run was killed (process " in said()


def test_every_problem_is_a_line(path, capsys):
    (segment,) = (path / "segments").iterdir()
    segment.chmod(0o600)
    segment.write_bytes(segment.read_bytes()[:-100])
    assert main(["check", str(path)]) == CorruptStoreError.exit_code
    *problems, last = capsys.readouterr().out.splitlines()
    assert any(segment.name in problem for problem in problems)
    assert len(problems) == 1
    assert last == f"{path}: 1 problem"
    segment.unlink()
    (path / "project.h5").unlink()
    assert main(["check", str(path)]) == CorruptStoreError.exit_code
    *problems, last = capsys.readouterr().out.splitlines()
    assert last == f"{path}: {len(problems)} problems"


def test_a_run_without_a_writer_needs_no_unlocking(path, capsys):
    assert main(["unlock", str(path)]) == 0
    assert str(path) in capsys.readouterr().out


def test_a_damaged_run_is_repaired_on_request(path, capsys):
    journal = path / "journal" / "000001.log"
    data = bytearray(journal.read_bytes())
    data[13] ^= 1
    journal.write_bytes(data)
    assert main(["check", str(path)]) == CorruptStoreError.exit_code
    assert f"`mpipar check --repair {path}` would bring back the commits 1," in (
        capsys.readouterr().err
    )
    assert journal.read_bytes() == data
    assert main(["check", "--repair", str(path)]) == 0
    assert "repaired: brought back the commits 1," in capsys.readouterr().out
    assert main(["check", str(path)]) == 0
