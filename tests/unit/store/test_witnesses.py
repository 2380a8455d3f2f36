"""A journal that holds less than it did: every writer refuses, check says it, nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mpipar.errors import CorruptStoreError, DiskFullError
from mpipar.store import Project, check, epoch, evidence, salvage, schema
from tests.unit.store.projects import DAMAGES, X, create, die, flip


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def is_refused_and_kept(path: Path) -> None:
    before = files(path)
    assert check(path) != []
    with pytest.raises(CorruptStoreError, match="journal"):
        Project.open(path, writer=True)
    assert files(path) == before


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("commits", [0, 1, 3])
def test_what_a_closed_journal_has_lost_is_missed_by_everyone(path: Path, damage, commits: int):
    with create(path) as project:
        for number in range(commits):
            project.commit(number, {"x": X}, {})
        project.append("result", b"1")
    damage(path / "journal" / "000001.log")
    is_refused_and_kept(path)
    with pytest.raises(CorruptStoreError, match=r"000001\.log"):
        Project.open(path, writer=False).records("result")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_commit_that_project_h5_lists_is_missed_after_a_kill(path: Path, damage):
    """There is no release mark then."""
    project = create(path)
    project.commit(1, {"x": X}, {})
    die(project)
    damage(path / "journal" / "000001.log")
    is_refused_and_kept(path)


def test_a_journal_that_was_begun_is_missed_though_nothing_was_committed(path: Path):
    project = create(path)
    project.append("result", b"1")
    die(project)
    (path / "journal" / "000001.log").unlink()
    is_refused_and_kept(path)


@pytest.mark.parametrize("index", [Path.unlink, lambda file: file.write_bytes(b"torn")])
def test_sealed_segments_tell_of_commits_when_project_h5_is_lost_too(path: Path, index):
    project = create(path)
    for number in (1, 2):
        project.commit(number, {"x": X}, {})
    die(project)
    index(path / "project.h5")
    (path / "journal" / "000001.log").unlink()
    is_refused_and_kept(path)


def test_a_torn_tail_after_a_kill_is_harmless(path: Path):
    project = create(path)
    project.commit(1, {"x": X}, {})
    project.append("result", b"1")
    die(project)
    log = path / "journal" / "000001.log"
    os.truncate(log, log.stat().st_size - 1)
    with log.open("ab") as file:
        file.write(bytes(5))
    assert check(path) == []
    with Project.open(path, writer=True) as project:
        assert [info.number for info in project.commits()] == [1]


def test_a_segment_without_a_record_is_set_aside_not_removed(path: Path):
    """A writer that was killed between segment and record leaves one."""
    project = create(path)
    project.commit(1, {"x": X}, {})
    die(project)
    segment = path / "segments" / "commit-0002.e000001-0002.h5"
    segment.write_bytes(b"whole")
    Project.open(path, writer=True).close()
    assert not segment.exists()
    assert (path / "orphans" / segment.name).read_bytes() == b"whole"
    assert check(path) == []


def test_failed_commits_and_then_a_kill_are_no_damage(path: Path, monkeypatch):
    project = create(path)
    project.commit(1, {"x": X}, {})

    def failing(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", failing)
    for _ in range(3):
        with pytest.raises(DiskFullError):
            project.commit(2, {"x": X}, {})
    monkeypatch.undo()
    die(project)
    (path / "segments" / "commit-0002.e000001-0005.h5").write_bytes(b"cut off")
    with Project.open(path, writer=True) as project:
        assert [info.number for info in project.commits()] == [1]


def test_the_journal_of_another_run_is_damage(tmp_path: Path):
    for name in ("a", "b"):
        with create(tmp_path / name) as project:
            project.commit(1, {"x": X}, {})
    log = Path("journal", "000001.log")
    (tmp_path / "a" / log).write_bytes((tmp_path / "b" / log).read_bytes())
    (tmp_path / "a" / "epoch" / "000001.released").unlink()
    with pytest.raises(CorruptStoreError, match="is not the journal of this epoch's claim"):
        Project.open(tmp_path / "a", writer=False).commits()
    assert "is not the journal" in check(tmp_path / "a")[0]


def test_each_flipped_byte_of_a_small_file_is_found(path: Path):
    with create(path) as project:
        project.commit(1, {"x": X}, {})
    for name in ("epoch/000001.claim", "epoch/000001.released", "status.json", "verdict.json"):
        file = path / name
        whole = file.read_bytes()
        for at in range(len(whole)):
            flip(file, at)
            harmless = b'"crc32":' not in file.read_bytes()  # the content is as it was
            assert check(path) != [] or harmless, (name, at, file.read_bytes())
            file.write_bytes(whole)


def test_claims_and_marks_of_the_first_version_are_read(path: Path):
    """They have no checksum, and a mark is a second name for the claim."""
    with create(path) as project:
        project.commit(1, {"x": X}, {})
    claim, mark = path / "epoch" / "000001.claim", path / "epoch" / "000001.released"
    value = schema.decode_signed(claim.read_bytes())
    claim.write_bytes(schema.encode(value))
    mark.unlink()
    mark.hardlink_to(claim)
    assert epoch.read_claim(path, 1) is not None
    assert check(path) == []
    with Project.open(path, writer=True) as project:
        assert np.array_equal(project.latest().arrays["x"], X)
    assert check(path) == []


def test_a_lost_or_damaged_claim_costs_nothing(path: Path):
    for number in (1, 2):
        with create(path) if number == 1 else Project.open(path, writer=True) as project:
            project.append("result", b"%d" % number)
    for damage in (Path.unlink, lambda claim: os.truncate(claim, 10)):
        for name in ("000002.claim", "000001.claim"):
            claim = path / "epoch" / name
            whole = claim.read_bytes()
            damage(claim)
            assert name in check(path)[0]
            assert Project.open(path, writer=False).records("result") == [b"1", b"2"]
            claim.write_bytes(whole)
    for claim in path.glob("epoch/*.claim"):
        claim.unlink()
    with Project.open(path, writer=True) as project:
        assert project.records("result") == [b"1", b"2"]
        assert project.kind == "refine"
    assert epoch.epochs(path) == [3]


def test_a_journal_of_another_run_in_a_later_epoch_is_refused_by_name(tmp_path: Path):
    for name in ("a", "b"):
        with create(tmp_path / name) as project:
            project.append("result", name.encode())
    stray = tmp_path / "a" / "journal" / "000007.log"
    stray.write_bytes((tmp_path / "b" / "journal" / "000001.log").read_bytes())
    with pytest.raises(
        CorruptStoreError, match=r"000007\.log: is the journal of another run; move"
    ):
        Project.open(tmp_path / "a", writer=False).commits()
    assert "journal of another run" in "".join(check(tmp_path / "a"))
    kept = salvage(tmp_path / "a").records
    assert [r for r in kept if r[0] == "result"] == [("result", b"a")]
    stray.unlink()
    assert check(tmp_path / "a") == []


def test_a_mark_that_this_process_has_lost_does_not_lock_it_out(path: Path):
    create(path).close()
    (path / "epoch" / "000001.released").unlink()
    Project.open(path, writer=True).close()
    assert epoch.epochs(path) == [1, 2]


def test_what_a_kill_has_cut_off_is_said_and_stays(path: Path):
    project = create(path)
    project.append("result", b"1", b"2" * 100)
    die(project)
    log = path / "journal" / "000001.log"
    os.truncate(log, log.stat().st_size - 10)
    kept = log.read_bytes()
    said: list[str] = []
    with Project.open(path, writer=True, say=said.append) as project:
        assert project.records("result") == [b"1"]
    (line,) = said
    assert line.startswith(f"{log}: ends in ")
    assert log.read_bytes() == kept


@pytest.mark.parametrize("name", schema.FOLDERS)
def test_a_folder_that_is_lost_is_made_again(path: Path, name: str, monkeypatch):
    monkeypatch.setattr(evidence, "LEASE", 0.01)  # of a claim that is lost, too
    with create(path) as project:
        project.append("result", b"1")
    shutil.rmtree(path / name)
    if name == "journal":
        is_refused_and_kept(path)
        return
    with Project.open(path, writer=True) as project:
        assert project.records("result") == [b"1"]
        project.commit(1, {"x": X}, {})
    assert Project.open(path, writer=False).latest() is not None
