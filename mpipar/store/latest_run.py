"""How the latest run on a project stands: it goes on, has ended, or was killed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mpipar.errors import MpiparError
from mpipar.store import epoch, evidence, history, schema
from mpipar.store.epoch import OwnerProcess
from mpipar.store.status import read_status, read_verdict

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.store.epoch import WriterClaim

__all__ = ["latest_run", "writers"]


def writers(project: Path) -> list[WriterClaim]:
    """Return the claims of all epochs, oldest first; those that cannot be read are left out."""
    claims = (epoch.read_claim(project, number) for number in epoch.epochs(project))
    return [claim for claim in claims if claim is not None]


def latest_run(project: Path) -> str:
    """Return how the latest run stands, in words; nothing is written, and nobody is waited for."""
    try:
        newest = max(epoch.used_epochs(project), default=0)
        claim = epoch.read_claim(project, newest)
        if epoch.is_marked(project, schema.released_name(newest)):
            return _ended(project)
        status = read_status(project) or {}
        if claim is None:
            return f"who wrote epoch {newest} cannot be read; {_last_beat(status)}"
        if "ended" in status:  # the mark is lost, or could not be written
            return _ended(project)
        return _not_closed(claim, status, project)
    except (MpiparError, OSError) as error:
        return f"how the latest run stands cannot be read: {error}"


def _ended(project: Path) -> str:
    verdict = read_verdict(project) or {"verdict": "none", "reason": ""}
    if verdict["reason"] == schema.NOT_ENDED:
        return "the latest run has closed it without a word about how it ended"
    return f"the latest run has ended: {verdict['verdict']} ({verdict['reason']})"


def _not_closed(claim: WriterClaim, status: dict[str, Any], project: Path) -> str:
    own = evidence.this_process(claim.epoch + 1, history.identity_of(project))
    state = evidence.process_evidence(claim, own)
    if state is OwnerProcess.ALIVE:
        return f"is being written by {claim.owner()}; {_last_beat(status)}"
    if state is OwnerProcess.GONE:
        return f"the latest run was killed ({claim.owner()}); go on with --resume"
    return f"the latest run has not closed it ({claim.owner()}); {_last_beat(status)}"


def _last_beat(status: dict[str, Any]) -> str:
    updated = status.get("updated")
    if not isinstance(updated, int | float):
        return "there is no heart-beat"
    return f"last heart-beat {max(0.0, time.time() - updated):.0f} s ago"
