"""Of all who would write to a project one may, and those who were passed over may no more."""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpipar.errors import ProjectLockedError, StoreError
from mpipar.store import (
    Project,
    check,
    durable,
    epoch,
    evidence,
    folder,
    read_verdict,
    schema,
    unlock,
)
from mpipar.store import project as project_module
from mpipar.store.journal import JournalWriter
from tests.unit.store.projects import X, create, die, tree


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


def test_the_loser_of_a_race_for_a_dead_owners_project_is_told_the_winner(path, monkeypatch):
    die(create(path))
    publish = epoch.publish_claim

    def beaten(project, claim):
        publish(project, replace(claim, nonce="00" * 16, started="first"))
        publish(project, claim)

    monkeypatch.setattr(epoch, "publish_claim", beaten)
    with pytest.raises(ProjectLockedError, match=f"process {os.getpid()} on .*, since first"):
        Project.open(path, writer=True)
    assert epoch.epochs(path) == [1, 2]


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
        assert read_verdict(path)["epoch"] == 2
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
    """The next writer claims between the check before and the record: the check after tells."""
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
    # the next writer may have accepted the record: what it names must be there
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


WRITES = {
    "commit": lambda p: p.commit(2, {"x": X}, {"by": "old"}),
    "append": lambda p: p.append("result", b"old"),
    "status": lambda p: p.status(by="old"),
    "verdict": lambda p: p.verdict("failed", "old"),
    "export": lambda p: export(p, b"old"),
}
REPLACING: list[tuple[Any, str]] = [
    (durable, "write_temporary"),
    (durable, "replace"),
    (Path, "replace"),
]
MOMENTS: dict[str, list[tuple[Any, str]]] = {
    "commit": [(durable, "publish"), (os, "link"), (os, "fdatasync"), *REPLACING[1:]],
    "append": [(os, "fdatasync")],
    "status": REPLACING,
    "verdict": REPLACING,
    "export": [(durable, "sync_file"), *REPLACING[1:]],
}  # Path.replace and os.link come after the old writer's last look at the claims


def export(project: Project, data: bytes) -> None:
    with project.export("map.mrc") as temporary:
        temporary.write_bytes(data)


def seen(path: Path) -> object:
    """All that readers look at."""
    reader = Project.open(path, writer=False)
    names = ("project.h5", "status.json", "verdict.json", "map.mrc")
    return (
        reader.commits(),
        reader.records("result", every=True),
        [(path / name).read_bytes() for name in names],
    )


@pytest.mark.parametrize(
    ("write", "place", "call"),
    [
        pytest.param(write, place, call, id=f"{write}-{place.__name__}.{call}")
        for write, moments in MOMENTS.items()
        for place, call in moments
    ],
)
def test_a_writer_that_is_stopped_at_any_moment_and_passed_over_changes_nothing(
    path, monkeypatch, write, place, call
):
    old = create(path, lease=1000)
    old.commit(1, {"x": X}, {})
    act = getattr(place, call)
    after: list[object] = []

    def passed_over(*arguments, **words):
        monkeypatch.undo()
        unlock(path, force=True)
        with Project.open(path, writer=True, lease=1000) as new:
            number = new.commits()[-1].number + 1
            new.commit(number, {"x": X * 2}, {"by": "new"})
            export(new, b"new")
            new.status(by="new")
            new.verdict("done", "new")
        after.append(seen(path))
        return act(*arguments, **words)

    monkeypatch.setattr(place, call, passed_over)
    with pytest.raises(ProjectLockedError, match="passed over by process"):
        WRITES[write](old)
    for again in WRITES.values():
        with pytest.raises(ProjectLockedError, match="passed over by process"):
            again(old)
    old.abandon()
    assert [seen(path)] == after
    assert check(path) == []


def test_an_old_writer_that_goes_on_while_it_opens_changes_nothing(path, monkeypatch):
    with create(path) as project:
        project.commit(1, {"x": X}, {})
    sweep = folder.remove_leftovers
    after: list[object] = []

    def passed_over(*arguments):
        monkeypatch.undo()
        unlock(path, force=True)
        with Project.open(path, writer=True, lease=1000) as new:
            new.commit(2, {"x": X * 2}, {"by": "new"})
            export(new, b"new")
        after.append(seen(path))
        sweep(*arguments)

    monkeypatch.setattr(project_module, "remove_leftovers", passed_over)
    with pytest.raises(ProjectLockedError, match="passed over by process"):
        Project.open(path, writer=True, lease=1000)
    assert [seen(path)] == after
    assert check(path) == []


def test_an_old_writer_takes_back_nothing_that_the_next_one_has_accepted(path, monkeypatch):
    """Its sync fails after the next writer has read its record."""
    old = create(path, lease=1000)

    def fails_late(_):
        monkeypatch.undo()
        unlock(path, force=True)
        Project.open(path, writer=True, lease=1000).close()
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", fails_late)
    with pytest.raises(ProjectLockedError, match="passed over by process"):
        old.append("result", b"1")
    old.close()
    assert Project.open(path, writer=False).records("result") == [b"1"]
    assert check(path) == []
