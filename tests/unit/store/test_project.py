"""A project as a program uses it: create, commit, read back, resume, refuse, fail whole."""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpipar.errors import (
    CorruptStoreError,
    DiskFullError,
    MissingInputError,
    OutputError,
    ProjectLockedError,
    StoreError,
)
from mpipar.store import (
    Project,
    check,
    epoch,
    evidence,
    read_status,
    read_verdict,
    schema,
    unlock,
)
from mpipar.store.journal import JournalWriter

SETTINGS = {"sym": "c1", "iterations": 3, "mask": None}
X = np.arange(12.0).reshape(3, 4)


def create(path: Path, **words: Any) -> Project:
    return Project.create(path, settings=SETTINGS, kind="refine", **words)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "refine_01"


@pytest.fixture
def project(path: Path):
    with create(path) as project:
        yield project


def tree(path: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in path.rglob("*")}


def die(project: Project) -> None:
    """End as a killed process does: nothing is released, and the claim names a process now gone."""
    writer = project._writer
    writer.heartbeat.stop()
    writer.journal.close()
    writer.ownership.drop_lock()
    claim = replace(writer.claim, process_start="1")
    epoch.claim_path(project.path, claim.epoch).write_bytes(schema.encode(epoch.asdict(claim)))


def test_a_new_project_has_settings_and_no_commit(path):
    with create(path) as project:
        assert project.settings == SETTINGS
        assert project.latest() is None
        assert project.commits() == []
    reader = Project.open(path, writer=False)
    assert (reader.settings, reader.kind, reader.latest()) == (SETTINGS, "refine", None)
    assert check(path) == []


def test_a_commit_is_read_back(project):
    project.commit(1, {"x": X, "empty": X[:0]}, {"resolution": 12.5, "shells": [1, 2]})
    latest = project.latest()
    assert latest.number == 1
    assert latest.attributes == {"resolution": 12.5, "shells": [1, 2]}
    assert np.array_equal(latest.arrays["x"], X)
    assert latest.arrays["empty"].shape == (0, 4)
    assert check(project.path) == []


def test_numpy_numbers_and_nan_are_attributes_too(project):
    project.commit(1, {}, {"n": np.int64(3), "x": np.float32(0.5), "nan": float("nan")})
    found = project.latest().attributes
    assert (found["n"], found["x"], np.isnan(found["nan"])) == (3, 0.5, True)


@pytest.mark.parametrize("attributes", [{"a": np.zeros(2)}, {"a": {1: 2}}, {1: 2}, {"a": b""}])
def test_other_attributes_are_refused_before_anything_is_written(project, attributes):
    before = tree(project.path / "segments")
    with pytest.raises(StoreError, match="attributes of commit 1"):
        project.commit(1, {"x": X}, attributes)
    assert tree(project.path / "segments") == before


def test_numbers_of_commits_grow(project):
    project.commit(3, {}, {})
    for number in (3, 2, -1):
        with pytest.raises(StoreError, match="numbers must grow"):
            project.commit(number, {}, {})
    project.commit(7, {}, {})
    assert [info.number for info in project.commits()] == [3, 7]


def test_older_commits_stay(project):
    for number in (1, 2, 3):
        project.commit(number, {"x": X * number}, {})
    for info in project.commits():
        assert np.array_equal(project.load(info).arrays["x"], X * info.number)


def test_any_hdf5_viewer_finds_the_commits_from_project_h5(project):
    project.commit(1, {"x": X}, {"resolution": 9.0})
    project.commit(2, {"x": X * 2}, {})
    with h5py.File(project.path / "project.h5") as file:
        assert file.attrs["kind"] == "refine"
        assert schema.decode(file.attrs["settings"].encode()) == SETTINGS
        assert file.attrs["latest"] == 2
        assert np.array_equal(file["commits/0001/x"][:], X)
        assert file["commits/0001"].attrs["resolution"] == 9.0
        assert np.array_equal(file["latest/x"][:], X * 2)
        assert file["journal"]["number"].tolist() == [1, 2]


def test_results_are_kept_between_commits(project):
    project.append("a", b"1", b"2")
    project.append("b", b"3")
    assert project.records("a") == [b"1", b"2"]
    project.commit(1, {}, {})
    project.append("a", b"4")
    assert project.records("a") == [b"4"]
    assert project.records("a", every=True) == [b"1", b"2", b"4"]
    assert project.records("b") == []


def test_kinds_of_the_store_itself_are_refused(project):
    with pytest.raises(StoreError, match="@commit"):
        project.append("@commit", b"{}")


