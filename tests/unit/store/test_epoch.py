"""Claims: who may write, on what evidence, and who wins a race."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from mpipar.errors import CorruptStoreError, ProjectLockedError, StoreError
from mpipar.store import epoch, evidence, schema
from mpipar.store.batch_system import JobState, batch_job, job_is_over, job_state
from mpipar.store.epoch import (
    BatchJob,
    Evidence,
    HeartbeatSeen,
    OwnerProcess,
    Ownership,
    Verdict,
    may_take_over,
)
from mpipar.store.evidence import (
    gather,
    is_restarted,
    process_evidence,
    process_state,
    this_process,
    watch,
)
from mpipar.store.schema import Identity
from tests.support import dying

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = Identity("1.1", "test", {"a": 1}, 0.0)
JOB = BatchJob("slurm", "fake", "17", 1)
TAKE, REFUSE, WATCH = Verdict.TAKE, Verdict.REFUSE, Verdict.WATCH


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in schema.FOLDERS:
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("found", "verdict", "word"),
    [
        (Evidence(), WATCH, "no evidence"),
        (Evidence(released=True), TAKE, "closed"),
        (Evidence(released=True, process=OwnerProcess.ALIVE), TAKE, "closed"),
        (Evidence(unlocked=True), TAKE, "by hand"),
        (Evidence(unlocked=True, process=OwnerProcess.ALIVE), TAKE, "by hand"),
        (Evidence(process=OwnerProcess.ALIVE), REFUSE, "alive"),
        (Evidence(process=OwnerProcess.ALIVE, restarted=True), REFUSE, "alive"),
        (Evidence(process=OwnerProcess.ALIVE, job_over=True), REFUSE, "alive"),
        (Evidence(process=OwnerProcess.ALIVE, beat=HeartbeatSeen.STOOD_STILL), REFUSE, "alive"),
        (Evidence(process=OwnerProcess.GONE), TAKE, "gone"),
        (Evidence(process=OwnerProcess.GONE, beat=HeartbeatSeen.MOVED), TAKE, "gone"),
        (Evidence(restarted=True), TAKE, "restarted"),
        (Evidence(restarted=True, beat=HeartbeatSeen.MOVED), TAKE, "restarted"),
        (Evidence(job_over=True), TAKE, "job is over"),
        (Evidence(beat=HeartbeatSeen.MOVED), REFUSE, "heart-beat"),
        (Evidence(beat=HeartbeatSeen.STOOD_STILL), TAKE, "three leases"),
    ],
)
def test_evidence_decides(found, verdict, word):
    claim = this_process(1, IDENTITY)
    decision = may_take_over(claim, found)
    assert decision.verdict is verdict
    assert word in decision.reason
    assert may_take_over(None, found).verdict is verdict


def test_a_claim_is_read_as_it_was_written(project):
    claim = replace(this_process(1, IDENTITY), batch=JOB)
    epoch.publish_claim(project, claim)
    assert epoch.epochs(project) == [1]
    assert epoch.read_claim(project, 1) == claim
    assert list((project / "epoch").glob(".tmp*")) == []


def test_a_claim_names_its_owner():
    claim = replace(this_process(1, IDENTITY), host="n7", process=42, batch=JOB, started="noon")
    assert claim.owner() == "process 42 on n7, slurm job 17 (restart 1), since noon"


def test_an_epoch_is_claimed_once(project):
    claims = [this_process(1, IDENTITY) for _ in range(8)]
    won, lost = [], []

    def race(claim):
        try:
            epoch.publish_claim(project, claim)
            won.append(claim)
        except FileExistsError:
            lost.append(claim)

    threads = [threading.Thread(target=race, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 7
    assert epoch.read_claim(project, 1) == won[0]


def test_a_claim_is_won_without_hard_links(project, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    claim = this_process(1, IDENTITY)
    epoch.publish_claim(project, claim)
    assert epoch.read_claim(project, 1) == claim
    with pytest.raises(FileExistsError):
        epoch.publish_claim(project, this_process(1, IDENTITY))
    assert epoch.read_claim(project, 1) == claim
    Ownership(project, claim).release()
    assert epoch.is_marked(project, schema.released_name(1))


def test_a_link_that_is_reported_to_exist_but_succeeded_is_a_success(project, monkeypatch):
    """Over NFS the answer to a link may be lost, and the repeated request be told EEXIST."""
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    claim = this_process(1, IDENTITY)
    epoch.publish_claim(project, claim)
    assert epoch.read_claim(project, 1) == claim


def test_an_unreadable_claim_counts_but_tells_nothing(project):
    epoch.publish_claim(project, this_process(1, IDENTITY))
    (project / "epoch" / "000002.claim").touch()
    assert epoch.epochs(project) == [1, 2]
    assert epoch.read_claim(project, 2) is None
    assert epoch.identity_from_claims(project, [1, 2]) == IDENTITY
    with pytest.raises(CorruptStoreError):
        epoch.identity_from_claims(project, [2])


def test_an_owner_that_was_passed_over_is_told_by_whom(project):
    old = this_process(1, IDENTITY)
    epoch.publish_claim(project, old)
    ownership = Ownership(project, old)
    ownership.verify()
    epoch.publish_claim(project, replace(this_process(2, IDENTITY), host="other", process=5))
    with pytest.raises(ProjectLockedError, match="passed over by process 5 on other"):
        ownership.verify()
    ownership.release()


def test_a_forked_child_is_not_the_owner(project):
    claim = replace(this_process(1, IDENTITY), process=os.getpid() + 1)
    ownership = Ownership(project, claim)
    with pytest.raises(StoreError, match="forked"):
        ownership.verify()
    ownership.release()
    assert not epoch.is_marked(project, schema.released_name(1))


def test_missing_locks_are_tolerated(project, monkeypatch):
    import fcntl

    def refused(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refused)
    claim = this_process(1, IDENTITY)
    epoch.publish_claim(project, claim)
    ownership = Ownership(project, claim)
    ownership.verify()
    ownership.release()
    assert epoch.is_marked(project, schema.released_name(1))


def test_this_process_is_alive_and_a_dead_one_is_gone():
    here = this_process(2, IDENTITY)
    assert process_evidence(this_process(1, IDENTITY), here) is OwnerProcess.ALIVE
    child = subprocess.Popen([sys.executable, "-c", ""])
    _, start = process_state(child.pid)
    claim = replace(here, process=child.pid, process_start=start)
    deadline = time.monotonic() + 30
    while process_state(child.pid)[0] is OwnerProcess.ALIVE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process_evidence(claim, here) is OwnerProcess.GONE, "a zombie is dead"
    child.wait()
    assert process_evidence(claim, here) is OwnerProcess.GONE


def test_a_process_number_that_was_given_to_another_is_not_the_owner():
    here = this_process(2, IDENTITY)
    assert process_evidence(replace(here, process_start="1"), here) is OwnerProcess.GONE


@pytest.mark.parametrize("field", ["host", "boot", "namespace"])
def test_nothing_is_known_of_processes_elsewhere(field):
    here = this_process(2, IDENTITY)
    changed: Any = {field: "elsewhere"}
    elsewhere = replace(here, **changed)
    assert process_evidence(elsewhere, here) is OwnerProcess.UNKNOWN


@pytest.mark.parametrize(
    ("environment", "batch"),
    [
        ({}, None),
        ({"JOB_ID": "5"}, None),
        (
            {"SLURM_JOB_ID": "17", "SLURM_CLUSTER_NAME": "c", "SLURM_RESTART_COUNT": "2"},
            BatchJob("slurm", "c", "17", 2),
        ),
        ({"SLURM_JOB_ID": "17"}, BatchJob("slurm", "", "17", 0)),
        (
            {"JOB_ID": "5", "SGE_ROOT": "/sge", "SGE_TASK_ID": "undefined", "RESTARTED": "1"},
            BatchJob("sge", "/sge/default", "5", 1),
        ),
        (
            {"JOB_ID": "5", "SGE_ROOT": "/sge", "SGE_CELL": "x", "SGE_TASK_ID": "3"},
            BatchJob("sge", "/sge/x", "5.3", 0),
        ),
    ],
)
def test_the_batch_job_is_read_from_the_environment(environment, batch):
    assert batch_job(environment) == batch


@pytest.mark.parametrize(
    ("old", "new", "restarted"),
    [
        (JOB, replace(JOB, restarts=2), True),
        (JOB, JOB, False),
        (JOB, replace(JOB, restarts=0), False),
        (JOB, replace(JOB, job="18", restarts=2), False),
        (JOB, replace(JOB, cluster="other", restarts=2), False),
        (JOB, None, False),
        (None, JOB, False),
    ],
)
def test_a_restarted_job_is_the_same_job_with_a_higher_count(old, new, restarted):
    claim = this_process(1, IDENTITY)
    assert is_restarted(replace(claim, batch=old), replace(claim, batch=new)) is restarted


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """Put a scontrol and a qstat on PATH that answer what the test says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def answers(job: str, cluster: str = "fake") -> None:
        config = f"Configuration data\nClusterName             = {cluster}\n"
        for name in ("scontrol", "qstat"):
            program = folder / name
            program.write_text(
                f"#!/bin/sh\nif [ \"$2\" = config ]; then echo '{config}'; else echo '{job}'; fi\n"
            )
            program.chmod(0o755)

    return answers


