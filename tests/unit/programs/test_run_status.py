"""What is told of a run, as a document for scripts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mpipar.errors import MissingInputError
from mpipar.programs.run_status import JOB_PATIENCE, LOOK_SECONDS, run_status, runs_in, wait_for_end
from mpipar.store import Project
from tests.unit.store.projects import die, tree

HISTORY = [
    {"resolution": 40.0, "jumped": 1.0, "kind": "soft", "complete": False, "evidence": 0.1},
    {"resolution": 12.5, "jumped": 0.25, "kind": "all", "complete": True, "evidence": 0.2},
]
REPORT = {"phase": "iteration 3: all", "done": 30, "total": 40, "run_seconds_left": [5.0, 9.0]}
DOCUMENT = Path(__file__).parents[3] / "docs" / "status.md"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "refine_01"


def begin(path: Path) -> Project:
    project = Project.create(path, settings={}, kind="refine")
    project.commit(2, {"x": np.arange(3)}, {"history": HISTORY})
    project.status(**REPORT)
    return project


def test_a_run_under_way_says_how_far_it_is(path):
    with begin(path):
        found = run_status(path)
    assert (found["state"], found["kind"], found["exit_code"]) == ("running", "refine", None)
    assert {name: found[name] for name in REPORT} == REPORT
    assert (found["iteration"], found["resolution"]) == (2, 12.5)
    assert found["iterations"][1] == {
        "iteration": 2,
        "kind": "all",
        "resolution": 12.5,
        "jumped": 0.25,
    }
    assert found["verdict"] is None, "none is known yet"
    assert found["workers"] is None, "the program has not said it"


def test_a_run_that_is_over_keeps_what_it_said_last(path):
    with begin(path) as project:
        project.verdict("done", "all")
    found = run_status(path)
    assert (found["state"], found["exit_code"], found["phase"]) == ("done", 0, REPORT["phase"])
    assert found["verdict"]["reason"] == "all"


@pytest.mark.parametrize(
    ("verdict", "reason", "code"),
    [
        ("failed", "NoSignalError: nothing: at all", 79),
        ("failed", "CommandsFailedError: 1 of 2", 70),
        ("failed", "ZeroDivisionError: division by zero", 70),
        ("requeue", "StoppedError: SIGUSR1", 75),
    ],
)
def test_the_exit_code_follows_from_the_verdict(path, verdict, reason, code):
    with begin(path) as project:
        project.verdict(verdict, reason)
    assert run_status(path)["exit_code"] == code


def test_a_killed_run_can_be_resumed(path):
    die(begin(path))
    found = run_status(path)
    assert (found["state"], found["exit_code"]) == ("dead", 75)
    assert (found["done"], found["resolution"]) == (30, 12.5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: (path / "journal" / "000001.log").write_bytes(b"no journal"),
        lambda path: (path / "status.json").write_bytes(b"{"),
        lambda path: (path / "verdict.json").unlink(),
        lambda path: (path / "project.h5").unlink(),
        lambda path: (path / "epoch" / "000001.claim").write_bytes(b""),
    ],
    ids=["journal", "status", "verdict", "index", "claim"],
)
def test_whatever_is_damaged_there_is_an_answer(path, spoil):
    with begin(path) as project:
        project.verdict("done", "all")
    spoil(path)
    found = run_status(path)
    assert found["state"] in {"done", "unreadable"}
    json.dumps(found)


def test_fields_and_document_agree(path):
    with begin(path):
        found = run_status(path)
    fields = DOCUMENT.read_text().partition("## JSON")[2]
    explained = set(re.findall(r"^\| `(\w+)` \|", fields, re.MULTILINE))
    assert set(found) == explained


def test_runs_of_a_folder_are_found_by_number(tmp_path):
    for name in ("refine_10", "refine_2", "run_01"):
        Project.create(tmp_path / name, settings={}, kind=name.partition("_")[0]).close()
    (tmp_path / "refine_3").mkdir()
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in runs_in(tmp_path)] == ["run_01", "refine_2", "refine_10"]
    assert runs_in(tmp_path / "run_01") == [tmp_path / "run_01"]


@pytest.mark.parametrize("name", ["none", "empty", "file"])
def test_where_no_run_is_it_is_said(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(MissingInputError, match=name):
        runs_in(tmp_path / name)


class Time:
    """A clock that only sleeping moves; what happens at which second is told."""

    def __init__(self, **events):
        self.now = 0.0
        self.events = {float(name.removeprefix("at_")): event for name, event in events.items()}

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for when in [when for when in self.events if when <= self.now]:
            self.events.pop(when)()


def test_waiting_ends_with_the_run(path):
    project = begin(path)
    said = []

    def end():
        project.verdict("done", "all")
        project.close()

    clock = Time(at_7=end)
    assert wait_for_end(path, said.append, clock.sleep, clock)["state"] == "done"
    assert clock.now == 4 * LOOK_SECONDS
    assert [line.split(": ")[1] for line in said] == ["running", "done"]


def test_a_job_has_time_to_queue_itself_again(path, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "fake")
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    def job_is(state):
        program.write_text(
            '#!/bin/sh\n[ "$2" = config ] && echo "ClusterName = fake" || '
            f'echo "JobId=17 JobState={state} Restarts=0"\n'
        )
        program.chmod(0o755)

    with begin(path) as project:
        project.verdict("requeue", "StoppedError: SIGUSR1")
    job_is("RUNNING")
    said, clock = [], Time()
    assert wait_for_end(path, said.append, clock.sleep, clock)["state"] == "cut off"
    assert JOB_PATIENCE <= clock.now <= JOB_PATIENCE + LOOK_SECONDS
    clock = Time(at_30=lambda: job_is("PENDING"), at_900=lambda: job_is("CANCELLED"))
    assert wait_for_end(path, said.append, clock.sleep, clock)["state"] == "cut off"
    assert clock.now == pytest.approx(900)
    assert [line.split(": ")[1] for line in said] == ["cut off", "cut off", "queued", "cut off"]


def test_looking_changes_nothing(path):
    with begin(path) as project:
        project._writer.heartbeat.stop()
        before = tree(path)
        run_status(path)
        runs_in(path.parent)
        assert tree(path) == before
