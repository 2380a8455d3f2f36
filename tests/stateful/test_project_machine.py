"""A project against a dict: any order of commits, results, kills, torn tails, zombies, openings."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpipar.errors import ProjectLockedError
from mpipar.store import Project, check, epoch, schema, unlock
from tests.stranger import reader

KINDS = st.sampled_from(["a", "b"])


class ProjectMachine(RuleBasedStateMachine):
    """The model: committed numbers with their values, and the results since the latest commit."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "project"
        self.project: Project | None = None
        self.zombies: list[Project] = []
        self.commits: dict[int, int] = {}
        self.results: list[tuple[str, bytes]] = []

    @initialize()
    def create(self) -> None:
        # a long lease: no beat comes in between, so that each run is alike
        self.project = Project.create(self.path, settings={"a": 1}, kind="test", lease=1000)

    @precondition(lambda self: self.project)
    @rule(value=st.integers(0, 255), gap=st.integers(1, 3))
    def commit(self, value: int, gap: int) -> None:
        assert self.project
        number = max(self.commits, default=0) + gap
        self.project.commit(number, {"x": np.full(5, value, np.uint8)}, {"value": value})
        self.commits[number] = value
        self.results.clear()

    @precondition(lambda self: self.project)
    @rule(data=st.data())
    def prune(self, data: st.DataObject) -> None:
        assert self.project
        inner = [*self.commits][1:-1]
        chosen = data.draw(st.sets(st.sampled_from(inner))) if inner else set()
        assert {info.number for info in self.project.prune(chosen)} == chosen
        for number in chosen:
            del self.commits[number]

    @precondition(lambda self: self.project)
    @rule(kind=KINDS, payloads=st.lists(st.binary(max_size=20), max_size=3))
    def append(self, kind: str, payloads: list[bytes]) -> None:
        assert self.project
        self.project.append(kind, *payloads)
        self.results += [(kind, payload) for payload in payloads]

    @precondition(lambda self: self.project)
    @rule()
    def close(self) -> None:
        assert self.project
        self.project.close()
        self.project = None

    @precondition(lambda self: self.project)
    @rule(tail=st.binary(max_size=60))
    def kill(self, tail: bytes) -> None:
        """Killed while a batch was being written: part of it is on the disk, a torn record."""
        assert self.project
        writer: Any = self.project._writer
        writer.heartbeat.stop()
        writer.journal.close()
        writer.ownership.drop_lock()
        gone = replace(writer.claim, process_start="1")
        epoch.claim_path(self.path, gone.epoch).write_bytes(schema.encode(asdict(gone)))
        with writer.journal.path.open("ab") as file:
            file.write(tail)
        self.project = None

    @precondition(lambda self: self.project)
    @rule()
    def cut_off(self) -> None:
        """Its network is gone, a person unlocks, and later it comes back."""
        assert self.project
        unlock(self.path, force=True)
        self.zombies.append(self.project)
        self.project = None

    @precondition(lambda self: not self.project)
    @rule()
    def reopen(self) -> None:
        self.project = Project.open(self.path, writer=True, lease=1000)

    @precondition(lambda self: self.project and self.zombies)
    @rule(data=st.data())
    def zombie_writes(self, data: st.DataObject) -> None:
        zombie = data.draw(st.sampled_from(self.zombies))
        for write in (
            lambda: zombie.commit(999, {}, {}),
            lambda: zombie.append("a", b"late"),
            lambda: zombie.prune(range(999)),
        ):
            try:
                write()
            except ProjectLockedError:
                continue
            raise AssertionError("a zombie was allowed to write")

    @precondition(lambda self: self.project and self.zombies)
    @rule(data=st.data())
    def zombie_writes_past_all_checks(self, data: st.DataObject) -> None:
        zombie: Any = data.draw(st.sampled_from(self.zombies))._writer
        zombie.journal.append([("a", b"late"), ("b", b"late")])

    @precondition(lambda self: self.project)
    @rule()
    def second_writer_is_refused(self) -> None:
        try:
            Project.open(self.path, writer=True)
        except ProjectLockedError:
            return
        raise AssertionError("two writers")

    @rule()
    def lose_the_entry_point(self) -> None:
        (self.path / "project.h5").unlink(missing_ok=True)

    @invariant()
    def everyone_sees_what_was_acknowledged(self) -> None:
        if not self.path.exists():
            return
        for project in filter(None, (Project.open(self.path, writer=False), self.project)):
            assert [info.number for info in project.commits()] == [*self.commits]
        stranger = reader.read_project(self.path)
        assert [commit.number for commit in stranger.commits] == [*self.commits]
        for project in filter(None, (Project.open(self.path, writer=False), self.project)):
            for kind in ("a", "b"):
                assert project.records(kind) == [p for k, p in self.results if k == kind]
            latest = project.latest()
            assert (latest is None) == (not self.commits)
            if latest is not None:
                value = self.commits[latest.number]
                assert latest.arrays["x"].tolist() == [value] * 5
                assert latest.attributes == {"value": value}

    def teardown(self) -> None:
        for project in filter(None, (*self.zombies, self.project)):
            project.close()
        if self.path.exists():
            problems = [p for p in check(self.path) if "project.h5: is missing" not in p]
            assert problems == []
        shutil.rmtree(self.folder)


TestProject = ProjectMachine.TestCase
# each step is a handful of syncs: fewer examples than pure logic gets
TestProject.settings = settings(
    stateful_step_count=25, max_examples=max(25, settings().max_examples // 20), deadline=None
)