@pytest.mark.parametrize(
    ("answer", "over", "state"),
    [
        ("JobId=17 JobState=RUNNING Restarts=1 ", False, JobState.RUNNING),
        ("JobId=17 JobState=COMPLETING Restarts=1 ", False, JobState.RUNNING),
        ("JobId=17 JobState=PENDING Restarts=2 ", True, JobState.QUEUED),
        ("JobId=17 JobState=RUNNING Restarts=2 ", True, JobState.QUEUED),
        ("JobId=17 JobState=COMPLETED Restarts=2 ", True, JobState.OVER),
        ("JobId=17 JobState=COMPLETED Restarts=1 ", True, JobState.OVER),
        ("JobId=17 JobState=NODE_FAIL Restarts=1 ", True, JobState.OVER),
        ("slurm_load_jobs error: Invalid job id specified", True, JobState.OVER),
        ("slurm_load_jobs error: Unable to contact slurm controller", False, JobState.UNKNOWN),
    ],
)
def test_slurm_is_asked_how_the_job_stands(scheduler, answer, over, state):
    scheduler(answer)
    assert job_is_over(JOB) is over
    assert job_state(JOB) is state


def test_another_clusters_job_numbers_mean_nothing(scheduler):
    scheduler("JobId=17 JobState=COMPLETED Restarts=1 ", cluster="other")
    assert not job_is_over(JOB)
    assert not job_is_over(replace(JOB, cluster=""))
    assert job_state(JOB) is JobState.UNKNOWN


