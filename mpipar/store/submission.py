"""The folder `job/` of a run that was submitted: script, log, and which batch job it is.

It may be there before the run itself, so that a run that waits in the queue has a folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mpipar.store import durable, schema
from mpipar.store.epoch import BatchJob

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "IDS",
    "LOG",
    "SCRIPT",
    "Submission",
    "read_submission",
    "record_submission",
    "submitted_since",
]

SCRIPT: Final = "job.sh"
LOG: Final = "log.txt"
IDS: Final = "ids"  # one line for each time it was submitted; a script may add its own
FACTS: Final = "submission.json"


@dataclass(frozen=True)
class Submission:
    """A run's job, as it was submitted last."""

    job: BatchJob
    kind: str  # of the run: "refine", "run"
    time: float  # seconds since 1970


def record_submission(project: Path, submission: Submission) -> None:
    """Record the job that a run has been submitted as. Raises OutputError or DiskFullError."""
    folder, job = project / schema.JOB, submission.job
    facts = {
        "system": job.system,
        "cluster": job.cluster,
        "kind": submission.kind,
        "time": submission.time,
    }
    data = schema.encode(facts)
    with durable.named_errors(folder, len(data)):
        (folder / FACTS).write_bytes(data)
        with (folder / IDS).open("a", encoding="ascii") as file:
            file.write(f"{job.job}\n")


def read_submission(project: Path) -> Submission | None:
    """Return a run's latest job; None if mpipar has not submitted it, or nobody can read that."""
    try:
        facts: dict[str, Any] = schema.decode((project / schema.JOB / FACTS).read_bytes())
        ids = (project / schema.JOB / IDS).read_text(encoding="ascii").split()
        job = BatchJob(facts["system"], facts["cluster"], ids[-1], 0)
        return Submission(job, facts["kind"], float(facts["time"]))
    except (OSError, ValueError, KeyError, IndexError):
        return None


def submitted_since(project: Path, claim: Path) -> BatchJob | None:
    """Return the job that a run was submitted as after a claim was made; None if it was not.

    Both times are of one file system, so no clocks of two hosts are compared.
    """
    try:
        since = (project / schema.JOB / IDS).stat().st_mtime_ns > claim.stat().st_mtime_ns
    except OSError:
        return None
    submitted = read_submission(project) if since else None
    return submitted.job if submitted else None
