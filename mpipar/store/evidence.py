"""Evidence about a claim's owner: this machine's processes, the scheduler, the heart-beat."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.store import schema
from mpipar.store.batch_system import batch_job, job_is_over
from mpipar.store.epoch import (
    LEASE,
    LEASES_TO_WATCH,
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
    from collections.abc import Callable

    from mpipar.store.schema import Identity

log = logging.getLogger(__name__)

_PROC: Final = Path("/proc")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
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