def test_without_a_scheduler_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not job_is_over(JOB)
    assert not job_is_over(None)


@pytest.mark.parametrize(
    ("answer", "over"), [("Following jobs do not exist: 5", True), ("job_number: 5", False)]
)
def test_sge_is_asked_whether_the_job_is_over(scheduler, monkeypatch, answer, over):
    monkeypatch.setenv("SGE_ROOT", "/sge")
    monkeypatch.delenv("SGE_CELL", raising=False)
    scheduler(answer)
    assert job_is_over(BatchJob("sge", "/sge/default", "5.1", 0)) is over
    assert not job_is_over(BatchJob("sge", "/other/default", "5.1", 0))


@pytest.mark.parametrize(
    ("letters", "job", "state"),
    [
        ("r", "5", JobState.RUNNING),
        ("Rq", "5", JobState.QUEUED),
        ("hqw", "5", JobState.QUEUED),
        ("qw", "6", JobState.UNKNOWN),
    ],
)
def test_sge_is_asked_how_the_job_stands(scheduler, monkeypatch, letters, job, state):
    monkeypatch.setenv("SGE_ROOT", "/sge")
    monkeypatch.delenv("SGE_CELL", raising=False)
    row = f"      {job} 0.55500 refine     me           {letters}    11/26/2026 20:00:00 q@h  4"
    scheduler(f"job-ID  prior   name   user   state submit/start at   queue   slots\n{row} 3")
    assert job_state(BatchJob("sge", "/sge/default", "5", 0)) is state
    assert job_state(BatchJob("sge", "/sge/default", "5.3", 0)) is state
    assert job_state(BatchJob("sge", "/sge/default", "5.2", 0)) is JobState.UNKNOWN


