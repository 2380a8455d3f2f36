"""How the latest run on a project stands: it is queued, goes on, has ended, was cut off, or died.

All is read; nothing is written or locked, so anybody may look while the run writes.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import MpiparError
from mpipar.store import epoch, evidence, history, schema, status
from mpipar.store.batch_system import JobState, job_is_over, job_state
from mpipar.store.epoch import LEASE, LEASES_TO_WATCH, OwnerProcess
from mpipar.store.submission import LOG, read_submission, submitted_since
from mpipar.store.takeover import require_project

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.store.epoch import BatchJob, WriterClaim

__all__ = ["RunStanding", "RunState", "latest_run", "standing_of", "writers"]

GO_ON: Final = "go on with --resume"


class RunState(Enum):
    """One word for how a run stands."""

    QUEUED = "queued"  # its batch job waits for its first start, or for another after a cut
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CUT_OFF = "cut off"  # ended in good order before its end: told to, or out of time
    DEAD = "dead"  # killed, or without a heart-beat for too long
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class RunStanding:
    """How the latest run stands, and from what that is known."""

    state: RunState
    reason: str  # one sentence, for people
    claim: WriterClaim | None = None  # of the latest writer; None if it cannot be read
    status: dict[str, Any] | None = None  # what status.json says
    verdict: dict[str, Any] | None = None  # how the run ended; `requeue` also while it runs
    silence: float | None = None  # seconds since the last heart-beat, by this host's clock
    batch: BatchJob | None = None  # the run's latest job
    job: JobState = JobState.UNKNOWN  # what the scheduler says of it; asked unless the run goes on


def writers(project: Path) -> list[WriterClaim]:
    """Return the claims of all epochs, oldest first; those that cannot be read are left out."""
    claims = (epoch.read_claim(project, number) for number in epoch.epochs(project))
    return [claim for claim in claims if claim is not None]


def latest_run(project: Path) -> str:
    """Return how the latest run stands, in words; nobody is asked or waited for."""
    return standing_of(project, ask=False).reason


def standing_of(project: Path, *, ask: bool = True) -> RunStanding:
    """Return how the latest run on a project stands; what cannot be read is a state, too.

    ask      whether the scheduler may be asked, which takes some seconds at most
    raises   MissingInputError if there is no project
    """
    submitted = read_submission(project)
    if submitted is not None and not epoch.used_epochs(project):
        return _not_begun(submitted.job, ask=ask)
    require_project(project)
    try:
        return _standing(project, ask=ask)
    except (MpiparError, OSError) as error:
        why = f"how the latest run stands cannot be read: {error}"
        return RunStanding(RunState.UNREADABLE, why)


def _standing(project: Path, *, ask: bool) -> RunStanding:
    newest, found = 0, None
    while found is None or newest != epoch.used_epochs(project)[-1]:  # one may begin as we read
        newest = epoch.used_epochs(project)[-1]
        found = _standing_in(project, newest, ask=ask)
    return found


def _standing_in(project: Path, newest: int, *, ask: bool) -> RunStanding:
    claim = epoch.read_claim(project, newest)
    found = status.read_status(project) or {}
    silence = _silence(project, newest, found)
    if epoch.is_marked(project, schema.released_name(newest)) or "ended" in found:
        # without the mark: it is lost, or could not be written
        state, reason = _ended(status.read_verdict(project))
    elif epoch.is_marked(project, schema.unlocked_name(newest)):
        state, reason = RunState.DEAD, f"its writer was declared dead by `mpipar unlock`; {GO_ON}"
    else:
        state, reason = _not_closed(project, newest, claim, silence, ask=ask)
    batch, job = claim.batch if claim else None, JobState.UNKNOWN
    if ask and claim is not None and state in {RunState.CUT_OFF, RunState.DEAD, RunState.FAILED}:
        since = submitted_since(project, epoch.claim_path(project, newest))
        batch = since or batch
        job = job_state(batch) if since or state is not RunState.FAILED else JobState.UNKNOWN
        if batch is not None and _starts_again(job, is_new=since is not None):
            state = RunState.QUEUED
            reason = f"{batch.system} job {batch.job} is to start again; {reason}"
    verdict = status.read_verdict(project)
    return RunStanding(state, reason, claim, found, verdict, silence, batch, job)


def _starts_again(job: JobState, *, is_new: bool) -> bool:
    """Whether a job will go on with a run, or has just started to; `is_new`: submitted since."""
    return job is JobState.QUEUED or (is_new and job is JobState.RUNNING)


def _not_begun(batch: BatchJob, *, ask: bool) -> RunStanding:
    """Return how a run stands that was submitted, and of which nothing is written yet."""
    name = f"{batch.system} job {batch.job}"
    job = job_state(batch) if ask else JobState.UNKNOWN
    if job is JobState.OVER:
        why = f"{name} ended before the run began; see {schema.JOB}/{LOG}"
        return RunStanding(RunState.FAILED, why, batch=batch, job=job)
    words = {
        JobState.QUEUED: "waits in the queue",
        JobState.RUNNING: "has started; nothing is written yet",
    }
    told = words.get(job, "was submitted; how it stands can be asked where the scheduler is")
    return RunStanding(RunState.QUEUED, f"{name} {told}", batch=batch, job=job)


def _ended(verdict: dict[str, Any] | None) -> tuple[RunState, str]:
    verdict = verdict or {"verdict": "none", "reason": "no verdict can be read"}
    states = {"done": RunState.DONE, "failed": RunState.FAILED}
    state = states.get(verdict["verdict"], RunState.CUT_OFF)
    if verdict["reason"] == schema.NOT_ENDED:
        return state, "the latest run has closed it without a word about how it ended"
    return state, f"the latest run has ended: {verdict['verdict']} ({verdict['reason']})"


def _not_closed(
    project: Path, newest: int, claim: WriterClaim | None, silence: float | None, *, ask: bool
) -> tuple[RunState, str]:
    beat = _last_beat(silence)
    lease = claim.lease if claim else LEASE
    is_fresh = silence is not None and silence <= LEASES_TO_WATCH * lease
    fresh = RunState.RUNNING if is_fresh else RunState.DEAD
    if claim is None:
        return fresh, f"who wrote epoch {newest} cannot be read; {beat}"
    own = evidence.this_process(newest + 1, history.identity_of(project))
    process = evidence.process_evidence(claim, own)
    if process is OwnerProcess.ALIVE:
        return RunState.RUNNING, f"is being written by {claim.owner()}; {beat}"
    if process is OwnerProcess.GONE:
        return RunState.DEAD, f"the latest run was killed ({claim.owner()}); {GO_ON}"
    is_late = silence is None or silence > lease
    if ask and is_late and job_is_over(claim.batch):
        return RunState.DEAD, f"its job has ended, and it was not closed ({claim.owner()}); {GO_ON}"
    return fresh, f"the latest run has not closed it ({claim.owner()}); {beat}"


def _silence(project: Path, newest: int, found: dict[str, Any]) -> float | None:
    """Return the seconds since the last heart-beat, or since the claim; None if neither is known.

    The writer's clock may be behind ours: the file server's, if that is another one, counts too.
    """
    updated = found.get("updated")
    times = [float(updated)] if isinstance(updated, int | float) else []
    with contextlib.suppress(OSError):
        named = project / schema.STATUS if found else epoch.claim_path(project, newest)
        times.append(named.stat().st_mtime)
    return max(0.0, time.time() - max(times)) if times else None


def _last_beat(silence: float | None) -> str:
    return "there is no heart-beat" if silence is None else f"last heart-beat {silence:.0f} s ago"
