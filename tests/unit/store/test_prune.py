"""Commits that are given up: their space is free, and nothing else is touched, whatever happens."""

from __future__ import annotations

import os
import subprocess

import h5py
import numpy as np
import pytest

from mpipar.errors import CorruptStoreError, ProjectLockedError, StoreError
from mpipar.store import Project, check, durable, repair
from mpipar.store.snapshot import snapshot
from tests.stranger import reader
from tests.support import dying
from tests.unit.store.projects import create, die

X = np.arange(5000.0)


def filled(path, count=6):
    with create(path) as project:
        for number in range(count):
            project.commit(number, {"x": X + number}, {"n": number})


def numbers(path):
    found = [info.number for info in Project.open(path, writer=False).commits()]
    assert [commit.number for commit in reader.read_project(path).commits] == found
    return found


def segments(path):
    return sorted(int(p.name[7:11]) for p in (path / "segments").iterdir())


def orphans(path):
    return [p.name for p in (path / "orphans").iterdir()] if (path / "orphans").exists() else []


def assert_sound(path, expected):
    assert numbers(path) == expected
    assert check(path) == []
    project = Project.open(path, writer=False)
    for info in project.commits():
        assert np.array_equal(project.load(info).arrays["x"], X + info.number)
    with h5py.File(path / "project.h5") as file:
        assert sorted(map(int, file["commits"])) == expected


def test_pruned_commits_are_gone_and_the_others_are_as_before(path):
    filled(path)
    with Project.open(path, writer=True) as project:
        gone = project.prune({0, 1, 3, 5, 77})
        assert [info.number for info in gone] == [1, 3], "the first and the latest stay"
        assert project.prune({1, 3}) == []
        project.commit(6, {"x": X + 6}, {})
    assert_sound(path, [0, 2, 4, 5, 6])
    assert segments(path) == [0, 2, 4, 5, 6]
    with Project.open(path, writer=True) as project:
        assert [info.number for info in project.prune(range(100))] == [2, 4, 5]
    assert_sound(path, [0, 6])
    assert orphans(path) == []


def test_what_a_reader_holds_open_it_reads_on_and_later_it_is_told(path):
    filled(path)
    looking = Project.open(path, writer=False)
    infos = looking.commits()
    with (
        h5py.File(path / "segments" / infos[2].segment, "r", locking=False) as file,
        snapshot(path) as files,
        Project.open(path, writer=True) as project,
    ):
        project.prune({2})
        assert np.array_equal(file["x"][...], X + 2)
        (held,) = (f for f in files if f.name.endswith(infos[2].segment))
        assert sum(map(len, held.pieces())) == infos[2].size
    with pytest.raises(StoreError, match="commit 2 was pruned"):
        looking.load(infos[2])
    assert np.array_equal(looking.load(infos[3]).arrays["x"], X + 3)


CALLS = [
    *((durable, name) for name in ("sync_folder", "discard", "move")),
    (os, "fsync"),
    (os, "fdatasync"),
]


def test_killed_at_any_moment_it_is_pruned_or_not(path):
    filled(path)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    seen = set()
    for number in range(1, 60):
        code = dying.run_to_call(
            number,
            CALLS,
            lambda project: project.prune({1, 2, 3}),
            lambda: (Project.open(path, writer=True),),
        )
        found = numbers(path)
        assert found in ([0, 1, 2, 3, 4, 5], [0, 4, 5])
        problems = [line for line in check(path) if "verdict" not in line]
        assert problems == []
        with Project.open(path, writer=True):
            pass
        assert_sound(path, found)
        assert segments(path) == found, "what was left is removed by the next writer"
        assert orphans(path) == []
        seen.add(len(found))
        subprocess.run(["rm", "-r", path], check=True)
        for file, data in before.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        if code == 0:
            break
    assert code == 0
    assert seen == {3, 6}


def test_a_writer_that_was_passed_over_removes_nothing(path, monkeypatch):
    filled(path)
    project = Project.open(path, writer=True)
    append = project._writer.journal.append
    others = []

    def passed_over(records):
        die(project)  # its lock and heart-beat; it itself goes on
        others.append(Project.open(path, writer=True))
        monkeypatch.undo()
        project._writer.journal._fd = os.open(
            project._writer.journal.path, os.O_WRONLY | os.O_APPEND
        )
        append(records)

    monkeypatch.setattr(project._writer.journal, "append", passed_over)
    with pytest.raises(ProjectLockedError, match="passed over"):
        project.prune({1, 2, 3})
    assert segments(path) == [0, 1, 2, 3, 4, 5]
    assert numbers(path) == [0, 1, 2, 3, 4, 5], "what it has added does not count"
    others[0].close()
    assert_sound(path, [0, 1, 2, 3, 4, 5])


def test_an_older_project_h5_is_no_damage(path):
    filled(path)
    older = (path / "project.h5").read_bytes()
    project = Project.open(path, writer=True)
    project.prune({1, 2})
    die(project)
    (path / "project.h5").write_bytes(older)  # as if the rename had not been durable
    assert check(path) == []
    Project.open(path, writer=True).close()
    assert_sound(path, [0, 3, 4, 5])


def test_a_missing_segment_is_damage_if_it_was_not_pruned(path):
    filled(path)
    with Project.open(path, writer=True) as project:
        project.prune({1})
        info = project.commits()[1]
    (path / "segments" / info.segment).unlink()
    with pytest.raises(CorruptStoreError, match="is missing"):
        Project.open(path, writer=False).load(info)
    assert len(check(path)) == 1


def test_repair_does_not_bring_pruned_commits_back(path):
    filled(path)
    with Project.open(path, writer=True) as project:
        project.prune({1, 2})
        project.commit(9, {"x": X + 9}, {})
    journal = path / "journal" / "000001.log"
    data = bytearray(journal.read_bytes())
    data[-300] ^= 1
    journal.write_bytes(data)
    assert check(path)
    assert "0, 3, 4, 5, 9" in repair(path, lambda text: None)
    assert_sound(path, [0, 3, 4, 5, 9])
