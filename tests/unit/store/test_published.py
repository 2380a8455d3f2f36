"""Files that are replaced: the journal tells the newest version of each from any other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mpipar.errors import StoreError
from mpipar.store import Project, check, durable, read_status, read_verdict, schema
from tests.unit.store.projects import X, create, die, flip

FILES = ("project.h5", "verdict.json", "map.mrc")


def write(project: Project, number: int) -> None:
    project.commit(number, {"x": X * number}, {})
    project.commit(number + 1, {"x": X * number}, {})
    with project.export("map.mrc") as temporary:
        temporary.write_bytes(b"map %d" % number)
    project.status(number=number)
    project.verdict("done", f"number {number}")


@pytest.fixture
def two_epochs(path: Path) -> dict[str, bytes]:
    """Two runs; return the files as the first one left them."""
    with create(path) as project:
        write(project, 1)
    older = {name: (path / name).read_bytes() for name in (*FILES, "status.json")}
    with Project.open(path, writer=True) as project:
        write(project, 3)
    assert check(path) == []
    return older


@pytest.mark.parametrize("name", FILES)
def test_an_older_version_that_was_put_back_is_found(path: Path, two_epochs, name):
    (path / name).write_bytes(two_epochs[name])
    (problem,) = check(path)
    assert problem.startswith(f"{path / name}: ")
    if name == "map.mrc":
        assert f"`mpipar refine --resume --path {path}` writes it again" in problem
    else:
        Project.open(path, writer=True).close()
        assert check(path) == []


@pytest.mark.parametrize("name", FILES)
def test_a_version_that_is_missing_is_found(path: Path, two_epochs, name):
    (path / name).unlink()
    (problem,) = check(path)
    assert problem.startswith(f"{path / name}: is missing")


def test_each_damaged_byte_of_an_export_is_found(path: Path, two_epochs):
    for at in range(len(b"map 3")):
        flip(path / "map.mrc", at)
        (problem,) = check(path)
        assert "map.mrc: is not what epoch 2 wrote" in problem
        flip(path / "map.mrc", at)
    assert check(path) == []


def test_readers_take_the_newest_verdict_wherever_it_is(path: Path, two_epochs):
    newest = read_verdict(path)
    assert newest["reason"] == "number 3"
    for content in (two_epochs["verdict.json"], b"", b"{}", None):
        (path / "verdict.json").unlink()
        if content is not None:
            (path / "verdict.json").write_bytes(content)
        assert read_verdict(path) == newest
        (path / "verdict.json").write_bytes(b"")


def test_a_status_of_an_older_epoch_is_none(path: Path, two_epochs):
    assert read_status(path)["epoch"] == 2
    (path / "status.json").write_bytes(two_epochs["status.json"])
    assert read_status(path) is None


def test_a_writer_that_died_before_its_first_verdict_is_to_be_requeued(path: Path, monkeypatch):
    with create(path) as project:
        project.verdict("done", "the first")
    monkeypatch.setattr(Project, "verdict", lambda *_: None)
    die(Project.open(path, writer=True))
    assert read_verdict(path)["verdict"] == "requeue"
    assert read_verdict(path)["epoch"] == 2
    assert check(path) == []


@pytest.mark.parametrize("again", [False, True])
def test_an_export_that_fails_at_its_rename_leaves_a_sound_project(path: Path, monkeypatch, again):
    with create(path) as project:
        with project.export("map.mrc") as temporary:
            temporary.write_bytes(b"first")

        def failing(*_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(Path, "replace", failing)
        with pytest.raises(StoreError, match=r"map\.mrc"), project.export("map.mrc") as temporary:
            temporary.write_bytes(b"second")
        monkeypatch.undo()
        if again:
            with project.export("map.mrc") as temporary:
                temporary.write_bytes(b"third")
        project.verdict("failed", "no disk")
    assert (path / "map.mrc").read_bytes() == (b"third" if again else b"first")
    assert check(path) == []
    flip(path / "map.mrc", 0)
    assert len(check(path)) == 1


def test_a_project_h5_that_could_not_be_replaced_is_made_at_the_end(path: Path, monkeypatch):
    with create(path) as project:
        replace = durable.replace

        def failing(temporary, final, **words):
            if final.name == schema.PROJECT:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            replace(temporary, final, **words)

        monkeypatch.setattr(durable, "replace", failing)
        project.commit(1, {"x": X}, {})
        monkeypatch.undo()
        project.verdict("done", "")
    assert check(path) == []
