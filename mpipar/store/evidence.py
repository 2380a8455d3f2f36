"""Evidence about a claim's owner: this machine's processes, the scheduler, the heart-beat."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.store import schema
from mpipar.store.epoch import (
    LEASE,
    LEASES_TO_WATCH,
    BatchJob,
    Evidence,
    HeartbeatSeen,
    OwnerProcess,
    WriterClaim,
    is_given_up,
    is_marked,
)
from mpipar.store.journal import NONCE_BYTES
from mpipar.store.status import read_beat
from mpipar.system import boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mpipar.store.schema import Identity

log = logging.getLogger(__name__)

_PROC: Final = Path("/proc")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
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
_LOOKS_PER_LEASE: Final = 6


def this_process(epoch: int, identity: Identity, lease: float = LEASE) -> WriterClaim:
    """Return the claim that this process would make."""
    return WriterClaim(
        epoch=epoch,
        nonce=secrets.token_hex(NONCE_BYTES),
        host=socket.gethostname(),
        boot=boot_id(),
        namespace=process_namespace(),
        process=os.getpid(),
        process_start=process_state(os.getpid())[1],
        batch=batch_job(os.environ),
        started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        lease=lease,
        identity=identity,
    )


def process_namespace() -> str:
    """Return the kernel's id of the namespace of process ids; "" where the kernel has none."""
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def process_state(process: int) -> tuple[OwnerProcess, str]:
    """Return whether a process of this machine lives, and when it started, in kernel ticks."""
    try:
        text = (_PROC / str(process) / "stat").read_text()
    except OSError:
        return _state_by_signal(process), ""
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold blanks and brackets
    state, start = fields[0], fields[19]
    return (OwnerProcess.GONE if state in "ZX" else OwnerProcess.ALIVE), start


def _state_by_signal(process: int) -> OwnerProcess:
    """Return the state of a process that /proc does not show: signal 0 tells that it is gone."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return OwnerProcess.GONE
    except OSError:
        pass
    return OwnerProcess.UNKNOWN


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


def process_evidence(claim: WriterClaim, own: WriterClaim) -> OwnerProcess:
    """Whether the owner's process lives; UNKNOWN unless it is one of this machine."""
    machine = (own.host, own.boot, own.namespace)
    if not own.boot or (claim.host, claim.boot, claim.namespace) != machine:
        return OwnerProcess.UNKNOWN
    state, start = process_state(claim.process)
    if state is OwnerProcess.ALIVE and start != claim.process_start:
        return OwnerProcess.GONE  # another process has got its id
    if is_given_up(claim):
        return OwnerProcess.GONE  # this process has closed it; the mark is lost, or was not written
    return state


def is_restarted(claim: WriterClaim, own: WriterClaim) -> bool:
    """Whether our batch job is the claim's, started again after the scheduler ended it."""
    old, new = claim.batch, own.batch
    if old is None or new is None:
        return False
    same = (old.system, old.cluster, old.job) == (new.system, new.cluster, new.job)
    return same and new.restarts > old.restarts


def gather(project: Path, epoch: int, claim: WriterClaim | None, own: WriterClaim) -> Evidence:
    """Gather the evidence that needs no waiting; the scheduler is asked only if nothing else tells.

    claim   of that epoch; None if it cannot be read
    own     the claim that this process would make
    """
    released = is_marked(project, schema.released_name(epoch))
    unlocked = is_marked(project, schema.unlocked_name(epoch))
    if claim is None or released or unlocked:
        return Evidence(released=released, unlocked=unlocked)
    process = process_evidence(claim, own)
    if process is not OwnerProcess.UNKNOWN:
        return Evidence(process=process)
    restarted = is_restarted(claim, own)
    return Evidence(restarted=restarted, job_over=not restarted and job_is_over(claim.batch))


def job_is_over(batch: BatchJob | None) -> bool:
    """Whether the scheduler says that a job has ended; False also if there is no answer."""
    if batch is None or not batch.cluster:
        return False
    return _slurm_job_is_over(batch) if batch.system == "slurm" else _sge_job_is_over(batch)


def _slurm_job_is_over(batch: BatchJob) -> bool:
    config = _output_of("scontrol", "show", "config")
    cluster = re.search(r"^ClusterName\s*=\s*(\S+)", config or "", re.MULTILINE)
    if cluster is None or cluster[1] != batch.cluster:
        return False  # another cluster that shares the disk: its job numbers mean nothing here
    answer = _output_of("scontrol", "show", "job", "-o", batch.job)
    if answer is None:
        return False
    if "Invalid job id" in answer:
        return True  # slurmctld keeps a job for minutes after its end, and then forgets it
    state = re.search(r"\bJobState=([A-Z_]+)", answer)
    restarts = re.search(r"\bRestarts=(\d+)", answer)
    restarted = restarts is not None and int(restarts[1]) > batch.restarts
    return restarted or (state is not None and state[1] in _ENDED_STATES)


def _sge_job_is_over(batch: BatchJob) -> bool:
    if _sge_cluster(os.environ) != batch.cluster:
        return False
    answer = _output_of("qstat", "-j", batch.job.split(".", maxsplit=1)[0])
    return answer is not None and "do not exist" in answer


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


def watch(
    project: Path,
    claim: WriterClaim | None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> HeartbeatSeen:
    """Watch the owner's heart-beat until it moves, or three leases have passed by our own clock."""
    lease = claim.lease if claim else LEASE
    owner = claim.nonce if claim else None
    first = read_beat(project, owner)
    end = clock() + LEASES_TO_WATCH * lease
    while clock() < end:
        sleep(lease / _LOOKS_PER_LEASE)
        beat = read_beat(project, owner)
        if beat is not None and beat != first:
            return HeartbeatSeen.MOVED
    return HeartbeatSeen.STOOD_STILL