def test_a_run_goes_on_where_the_last_one_was(path):
    with create(path) as project:
        project.commit(1, {"x": X}, {"a": 1})
        project.append("result", b"1")
    with Project.open(path, writer=True) as project:
        assert project.settings == SETTINGS
        assert np.array_equal(project.latest().arrays["x"], X)
        assert project.records("result") == [b"1"]
        project.append("result", b"2")
        project.commit(2, {"x": X * 2}, {"a": 2})
    with Project.open(path, writer=True) as project:
        assert [(i.number, i.epoch) for i in project.commits()] == [(1, 1), (2, 2)]
        assert project.records("result", every=True) == [b"1", b"2"]
    assert check(path) == []


def test_a_dead_run_without_a_commit_is_resumed(path):
    die(create(path))
    with Project.open(path, writer=True) as project:
        assert (project.latest(), project.settings) == (None, SETTINGS)


def test_a_dead_run_that_left_only_its_claim_is_resumed(path):
    die(create(path))
    (path / "journal" / "000001.log").unlink()
    (path / "project.h5").unlink()
    reader = Project.open(path, writer=False)
    assert (reader.latest(), reader.settings) == (None, SETTINGS)
    with Project.open(path, writer=True) as project:
        assert (project.latest(), project.settings) == (None, SETTINGS)
        project.commit(1, {"x": X}, {})
    assert check(path) == []


def test_what_the_dead_left_unfinished_is_cleared(path):
    project = create(path)
    project.commit(1, {"x": X}, {})
    die(project)
    left = [
        path / ".tmp-000001-map.mrc",
        path / "segments" / ".tmp-000001-commit-0002.e000001-0002.h5",
        path / "segments" / "commit-0002.e000001-0002.h5",
    ]
    for file in left:
        file.write_bytes(b"left")
    kept = path / "segments" / "notes.txt"
    kept.touch()
    with Project.open(path, writer=True) as project:
        assert not any(file.exists() for file in left)
        assert kept.exists()
        assert np.array_equal(project.latest().arrays["x"], X)


def test_a_missing_or_stale_project_h5_is_made_anew(path):
    with create(path) as project:
        project.commit(1, {"x": X}, {})
        stale = (path / "project.h5").read_bytes()
        project.commit(2, {"x": X}, {})
    for content in (None, stale, b"torn"):
        (path / "project.h5").unlink()
        if content is not None:
            (path / "project.h5").write_bytes(content)
        Project.open(path, writer=True).close()
        with h5py.File(path / "project.h5") as file:
            assert file.attrs["latest"] == 2


# who may write


def test_a_second_writer_is_refused_with_the_holders_name(project):
    before = tree(project.path)
    with pytest.raises(ProjectLockedError) as refusal:
        Project.open(project.path, writer=True)
    text = str(refusal.value)
    claim = epoch.read_claim(project.path, 1)
    assert f"process {os.getpid()} on {claim.host}" in text
    assert claim.started in text
    assert f"mpipar unlock {project.path}" in text
    assert refusal.value.exit_code == 75
    assert tree(project.path) == before


def test_an_owner_elsewhere_that_beats_is_refused(path, monkeypatch):
    with create(path, lease=1.5):
        pretend_to_be_elsewhere(monkeypatch)
        said = []
        with pytest.raises(ProjectLockedError, match="heart-beat goes on"):
            Project.open(path, writer=True, say=said.append)
    assert len(said) == 1
    assert "watching its heart-beat for up to 4 s" in said[0]


def test_an_owner_elsewhere_that_no_longer_beats_is_passed_over(path, monkeypatch):
    die(create(path, lease=0.2))
    pretend_to_be_elsewhere(monkeypatch)
    begin = time.monotonic()
    with Project.open(path, writer=True) as project:
        assert time.monotonic() - begin > 0.6
        assert project.latest() is None


def pretend_to_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "boot_id", lambda: "another machine")


