"""Repair: what can still be read of a damaged project becomes its next epoch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpipar.errors import CorruptStoreError
from mpipar.store import Project, check, repair, salvage, unlock
from tests.unit.store.projects import DAMAGES, SETTINGS, X, create, flip

if TYPE_CHECKING:
    from pathlib import Path

ATTRIBUTES = {"n": 3, "x": 0.5, "on": True, "text": "c1", "list": [1, {"a": None}], "none": None}
LONG = {"history": [{"resolution": 9.5}] * 1000}


def refined(path: Path) -> None:
    with create(path) as project:
        for number in range(3):
            project.append("result", b"%d" % number)
            project.commit(number, {"x": X + number}, {**ATTRIBUTES, **LONG, "number": number})


def is_whole(path: Path, numbers: list[int]) -> None:
    assert check(path) == []
    with Project.open(path, writer=True) as project:
        assert project.settings == SETTINGS
        assert [info.number for info in project.commits()] == numbers
        for info in project.commits():
            found = project.load(info)
            assert np.array_equal(found.arrays["x"], X + info.number)
            assert found.attributes == {**ATTRIBUTES, **LONG, "number": info.number}
        project.commit(9, {"x": X + 9}, {})
    assert check(path) == []


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_all_commits_come_back_whatever_a_journal_has_lost(path: Path, damage):
    refined(path)
    damage(path / "journal" / "000001.log")
    assert check(path) != []
    with pytest.raises(CorruptStoreError, match="would bring back the commits 0, 1, 2, and"):
        Project.open(path, writer=True)
    assert [info.number for info in salvage(path).commits] == [0, 1, 2]
    assert "the commits 0, 1, 2" in repair(path, print)
    is_whole(path, [0, 1, 2])


def test_a_flipped_header_costs_no_record(path: Path):
    refined(path)
    flip(path / "journal" / "000001.log", 13)
    repair(path, print)
    found = Project.open(path, writer=False).records("result", every=True)
    assert found == [b"0", b"1", b"2"]


def test_a_flipped_record_costs_this_record_alone(path: Path):
    with create(path, lease=1000) as project:
        for number in range(5):
            project.append("try", b"no %d" % number)
    journal = path / "journal" / "000001.log"
    flip(journal, journal.read_bytes().index(b"no 2"))
    repair(path, print)
    found = Project.open(path, writer=False).records("try", every=True)
    assert found == [b"no 0", b"no 1", b"no 3", b"no 4"]
    assert check(path) == []


def test_segments_alone_bring_the_states_back(path: Path):
    refined(path)
    for name in ("journal/000001.log", "project.h5", "epoch/000001.released"):
        (path / name).unlink()
    unlock(path, force=True)
    repair(path, print)
    is_whole(path, [0, 1, 2])


def test_a_commit_whose_segment_is_damaged_is_left_out(path: Path):
    refined(path)
    (segment,) = (path / "segments").glob("commit-0002*")
    flip(segment, 5000)
    assert "sha256" in check(path)[0]
    repair(path, print)
    is_whole(path, [0, 1])
    assert (path / "orphans" / segment.name).exists()


def test_what_an_older_epoch_added_after_its_pin_does_not_come_back(path: Path):
    refined(path)
    journal = path / "journal" / "000001.log"
    with Project.open(path, writer=True) as project:
        project.append("result", b"3")
    late = bytes(journal.read_bytes()[32:])
    with journal.open("ab") as file:
        file.write(late)
    newest = path / "journal" / "000002.log"
    os.truncate(newest, newest.stat().st_size - 1)
    repair(path, print)
    found = Project.open(path, writer=False).records("result", every=True)
    assert found == [b"0", b"1", b"2"]
    is_whole(path, [0, 1, 2])


def test_a_sound_project_is_repaired_to_what_it_was(path: Path):
    refined(path)
    repair(path, print)
    is_whole(path, [0, 1, 2])
