"""The folder: made whole or not at all, and each run its own."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from mpipar.errors import DiskFullError, MpiparError, OutputError
from mpipar.store import Project, next_free
from mpipar.store.folder import remove_leftovers, require_free


def create(path: Path) -> Project:
    return Project.create(path, settings={"a": 1}, kind="test")


def test_the_next_free_number_is_above_all_others(tmp_path):
    assert next_free(tmp_path, "refine").name == "refine_01"
    for name in ("refine_07", "refine_x", "refine_100x", "sample_50", "xrefine_80"):
        (tmp_path / name).mkdir()
    (tmp_path / "refine_12").touch()
    assert next_free(tmp_path, "refine") == tmp_path / "refine_13"
    assert (tmp_path / "refine_13").is_dir()
    (tmp_path / "refine_99").mkdir()
    assert next_free(tmp_path, "refine").name == "refine_100"


def test_runs_that_start_together_get_different_folders(tmp_path):
    found: list[Path] = []
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        found.extend(next_free(tmp_path, "refine") for _ in range(5))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 40


def test_a_folder_that_cannot_be_made_is_said_with_its_reason(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/refine_01: cannot be made: Not a directory"):
        create(tmp_path / "file" / "refine_01")
    with pytest.raises(OutputError, match="no output folder can be made there"):
        next_free(tmp_path / "missing", "refine")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_missing_parents_are_made(tmp_path):
    create(tmp_path / "a" / "b" / "run").close()
    assert (tmp_path / "a" / "b" / "run" / "project.h5").exists()


def test_a_folder_that_is_there_but_empty_is_used(tmp_path):
    create(tmp_path).close()
    assert (tmp_path / "project.h5").exists()


def test_what_a_creation_would_refuse_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    create(tmp_path / "run").close()
    before = sorted(tmp_path.rglob("*"))
    for name, message in (
        ("file", "exists and is not a folder"),
        ("run", "exists and is not empty"),
        ("file/run", "cannot be made: .*file is not a folder|Not a directory"),
        ("x" * 300, "File name too long"),
    ):
        for make in (require_free, create):
            with pytest.raises(OutputError, match=f"{name}: .*({message})"):
                make(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    for name in ("new", "a/b/new"):
        require_free(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    require_free(Path("new"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="new: no files can be made in"):
        require_free(tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_free_folder_is_used_once(tmp_path):
    path = next_free(tmp_path, "refine")
    create(path).close()
    with pytest.raises(OutputError, match="not empty"):
        create(path)


@pytest.mark.parametrize("call", ["fsync", "write", "pwrite", "link", "fdatasync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_creation_that_fails_leaves_nothing(tmp_path, monkeypatch, call, code):
    reserved = next_free(tmp_path, "refine")
    own = tmp_path / "own"
    own.mkdir()

    def failing(*_):
        raise OSError(code, os.strerror(code))

    for path in (reserved, own, tmp_path / "a" / "b"):
        monkeypatch.setattr(os, call, failing)
        with pytest.raises(MpiparError, match=os.strerror(code)) as failure:
            create(path)
        monkeypatch.undo()
        expected = DiskFullError if code == errno.ENOSPC else OutputError
        assert isinstance(failure.value, expected)
        assert str(path) in str(failure.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["own"], "what the user made stays"
    assert [t.name for t in threading.enumerate() if "mpipar" in t.name] == []
    open_files = [str(f.readlink()) for f in Path("/proc/self/fd").iterdir() if f.is_symlink()]
    assert not any(str(tmp_path) in file for file in open_files)


def test_of_two_creations_in_one_folder_one_wins(tmp_path):
    won: list[Project] = []
    lost: list[OutputError] = []
    barrier = threading.Barrier(4)

    def start():
        barrier.wait()
        try:
            won.append(create(tmp_path / "run"))
        except OutputError as error:
            lost.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 3
    won[0].commit(1, {}, {})
    won[0].close()
    assert [info.number for info in Project.open(tmp_path / "run", writer=False).commits()] == [1]


def test_an_interrupted_creation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fdatasync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_may_not_be_made_is_said_with_its_reason(tmp_path, monkeypatch, code):
    def failing(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", failing)
    for act in (create, lambda path: next_free(path.parent, "run")):
        with pytest.raises(MpiparError, match=os.strerror(code)) as failure:
            act(tmp_path / "run")
        assert str(tmp_path) in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_sweeping_spares_ones_own_and_later_epochs_and_what_is_counted(tmp_path):
    create(tmp_path / "run").close()
    path = tmp_path / "run"
    files = {
        f"{folder}.tmp-{owner:06d}-x": owner >= 5
        for folder in ("", "segments/", "journal/", "epoch/")
        for owner in (4, 5, 6)
    }
    files |= {f"segments/commit-0001.e{owner:06d}-0001.h5": owner >= 5 for owner in (4, 5, 6)}
    files |= {"segments/commit-0001.e000003-0001.h5": True, "segments/x": True, "x": True}
    for name in files:
        (path / name).touch()
    remove_leftovers(path, 5, {"commit-0001.e000003-0001.h5"}, set())
    assert {name: (path / name).exists() for name in files} == files
