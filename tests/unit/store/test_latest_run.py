"""How the latest run on a project stands, from what its writer has left."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from mpipar.errors import MissingInputError
from mpipar.store import Project, RunState, epoch, latest_run, schema, standing_of, unlock
from mpipar.store.batch_system import JobState
from mpipar.store.epoch import BatchJob
from tests.unit.store.projects import create, die, tree

if TYPE_CHECKING:
    from pathlib import Path

JOB = BatchJob("slurm", "fake", "17", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a scontrol on PATH that says a state of job 17, and how often it has been started."""

    def says(state: str, restarts: int = 1) -> None:
        program = tmp_path / "bin" / "scontrol"
        program.parent.mkdir(exist_ok=True)
        answer = f"JobId=17 JobState={state} Restarts={restarts}"
        program.write_text(
            f'#!/bin/sh\n[ "$2" = config ] && echo "ClusterName = fake" || echo "{answer}"\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return says


def elsewhere(path: Path, *, beat_ago: float, batch: BatchJob | None = None) -> None:
    """Make it the folder of a run on another host, whose last heart-beat is so old."""
    project = create(path)
    die(project)
    claim = replace(project._writer.claim, host="other", batch=batch)
    epoch.claim_path(path, 1).write_bytes(schema.sign(schema.encode(asdict(claim))))
    status = schema.decode_signed((path / "status.json").read_bytes())
    then = time.time() - beat_ago
    (path / "status.json").write_bytes(schema.sign(schema.encode(status | {"updated": then})))
    os.utime(path / "status.json", (then, then))


def state_of(path: Path) -> RunState:
    return standing_of(path).state


def test_a_run_of_a_living_process_is_running(path):
    with create(path) as project:
        found = standing_of(path)
        assert found.state is RunState.RUNNING
        assert found.claim == project._writer.claim
        assert found.verdict["verdict"] == "requeue"
        assert found.silence is not None
        assert found.silence < 30


@pytest.mark.parametrize(
    ("verdict", "state"),
    [("done", RunState.DONE), ("failed", RunState.FAILED), ("requeue", RunState.CUT_OFF)],
)
def test_a_run_that_has_ended_is_what_its_verdict_says(path, verdict, state):
    with create(path) as project:
        project.verdict(verdict, "this is why")
    found = standing_of(path)
    assert found.state is state
    assert found.reason == f"the latest run has ended: {verdict} (this is why)"
    with Project.open(path, writer=True):
        assert state_of(path) is RunState.RUNNING, "it goes on with --resume"


def test_a_run_that_was_closed_without_a_word_was_cut_off(path):
    create(path).close()
    assert state_of(path) is RunState.CUT_OFF


def test_a_killed_run_is_dead(path):
    die(create(path))
    assert state_of(path) is RunState.DEAD
    assert "was killed" in latest_run(path)


@pytest.mark.parametrize(
    ("ago", "state"), [(5, RunState.RUNNING), (80, RunState.RUNNING), (100, RunState.DEAD)]
)
def test_on_another_host_the_heart_beat_tells(path, ago, state):
    elsewhere(path, beat_ago=ago)
    found = standing_of(path)
    assert found.state is state
    assert found.silence == pytest.approx(ago, abs=10)
    assert f"last heart-beat {ago}" in found.reason


def test_a_writer_whose_clock_is_behind_is_not_dead(path):
    elsewhere(path, beat_ago=1000)
    os.utime(path / "status.json")
    assert state_of(path) is RunState.RUNNING


def test_a_run_that_has_just_begun_elsewhere_has_no_heart_beat_yet(path):
    elsewhere(path, beat_ago=5)
    (path / "status.json").unlink()
    assert state_of(path) is RunState.RUNNING
    os.utime(epoch.claim_path(path, 1), (0, 0))
    assert state_of(path) is RunState.DEAD


@pytest.mark.parametrize(
    ("answer", "state", "job"),
    [
        (("PENDING", 2), RunState.QUEUED, JobState.QUEUED),
        (("RUNNING", 2), RunState.QUEUED, JobState.QUEUED),
        (("CANCELLED", 1), RunState.DEAD, JobState.OVER),
        (("RUNNING", 1), RunState.RUNNING, JobState.UNKNOWN),
    ],
)
def test_where_the_heart_beat_is_late_the_scheduler_is_asked(path, scheduler, answer, state, job):
    elsewhere(path, beat_ago=40, batch=JOB)
    scheduler(*answer)
    found = standing_of(path)
    assert (found.state, found.job) == (state, job)
    assert standing_of(path, ask=False).state is RunState.RUNNING


def test_a_run_that_was_cut_off_is_queued_if_its_job_is(path, scheduler, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "fake")
    with create(path) as project:
        project.verdict("requeue", "StoppedError: SIGUSR1")
    scheduler("RUNNING", 0)
    found = standing_of(path)
    assert (found.state, found.job) == (RunState.CUT_OFF, JobState.RUNNING)
    scheduler("PENDING", 1)
    found = standing_of(path)
    assert found.state is RunState.QUEUED
    assert found.reason.startswith("slurm job 17 is to start again; the latest run has ended: ")


def test_a_run_that_was_unlocked_is_dead(path):
    elsewhere(path, beat_ago=5)
    unlock(path)
    assert state_of(path) is RunState.DEAD
    assert "declared dead" in latest_run(path)


def test_what_cannot_be_read_is_a_state(path):
    create(path).close()
    claim = epoch.claim_path(path, 1)
    claim.unlink()
    claim.mkdir()
    found = standing_of(path)
    assert found.state is RunState.UNREADABLE
    assert str(path) in found.reason


def test_a_damaged_claim_does_not_hide_how_the_run_ended(path):
    with create(path) as project:
        project.verdict("done", "all")
    epoch.claim_path(path, 1).write_bytes(b"{}")
    assert state_of(path) is RunState.DONE
    (path / "epoch" / schema.released_name(1)).unlink()
    (path / "status.json").unlink()
    os.utime(epoch.claim_path(path, 1), (0, 0))
    assert state_of(path) is RunState.DEAD


def test_looking_writes_nothing(path):
    with create(path) as project:
        project._writer.heartbeat.stop()
        before = tree(path)
        standing_of(path)
        assert tree(path) == before


def test_without_a_project_there_is_nothing_to_say(tmp_path):
    with pytest.raises(MissingInputError, match="holds no project"):
        standing_of(tmp_path)
