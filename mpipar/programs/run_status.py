"""What `mpipar status` tells of a run: how it stands, and how far it is; `docs/status.md`.

Read from status.json, the claims and the journal, on any host, while the run writes.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import (
    MissingInputError,
    MpiparError,
    RequeueError,
    TaskFailedError,
    exit_code_named,
)
from mpipar.store import Project, RunState, standing_of
from mpipar.store.submission import read_submission

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mpipar.store import RunStanding

__all__ = ["SCHEMA", "run_status", "runs_in", "wait_for_end"]

SCHEMA: Final = 1
REPORTED: Final = (
    "phase",
    "done",
    "total",
    "unit",
    "phase_seconds_left",
    "run_seconds_left",
    "running",
    "failed",
    "retried",
    "done_before",
    "workers",
    "tasks",
    "bytes_served",
    "master_memory",
)
"""What programs report in status.json; null where the run, or its program, has not said it."""
LOOK_SECONDS: Final = 2.0  # between two looks at a run that is waited for
JOB_PATIENCE: Final = 60.0  # seconds for a job whose run was cut off to queue itself again
OVER: Final = {state.value for state in (RunState.DONE, RunState.FAILED)}
GOES_ON: Final = {state.value for state in (RunState.RUNNING, RunState.QUEUED)}


def runs_in(folder: Path) -> list[Path]:
    """Return the runs in a folder, by name; or the folder itself, if it is a run.

    raises   MissingInputError if there is none
    """
    if _is_run(folder):
        return [folder]
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: there is no such folder")
    try:
        found = [entry for entry in folder.iterdir() if entry.is_dir() and _is_run(entry)]
    except OSError as error:
        raise MissingInputError(f"{folder}: cannot be read: {error.strerror}") from error
    if not found:
        raise MissingInputError(
            f"{folder}: is no run's folder, and holds none (a job that was not submitted by "
            "`mpipar submit` has none before its first start)"
        )
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _is_run(folder: Path) -> bool:
    if read_submission(folder) is not None:
        return True
    with suppress(OSError):
        return any(entry.suffix == ".claim" for entry in (folder / "epoch").iterdir())
    return False


def run_status(folder: Path) -> dict[str, Any]:
    """Return how a run stands and how far it is, as `docs/status.md` describes it.

    raises   MissingInputError if there is no run
    """
    standing = standing_of(folder)
    kind, created, history = _kept(folder)
    last = history[-1] if history else {}
    found = standing.status or {}
    reported = found.get("last", {}) if "ended" in found else found
    goes_on = standing.state.value in GOES_ON
    return {
        "folder": str(folder.absolute()),
        "kind": kind,
        "state": standing.state.value,
        "reason": standing.reason,
        "exit_code": _exit_code(standing),
        "created": created,
        "writer": _writer(standing),
        "heartbeat": {"count": found.get("beat"), "seconds_ago": _rounded(standing.silence)},
        "verdict": None if goes_on else standing.verdict,
        **{name: reported.get(name) for name in REPORTED},
        "iteration": len(history) if kind == "refine" else None,
        "resolution": last.get("resolution"),
        "iterations": history,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _kept(folder: Path) -> tuple[str | None, float | None, list[dict[str, Any]]]:
    """Return kind and creation time of a run, and the finished iterations of a refinement."""
    with suppress(MpiparError, OSError), Project.open(folder, writer=False) as project:
        commits = project.commits()
        history = commits[-1].attributes.get("history", []) if commits else []
        names = ("kind", "resolution", "jumped")
        steps = [
            {"iteration": number, **{name: step.get(name) for name in names}}
            for number, step in enumerate(history, start=1)
        ]
        return project.kind, project.created, steps
    submitted = read_submission(folder)
    return (submitted.kind, submitted.time, []) if submitted else (None, None, [])


def _writer(standing: RunStanding) -> dict[str, Any] | None:
    claim, batch = standing.claim, standing.batch
    if claim is None and batch is None:
        return None
    return {
        "host": claim.host if claim else None,
        "process": claim.process if claim else None,
        "started": claim.started if claim else None,
        "epoch": claim.epoch if claim else 0,
        "job": None
        if batch is None
        else {
            "system": batch.system,
            "id": batch.job,
            "restarts": batch.restarts,
            "state": standing.job.value,
        },
    }


def _exit_code(standing: RunStanding) -> int | None:
    """Return the exit code of a run that is over, or 75 if it can go on; None while it does."""
    if standing.state.value in GOES_ON:
        return None
    if standing.state is RunState.DONE:
        return 0
    if standing.state is RunState.FAILED:
        name = str((standing.verdict or {}).get("reason", "")).partition(":")[0]
        return exit_code_named(name) or TaskFailedError.exit_code
    return RequeueError.exit_code


def wait_for_end(
    folder: Path,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Wait until nobody goes on with a run; return its status then.

    A batch job that still runs after its run was cut off has some time to queue itself again.

    say   gets a line whenever the run's state changes
    """
    told, cut_off_at = "", clock()
    while True:
        status = run_status(folder)
        if status["state"] != told:
            told, cut_off_at = status["state"], clock()
            say(f"{folder}: {told}: {status['reason']}")
        job = (status["writer"] or {}).get("job") or {}
        patience = JOB_PATIENCE if job.get("state") == "running" else 0.0
        if told in OVER or (told not in GOES_ON and clock() - cut_off_at >= patience):
            return status
        sleep(LOOK_SECONDS)