def test_a_restarted_job_need_not_wait(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    die(create(path))
    pretend_to_be_elsewhere(monkeypatch)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    said: list[str] = []
    with Project.open(path, writer=True, say=said.append) as project:
        assert project.latest() is None
    assert said == []


def test_an_owner_that_was_passed_over_stops_and_adds_nothing(path):
    zombie = create(path, lease=1000)
    zombie.commit(1, {"x": X}, {})
    unlock(path, force=True)
    with Project.open(path, writer=True) as project:
        before = tree(path)
        for write in (
            lambda: zombie.commit(2, {"x": X}, {}),
            lambda: zombie.append("result", b"1"),
            lambda: zombie.verdict("done", ""),
            lambda: zombie.status(a=1),
        ):
            with pytest.raises(ProjectLockedError, match="passed over by process"):
                write()
        with pytest.raises(ProjectLockedError), zombie.export("map.mrc") as temporary:
            temporary.write_bytes(b"old")
        assert tree(path).keys() == before.keys()
        assert all(tree(path)[f] == before[f] for f in before if "segments" in f or "journal" in f)
        assert not (path / "map.mrc").exists()
        assert read_verdict(path) is None
        project.commit(2, {"x": X * 2}, {})
    zombie.close()
    assert np.array_equal(Project.open(path, writer=False).latest().arrays["x"], X * 2)
    assert check(path) == []


def test_what_a_zombie_writes_past_all_checks_is_not_counted(path, monkeypatch):
    zombie = create(path, lease=1000)
    zombie.commit(1, {"x": X}, {})
    unlock(path, force=True)
    with Project.open(path, writer=True) as project:
        monkeypatch.setattr(epoch.Ownership, "verify", lambda _: None)
        zombie.append("result", b"late")
        zombie.commit(2, {"x": X * 9}, {})
        monkeypatch.undo()
        assert project.records("result", every=True) == []
        assert [info.number for info in project.commits()] == [1]
        project.commit(2, {"x": X * 2}, {})
        assert np.array_equal(project.latest().arrays["x"], X * 2)
    zombie.close()
    reader = Project.open(path, writer=False)
    assert np.array_equal(reader.latest().arrays["x"], X * 2)
    assert reader.records("result", every=True) == []
    assert check(path) == []


def test_a_zombie_between_claim_and_manifest_is_not_counted(path):
    """It comes back after a later epoch has its own manifest, and writes its own."""
    with create(path) as project:
        project.commit(1, {"x": X}, {})
    claim = evidence.this_process(2, project._identity)
    epoch.publish_claim(path, claim)
    unlock(path, force=True)
    with Project.open(path, writer=True) as project:
        assert project._writer.claim.epoch == 3
        late = JournalWriter(path / "journal" / "000002.log", 2, bytes.fromhex(claim.nonce))
        late.append([("@manifest", schema.manifest_to_json(claim.identity, ()))])
        late.close()
        assert [info.number for info in Project.open(path, writer=False).commits()] == [1]
        project.commit(2, {"x": X}, {})
    assert check(path) == []


@pytest.mark.parametrize(
    "write",
    [lambda p: p.commit(1, {"x": X}, {}), lambda p: p.append("result", b"1")],
    ids=["commit", "append"],
)
def test_a_write_that_lost_the_race_with_a_newcomer_is_not_acknowledged(path, monkeypatch, write):
    """The newcomer claims between the check before and the record: the check after tells."""
    project = create(path, lease=1000)
    append = JournalWriter.append

    def claimed_meanwhile(self, records):
        unlock(path, force=True)
        epoch.publish_claim(path, evidence.this_process(2, project._identity))
        append(self, records)

    monkeypatch.setattr(JournalWriter, "append", claimed_meanwhile)
    with pytest.raises(ProjectLockedError):
        write(project)
    monkeypatch.undo()
    project.close()
    assert list(path.glob(".tmp*")) == []
    # the newcomer may have accepted the record: what it names must be there
    assert Project.open(path, writer=False).records("result") in ([], [b"1"])
    assert check(path) == []


def test_a_closed_project_writes_nothing(project):
    project.close()
    project.close()
    for write in (
        lambda: project.commit(1, {}, {}),
        lambda: project.append("a", b""),
        project.status,
        lambda: project.verdict("done", ""),
    ):
        with pytest.raises(StoreError, match="not open for writing"):
            write()
    assert "heart-beat" not in " ".join(thread.name for thread in threading.enumerate())


# looking


def test_a_reader_writes_nothing_and_sees_each_commit(project):
    reader = Project.open(project.path, writer=False)
    project.commit(1, {"x": X}, {})
    before = tree(project.path)
    assert reader.latest().number == 1
    project.commit(2, {"x": X}, {})
    assert reader.latest().number == 1, (
        "what was read once does not change under the reader's hands"
    )
    reader.refresh()
    assert reader.latest().number == 2
    with pytest.raises(StoreError, match="not open for writing"):
        reader.commit(3, {}, {})
    reader.close()
    project.path.joinpath("epoch", "lock").stat()
    assert before.items() <= tree(project.path).items() | before.items()


def test_a_reader_leaves_no_trace(path):
    create(path).close()
    before = tree(path)
    reader = Project.open(path, writer=False)
    reader.latest()
    reader.records("a")
    check(path)
    assert tree(path) == before


def test_a_reader_sees_a_whole_state_at_every_moment(project):
    project.commit(0, {"x": np.full(1000, 0)}, {"n": 0})
    stop = threading.Event()
    seen: list[int] = []
    wrong: list[object] = []

    def look():
        while not stop.is_set():
            found = Project.open(project.path, writer=False).latest()
            values = set(found.arrays["x"].tolist())
            seen.append(found.number)
            if values != {found.number} or found.attributes != {"n": found.number}:
                wrong.append(found)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(1, 500):
        project.commit(number, {"x": np.full(1000, number)}, {"n": number})
        if number > 20 and len(set(seen)) > 5:
            break
    stop.set()
    thread.join()
    assert wrong == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


@pytest.mark.parametrize("make", [lambda _: None, Path.mkdir])
def test_a_folder_without_a_project_is_said_so(path, make):
    make(path)
    for writer in (True, False):
        with pytest.raises(MissingInputError, match=r"no such project|holds no project"):
            Project.open(path, writer=writer)
    with pytest.raises(MissingInputError):
        check(path)


def test_a_project_of_a_later_format_is_refused(path, monkeypatch):
    create(path).close()
    monkeypatch.setattr(schema, "FORMAT", 0)
    with pytest.raises(StoreError, match="update mpipar"):
        Project.open(path, writer=False)


# status, verdict, exports


def test_status_is_replaced_and_beats(path):
    with create(path, lease=0.15) as project:
        project.status(iteration=2, resolution=np.float64(8.5))
        first = read_status(path)
        assert (first["iteration"], first["resolution"], first["epoch"]) == (2, 8.5, 1)
        deadline = time.monotonic() + 20
        while read_status(path)["beat"] < first["beat"] + 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert read_status(path)["iteration"] == 2
        project.status(phase="end")
        assert "iteration" not in read_status(path)
    last = read_status(path)
    time.sleep(0.3)
    assert read_status(path) == last


def test_a_status_that_does_not_fit_on_the_disk_is_no_reason_to_end(project, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    project.status(iteration=1)
    monkeypatch.undo()
    assert "no heart-beat" in caplog.text
    project.status(iteration=2)
    assert read_status(project.path)["iteration"] == 2


def test_the_verdict_is_of_the_latest_run(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with create(path) as project:
        assert read_verdict(path) is None
        project.verdict("requeue", "time limit")
        found = read_verdict(path)
        assert (found["verdict"], found["reason"]) == ("requeue", "time limit")
        assert (found["system"], found["job"], found["restarts"]) == ("slurm", "17", 2)
        with pytest.raises(StoreError, match="done, requeue, failed"):
            project.verdict("perhaps", "")
    with Project.open(path, writer=True):
        assert read_verdict(path) is None


def test_an_export_appears_whole(project):
    with project.export("map.mrc") as temporary:
        temporary.write_bytes(b"half")
        assert not (project.path / "map.mrc").exists()
        assert temporary.suffix == ".mrc"
    assert (project.path / "map.mrc").read_bytes() == b"half"


def test_an_export_that_fails_leaves_the_older_one(project):
    with project.export("map.mrc") as temporary:
        temporary.write_bytes(b"old")

    def fail(error: Exception) -> None:
        with project.export("map.mrc") as temporary:
            temporary.write_bytes(b"new")
            raise error

    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    with pytest.raises(DiskFullError, match=r"map\.mrc"):
        fail(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StoreError, match=r"map\.mrc"), project.export("map.mrc"):
        pass  # nothing was written
    assert (project.path / "map.mrc").read_bytes() == b"old"
    assert list(project.path.glob(".tmp*")) == []


@pytest.mark.parametrize("name", ["project.h5", "journal", "status.json", "a/b", "../a", ".a"])
def test_an_export_takes_no_name_of_the_stores_own(project, name):
    with pytest.raises(StoreError, match="plain name"), project.export(name):
        pass


# full disks and damage


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


# unlocking


def test_unlock_explains_what_it_did(path):
    die(create(path))
    text = unlock(path)
    assert "unlocked" in text
    assert f"process {os.getpid()}" in text
    assert "already" in unlock(path)
    Project.open(path, writer=True).close()
    assert "closed" in unlock(path)


def test_unlock_refuses_while_the_owner_is_alive_here(project):
    with pytest.raises(ProjectLockedError, match="alive on this machine"):
        unlock(project.path)


# making the folder


def test_a_folder_that_exists_is_not_overwritten(path):
    create(path).close()
    before = tree(path)
    with pytest.raises(OutputError, match="choose another"):
        create(path)
    assert tree(path) == before
    file = path / "map.mrc"
    file.touch()
    with pytest.raises(OutputError, match=r"not a folder|cannot be made"):
        create(file)
    assert file.exists()
