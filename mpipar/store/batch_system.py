"""The batch system: which job this process is, and what the scheduler says of a job."""

from __future__ import annotations

import os
import re
import subprocess
from enum import Enum
from typing import TYPE_CHECKING, Final

from mpipar.store.epoch import BatchJob

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JobState", "batch_job", "cluster_of", "job_is_over", "job_state"]

_SCHEDULER_SECONDS: Final = 10.0  # to wait for an answer
# SLURM's states of a job whose processes have ended
_ENDED_STATES: Final = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
_WAITING_STATES: Final = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
_SGE_STATE: Final = 4  # column of qstat's table


class JobState(Enum):
    """What the scheduler says of a job; UNKNOWN where it cannot be asked."""

    QUEUED = "queued"  # for the first time, or again; or it has just started again
    RUNNING = "running"  # still, in the start that was asked about
    OVER = "over"
    UNKNOWN = "unknown"


def batch_job(environment: Mapping[str, str]) -> BatchJob | None:
    """Return the batch job that environment variables describe; None outside of a job."""
    slurm = environment.get("SLURM_JOB_ID")
    if slurm:
        restarts = _count(environment.get("SLURM_RESTART_COUNT"))
        return BatchJob("slurm", environment.get("SLURM_CLUSTER_NAME", ""), slurm, restarts)
    sge = environment.get("JOB_ID")
    if sge and "SGE_ROOT" in environment:
        task = environment.get("SGE_TASK_ID", "undefined")
        job = sge if task == "undefined" else f"{sge}.{task}"
        return BatchJob("sge", _sge_cluster(environment), job, _count(environment.get("RESTARTED")))
    return None


def _sge_cluster(environment: Mapping[str, str]) -> str:
    return f"{environment.get('SGE_ROOT', '')}/{environment.get('SGE_CELL', 'default')}"


def _count(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def job_is_over(batch: BatchJob | None) -> bool:
    """Whether that start of a job has ended, as the scheduler says; False without an answer."""
    if batch is None or not batch.cluster:
        return False
    if batch.system != "slurm":
        return job_state(batch) is JobState.OVER
    answer = _slurm_answer(batch)
    if answer is None:
        return False
    return _slurm_state(answer) is JobState.OVER or _slurm_restarts(answer) > batch.restarts


def job_state(batch: BatchJob | None) -> JobState:
    """Return what the scheduler says of a job; waits some seconds for its answer at most."""
    if batch is None or not batch.cluster:
        return JobState.UNKNOWN
    if batch.system != "slurm":
        return _sge_state(batch)
    answer = _slurm_answer(batch)
    if answer is None:
        return JobState.UNKNOWN
    state = _slurm_state(answer)
    if state is JobState.RUNNING and _slurm_restarts(answer) > batch.restarts:
        return JobState.QUEUED
    return state


def cluster_of(system: str) -> str:
    """Return the name of this host's cluster, as claims of jobs have it; "" if not known."""
    if system != "slurm":
        return _sge_cluster(os.environ)
    config = _output_of("scontrol", "show", "config")
    found = re.search(r"^ClusterName\s*=\s*(\S+)", config or "", re.MULTILINE)
    return found[1] if found else ""


def _slurm_answer(batch: BatchJob) -> str | None:
    """Return what `scontrol show job` says; None if there is no answer of the job's cluster."""
    if cluster_of("slurm") != batch.cluster:
        return None  # another cluster that shares the disk: its job numbers mean nothing here
    return _output_of("scontrol", "show", "job", "-o", batch.job)


def _slurm_state(answer: str) -> JobState:
    if "Invalid job id" in answer:
        return JobState.OVER  # slurmctld keeps a job for minutes after its end, then forgets it
    state = re.search(r"\bJobState=([A-Z_]+)", answer)
    if state is None:
        return JobState.UNKNOWN
    if state[1] in _ENDED_STATES:
        return JobState.OVER
    return JobState.QUEUED if state[1] in _WAITING_STATES else JobState.RUNNING


def _slurm_restarts(answer: str) -> int:
    restarts = re.search(r"\bRestarts=(\d+)", answer)
    return int(restarts[1]) if restarts else 0


def _sge_state(batch: BatchJob) -> JobState:
    if _sge_cluster(os.environ) != batch.cluster:
        return JobState.UNKNOWN
    job, _, task = batch.job.partition(".")
    answer = _output_of("qstat", "-j", job)
    if answer is None:
        return JobState.UNKNOWN
    if "do not exist" in answer:
        return JobState.OVER
    for line in (_output_of("qstat", "-u", "*") or "").splitlines():
        words = line.split()  # job, priority, name, user, state, day, time, queue, slots, task
        if len(words) > _SGE_STATE and words[0] == job and task in {"", words[-1]}:
            return JobState.QUEUED if "q" in words[_SGE_STATE] else JobState.RUNNING
    return JobState.UNKNOWN


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SCHEDULER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout
