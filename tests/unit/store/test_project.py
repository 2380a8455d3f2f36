"""A project as a program uses it: create, commit, read back, resume, report, export."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpipar.errors import DiskFullError, MissingInputError, OutputError, StoreError
from mpipar.store import Project, check, epoch, read_status, read_verdict, schema
from tests.unit.store.projects import SETTINGS, X, create, die, tree


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


def test_a_reader_writes_nothing_and_sees_each_commit(project):
    reader = Project.open(project.path, writer=False)
    project.commit(1, {"x": X}, {})
    before = tree(project.path)
    assert reader.latest().number == 1
    project.commit(2, {"x": X}, {})
    assert reader.latest().number == 1, (
        "what was read once does not change under the reader's hands"
    )
    assert Project.open(project.path, writer=False).latest().number == 2
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
    monkeypatch.setattr(schema, "FORMAT", (0, 7))
    for writer in (True, False):
        with pytest.raises(StoreError, match="update mpipar"):
            Project.open(path, writer=writer)


def test_what_a_later_minor_version_has_added_is_left_out(path):
    with create(path) as project:
        project.commit(1, {"x": X}, {})
        added = schema.decode(schema.commit_to_json(project.commits()[0])) | {"colour": "red"}
        project._writer.journal.append(
            [(schema.COMMIT, schema.encode(added | {"number": 9})), ("@later", b"anything")]
        )
    numbers = [info.number for info in Project.open(path, writer=False).commits()]
    assert numbers == [1, 9]


def test_a_later_minor_version_is_read_but_not_written(path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(schema, "FORMAT", (1, 99))
        with create(path) as project:
            project.commit(1, {"x": X}, {})
    claim = path / "epoch" / "000001.claim"
    value = schema.decode_signed(claim.read_bytes())
    value["identity"]["colour"] = "red"
    claim.write_bytes(schema.sign(schema.encode(value | {"colour": "red"})))
    seen = Project.open(path, writer=False)
    assert seen.latest().arrays["x"].tobytes() == X.tobytes()
    before = tree(path)
    with pytest.raises(StoreError, match=r"1\.99.*update mpipar"):
        Project.open(path, writer=True)
    assert tree(path) == before


def test_a_project_of_an_earlier_minor_version_is_written_as_this_one(path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(schema, "FORMAT", (1, 0))
        create(path).close()
    Project.open(path, writer=True).close()
    claims = [epoch.read_claim(path, number) for number in epoch.epochs(path)]
    formats = [claim.identity.format for claim in claims]
    assert formats == ["1.0", schema.version_text(schema.FORMAT)]


@pytest.mark.parametrize("written", ["", "1.x", "one", None, "1.1.1", -1])
def test_a_claim_without_a_version_is_no_claim(path, written):
    create(path).close()
    claim = path / "epoch" / "000001.claim"
    value = schema.decode_signed(claim.read_bytes())
    value["identity"]["format"] = written
    claim.write_bytes(schema.sign(schema.encode(value)))
    assert Project.open(path, writer=False).kind == "refine", "the journal tells it"
    assert any("damaged" in line for line in check(path))


@pytest.mark.parametrize("change", [{"format": 2}, {"format": "2.0"}, {"format": 2, "cores": 4}])
def test_a_claim_of_a_later_version_is_said_to_need_it(path, change):
    create(path).close()
    claim = path / "epoch" / "000001.claim"
    value = schema.decode_signed(claim.read_bytes())
    value["identity"]["format"] = change["format"]
    claim.write_bytes(schema.sign(schema.encode(value | change)))
    for writer in (True, False):
        with pytest.raises(StoreError, match="update mpipar"):
            Project.open(path, writer=writer)
    assert "update mpipar" in check(path)[0]


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
        assert "iteration" not in (read_status(path) or ["iteration"])
    last = read_status(path)
    time.sleep(0.3)
    assert read_status(path) == last
    assert last is not None
    assert "phase" not in last, "nothing says that the run goes on"
    assert last["last"] == {"phase": "end"}
    assert last["ended"] <= last["updated"]


@pytest.mark.parametrize("reason", ["all is done", None])
def test_the_status_of_a_run_that_is_over_says_how_it_ended(path, reason):
    with create(path) as project:
        if reason:
            project.verdict("done", reason)
    found = read_status(path)
    assert found["verdict"] == ("done" if reason else "requeue")
    assert found["reason"] == (reason or "closed without a word about how it ended")
    assert check(path) == []


def test_a_status_that_does_not_fit_on_the_disk_is_no_reason_to_end(project, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    project.status(iteration=1)
    monkeypatch.undo()
    assert "no heart-beat" in caplog.text
    project.status(iteration=2)
    assert read_status(project.path)["iteration"] == 2


def test_the_verdict_is_of_the_latest_run_and_requeue_until_it_says_more(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with create(path) as project:
        assert read_verdict(path)["verdict"] == "requeue"
        assert read_verdict(path)["job"] == "17"
        project.verdict("requeue", "time limit")
        found = read_verdict(path)
        assert (found["verdict"], found["reason"]) == ("requeue", "time limit")
        assert (found["system"], found["job"], found["restarts"]) == ("slurm", "17", 2)
        with pytest.raises(StoreError, match="done, requeue, failed"):
            project.verdict("perhaps", "")
        project.verdict("done", "")
    with Project.open(path, writer=True):
        found = read_verdict(path)
        assert (found["verdict"], found["reason"]) == ("requeue", schema.NOT_ENDED)


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
