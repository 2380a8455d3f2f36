"""Full disks, interrupts and damage: a commit fails whole, and what is wrong is said."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpipar.errors import CorruptStoreError, DiskFullError, OutputError, StoreError
from mpipar.store import Project, check, durable
from tests.unit.store.projects import X, create


@pytest.mark.parametrize("call", ["write", "pwrite", "fsync", "fdatasync", "link"])
def test_a_commit_on_a_full_disk_fails_whole(project, monkeypatch, call):
    project.commit(1, {"x": X}, {})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFullError, match=r"refine_01.*bytes were needed"):
        project.commit(2, {"x": X}, {})
    monkeypatch.undo()
    assert np.array_equal(project.latest().arrays["x"], X)
    assert [i.number for i in Project.open(project.path, writer=False).commits()] == [1]
    if call != "fdatasync":  # then the journal could not be brought back in order: reopen
        project.commit(2, {"x": X * 2}, {})
        assert [p.name for p in sorted((project.path / "segments").iterdir())] == [
            info.segment for info in project.commits()
        ]
        assert np.array_equal(project.latest().arrays["x"], X * 2)
    assert check(project.path) == []


def test_a_project_is_given_up_even_on_a_full_disk(path, monkeypatch):
    project = create(path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    project.close()
    monkeypatch.undo()
    Project.open(path, writer=True).close()


def test_a_project_h5_that_cannot_be_renamed_does_not_undo_the_commit(project, monkeypatch, caplog):
    def refused(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(Path, "replace", refused)
    project.commit(1, {"x": X}, {})
    monkeypatch.undo()
    assert "until the next commit" in caplog.text
    assert Project.open(project.path, writer=False).latest().number == 1
    assert check(project.path) == []


def test_an_interrupt_anywhere_in_a_commit_leaves_a_usable_project(project, monkeypatch):
    for number, (module, call) in enumerate(
        [(os, "pwrite"), (os, "link"), (os, "write"), (os, "fdatasync"), (Path, "replace")]
    ):
        interrupt_once(monkeypatch, module, call)
        with pytest.raises(KeyboardInterrupt):
            project.commit(number, {"x": X}, {})
        monkeypatch.undo()
        if not project.commits() or project.commits()[-1].number < number:
            project.commit(number, {"x": X}, {})
        assert [info.number for info in project.commits()] == [*range(number + 1)]
        assert check(project.path) == []


def interrupt_once(monkeypatch: pytest.MonkeyPatch, module: Any, call: str) -> None:
    act = getattr(module, call)

    def interrupted(*arguments, **words):
        monkeypatch.setattr(module, call, act)
        act(*arguments, **words)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, call, interrupted)


def test_check_finds_each_kind_of_damage(path):
    with create(path) as project:
        project.commit(1, {"x": X}, {})
        project.commit(2, {"x": X}, {})
    Project.open(path, writer=True).close()
    segment = path / "segments" / project.commits()[0].segment
    for file, word in (
        (segment, "sha256"),
        (path / "project.h5", "project.h5"),
        (path / "journal" / "000001.log", "000001.log"),
        (path / "epoch" / "000001.claim", "000001.claim"),
    ):
        whole = file.read_bytes()
        for damage in (damaged(whole), whole[: len(whole) // 2]):
            file.write_bytes(damage)
            problems = check(path)
            assert len(problems) == 1, (file, problems)
            assert word in problems[0]
        file.write_bytes(whole)
        assert check(path) == []
    (path / "project.h5").unlink()
    assert "missing" in check(path)[0]
    segment.unlink()
    assert "commit 1 needs it" in check(path)[0]


def damaged(data: bytes) -> bytes:
    return data[:10] + bytes(b ^ 255 for b in data[10:])


def test_a_damaged_history_is_not_taken_for_a_torn_tail(path):
    with create(path) as project:
        project.commit(1, {"x": X}, {})
        project.commit(2, {"x": X}, {})
    journal = path / "journal" / "000001.log"
    data = bytearray(journal.read_bytes())
    data[data.index(b'"number":1')] ^= 1
    journal.write_bytes(data)
    for writer in (True, False):
        with pytest.raises(CorruptStoreError, match=r"000001\.log"):
            Project.open(path, writer=writer).latest()


def test_a_segment_of_another_size_is_said_so(project):
    project.commit(1, {"x": X}, {})
    segment = project.path / "segments" / project.commits()[0].segment
    with segment.open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptStoreError, match="its journal record says"):
        project.latest()


def test_each_byte_of_a_segment_is_verified_before_it_is_read(path):
    """Also those that HDF5 does not look at, and those outside of its checksums."""
    with create(path) as project:
        project.commit(1, {"x": X}, {"a": 1})
    segment = path / "segments" / project.commits()[0].segment
    whole = segment.read_bytes()
    for at in range(0, len(whole), 101):
        segment.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for writer in (False, True):
            with (
                Project.open(path, writer=writer) as found,
                pytest.raises(CorruptStoreError, match="sha256"),
            ):
                found.latest()
    segment.write_bytes(whole)
    assert np.array_equal(Project.open(path, writer=False).latest().arrays["x"], X)
    segment.unlink()
    with pytest.raises(CorruptStoreError, match="is missing; commit 1 needs it"):
        Project.open(path, writer=False).latest()


def test_no_flip_in_project_h5_passes_unseen(path):
    with create(path) as project:
        project.commit(1, {"x": X}, {})
    index = path / "project.h5"
    whole = index.read_bytes()
    for at in (*range(0, len(whole) - 40, 23), *range(len(whole) - 40, len(whole))):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        problems = check(path)
        assert problems != [], at
    index.write_bytes(whole)
    assert check(path) == []


@pytest.mark.parametrize("again", [False, True])
def test_a_claim_whose_folder_is_not_synced_locks_nobody_out(path, monkeypatch, again):
    if again:
        create(path).close()

    def failing(folder):
        if folder.name == "epoch":
            monkeypatch.undo()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(durable, "sync_folder", failing)
    if again:
        with pytest.raises(StoreError, match=os.strerror(errno.EIO)):
            Project.open(path, writer=True)
        Project.open(path, writer=True).close()
        assert check(path) == []
    else:
        with pytest.raises(OutputError, match=os.strerror(errno.EIO)):
            create(path)
        assert not path.exists()
