"""The project folder of a run: sealed files, journal and epochs; one writer (see FORMAT.md)."""

from mpipar.store.check import check, unlock
from mpipar.store.folder import next_free
from mpipar.store.latest_run import RunStanding, RunState, latest_run, standing_of, writers
from mpipar.store.project import Commit, Project
from mpipar.store.repair import repair
from mpipar.store.salvage import salvage
from mpipar.store.schema import CommitInfo
from mpipar.store.status import read_status, read_verdict

__all__ = [
    "Commit",
    "CommitInfo",
    "Project",
    "RunStanding",
    "RunState",
    "check",
    "latest_run",
    "next_free",
    "read_status",
    "read_verdict",
    "repair",
    "salvage",
    "standing_of",
    "unlock",
    "writers",
]