def test_marks_are_evidence(project):
    claim = this_process(1, IDENTITY)
    here = this_process(2, IDENTITY)
    assert gather(project, 1, claim, here) == Evidence(process=OwnerProcess.ALIVE)
    epoch.mark(project, schema.unlocked_name(1), "me")
    epoch.mark(project, schema.unlocked_name(1), "me again")
    assert gather(project, 1, claim, here) == Evidence(unlocked=True)
    epoch.mark(project, schema.released_name(1), "me")
    assert gather(project, 1, None, here) == Evidence(unlocked=True, released=True)


def test_a_restart_is_evidence_for_a_claim_from_elsewhere(project):
    here = replace(this_process(2, IDENTITY), batch=replace(JOB, restarts=2))
    there = replace(here, host="elsewhere", batch=JOB)
    assert gather(project, 1, there, here) == Evidence(restarted=True)


class Watched:
    """A clock that only sleeping moves, and a status.json that changes at given times."""

    def __init__(self, project: Path, beats: dict[float, bytes]) -> None:
        self.project, self.beats, self.now = project, dict(beats), 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [t for t in self.beats if t <= self.now]:
            (self.project / "status.json").write_bytes(self.beats.pop(moment))


def beat(owner: str, counter: int) -> bytes:
    return schema.encode({"owner": owner, "beat": counter})


@pytest.mark.parametrize(
    ("beats", "seen", "seconds"),
    [
        ({}, HeartbeatSeen.STOOD_STILL, 90),
        ({45.0: beat("o", 8)}, HeartbeatSeen.MOVED, 45),
        ({45.0: beat("zombie", 8)}, HeartbeatSeen.STOOD_STILL, 90),
        ({45.0: b"torn"}, HeartbeatSeen.STOOD_STILL, 90),
        ({100.0: beat("o", 8)}, HeartbeatSeen.STOOD_STILL, 90),
    ],
)
def test_the_beat_is_watched_for_three_leases(project, beats, seen, seconds):
    (project / "status.json").write_bytes(beat("o", 7))
    watched = Watched(project, beats)
    claim = replace(this_process(1, IDENTITY, lease=30.0), nonce="o")
    assert watch(project, claim, watched.sleep, lambda: watched.now) is seen
    assert watched.now == pytest.approx(seconds, abs=5)


def test_the_first_beat_of_a_slow_starter_is_a_beat(project):
    watched = Watched(project, {20.0: beat("o", 1)})
    claim = replace(this_process(1, IDENTITY), nonce="o")
    assert watch(project, claim, watched.sleep, lambda: watched.now) is HeartbeatSeen.MOVED


def test_proc_that_hides_other_peoples_processes_proves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(evidence, "_PROC", tmp_path)
    assert process_state(os.getpid())[0] is OwnerProcess.UNKNOWN
    assert process_state(2**22 + 1)[0] is OwnerProcess.GONE


def test_the_crash_tests_choose_each_line_once():
    assert sorted(n for shard in range(3) for n in dying.every(3, shard)(10)) == [*range(1, 11)]
    assert dying.spread(4)(10) == [1, 4, 7, 10]
