"""The n-th call to the system fails, once or from then on: one error, and all that returned stays.

The default run lets calls fail that are spread evenly; `slow` lets each one fail.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpipar.errors import MpiparError
from mpipar.store import Project, check
from tests.unit.store.projects import X, create

if TYPE_CHECKING:
    from pathlib import Path

CALLS = (
    *("open", "write", "pwrite", "pread", "fsync", "fdatasync", "link", "unlink", "listdir"),
    *("ftruncate", "mkdir", "scandir", "rename", "replace", "stat"),
)
SPREAD, SHARDS = 31, 9


class FailingSystem:
    """Counts this thread's calls; the call number `at` fails, and later ones if it stays so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int, *, stays: bool) -> None:
        self.at: int | None = None
        self.count = 0
        self._code, self._stays = code, stays
        self._thread = threading.get_ident()
        for name in CALLS:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))
        monkeypatch.setattr(io, "open", self._failing(io.open))

    def _failing(self, function):
        def call(*arguments, **words):
            if self.at is not None and threading.get_ident() == self._thread:
                self.count += 1
                if self.count == self.at or (self._stays and self.count > self.at):
                    raise OSError(self._code, os.strerror(self._code))
            return function(*arguments, **words)

        return call


class Acknowledged:
    """What has returned to the program."""

    def __init__(self) -> None:
        self.commit, self.records = 0, 1

    def work(self, path: Path) -> None:
        with Project.open(path, writer=True, lease=1000, say=lambda _: None) as project:
            project.append("result", b"1")
            self.records = 2
            project.commit(1, {"x": X + 1}, {})
            self.commit = 1
            with project.export("map.mrc") as temporary:
                temporary.write_bytes(b"new")
            project.write_files("logs", {"1.log": b"output"})
            project.status(phase="1")
            project.append("result", b"2", b"3")
            self.records = 4
            project.commit(2, {"x": X + 2}, {})
            self.commit = 2
            project.verdict("done", "")


def fail_at(number: int, template: Path, path: Path, system: FailingSystem) -> bool:
    """Let one call fail; return whether the work came to it."""
    shutil.copytree(template, path)
    acknowledged = Acknowledged()
    system.at, system.count = number, 0
    try:
        acknowledged.work(path)
        said = str(path)
    except MpiparError as error:
        said = str(error)
    reached, system.at = system.count >= number, None
    assert str(path) in said
    assert check(path) == [], number
    project = Project.open(path, writer=False)
    numbers = [info.number for info in project.commits()]
    assert numbers == [*range(len(numbers))]
    assert numbers[-1] >= acknowledged.commit
    assert len(project.records("result", every=True)) >= acknowledged.records
    for info in project.commits():
        assert np.array_equal(project.load(info).arrays["x"], X + info.number)
    with Project.open(path, writer=True, lease=1000) as project:  # nobody is locked out
        project.commit(9, {"x": X}, {})
    assert check(path) == []
    assert [file for file in path.rglob(".tmp-*") if file.parent.name != "epoch"] == []
    shutil.rmtree(path)
    return reached


def fail_in_turn(folder: Path, system: FailingSystem, start: int, step: int) -> None:
    template = folder / "template"
    with create(template) as project:
        project.append("result", b"0")
        project.commit(0, {"x": X}, {})
        with project.export("map.mrc") as temporary:
            temporary.write_bytes(b"old")
    number = start
    while fail_at(number, template, folder / "run", system):
        number += step
    assert number > 200, "too few calls: the test tests nothing"


WAYS = [(errno.ENOSPC, True), (errno.ENOSPC, False), (errno.EIO, True), (errno.EIO, False)]


@pytest.mark.parametrize(("code", "stays"), WAYS)
def test_what_returned_stays_whatever_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stays: bool
) -> None:
    system = FailingSystem(monkeypatch, code, stays=stays)
    fail_in_turn(tmp_path, system, 1 + WAYS.index((code, stays)) * 8, SPREAD)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, SHARDS + 1))
@pytest.mark.parametrize(("code", "stays"), WAYS)
def test_what_returned_stays_when_any_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stays: bool, start: int
) -> None:
    fail_in_turn(tmp_path, FailingSystem(monkeypatch, code, stays=stays), start, SHARDS)
