"""status.json, whose heart-beat tells other hosts that the writer lives, and verdict.json."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import DiskFullError, ProjectLockedError, StoreError, reason_of
from mpipar.store import durable, epoch, history, published, schema

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.store.epoch import Ownership, WriterClaim

log = logging.getLogger(__name__)

UNTOLD: Final = "closed without a word about how it ended"


def read_status(project: Path) -> dict[str, Any] | None:
    """Read the status of the newest epoch; None if there is none, or only that of an older one."""
    value = _read(project / schema.STATUS)
    newest = max(epoch.used_epochs(project), default=0)
    return None if value is None or value.get("epoch", newest) != newest else value


def read_verdict(project: Path) -> dict[str, Any] | None:
    """Read how the latest run ended; `requeue` also while it runs, and if it was killed.

    If verdict.json is missing, damaged or of an older epoch, the journal tells.
    """
    value = _read(project / schema.VERDICT)
    newest = max(epoch.used_epochs(project), default=0)
    if value is not None and value.get("epoch") == newest:
        return value
    recorded = published.newest_verdict(history.read(project)) if newest else None
    claim = epoch.read_claim(project, newest) if newest else None
    if claim is not None and (recorded is None or recorded["epoch"] != newest):
        return verdict_of(claim, "requeue", schema.NOT_ENDED)  # killed before its first verdict
    return recorded or value


def read_beat(project: Path, owner: str | None) -> tuple[object, object] | None:
    """Read what changes with each heart-beat: owner and counter; None if another owner wrote it.

    owner   None: any owner

    The file is opened each time, because that makes an NFS client ask the server.
    """
    status = read_status(project)
    if status is None or owner not in {None, status.get("owner")}:
        return None
    return status.get("owner"), status.get("beat")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = schema.decode_signed(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value


def problems(project: Path) -> list[str]:
    """Return a line for each of status.json and verdict.json that is there and is damaged."""
    return [line for name in (schema.STATUS, schema.VERDICT) for line in problem(project / name)]


def shown_verdict(project: Path) -> dict[str, Any] | None:
    """Return what verdict.json says, of whatever epoch; None if it cannot be read."""
    return _read(project / schema.VERDICT)


def problem(path: Path) -> list[str]:
    """Return a line if status.json or verdict.json is there and is damaged."""
    try:
        schema.decode_signed(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError:
        return [f"{path}: is damaged; the next run on this project replaces it"]
    except OSError as error:
        return [f"{path}: cannot be read: {reason_of(error)}"]
    return []


class Heartbeat:
    """Writes status.json: when the program reports, and every third of a lease from a thread."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        self._fields: dict[str, Any] = {}
        self._counter = 0
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._beat()
        # daemon: the thread must not keep a process alive whose work is done
        self._thread = threading.Thread(target=self._run, name="mpipar heart-beat", daemon=True)
        self._thread.start()

    def report(self, fields: dict[str, Any]) -> None:
        """Replace the program's fields, and write the status."""
        with self._guard:
            self._fields = fields
        self._try_to_beat()

    def _run(self) -> None:
        pause = self._ownership.claim.lease / 3
        with contextlib.suppress(ProjectLockedError):  # the program gets it at its next write
            while not self._stop.wait(pause):
                self._try_to_beat()

    def _try_to_beat(self) -> None:
        """Write the status; an error is only logged: space may be free again at the next commit."""
        try:
            with self._ownership.told_first():
                self._beat()
        except (StoreError, DiskFullError, OSError) as error:
            log.warning("no heart-beat: %s", error)

    def _beat(self) -> None:
        claim = self._ownership.claim
        with self._guard:
            self._counter += 1
            status = {
                **self._fields,
                "beat": self._counter,
                "owner": claim.nonce,
                "epoch": claim.epoch,
                "host": claim.host,
                "process": claim.process,
                "job": claim.batch.job if claim.batch else None,
                "started": claim.started,
                "updated": time.time(),
                "lease": claim.lease,
            }
            # whole on the disk, but an older one may come back after a power loss: it is renewed
            _replace(self._ownership, schema.STATUS, status, sync=False)

    def stop(self) -> None:
        """End the thread, and wait for its end."""
        self._stop.set()
        self._thread.join()

    def end(self, verdict: dict[str, Any]) -> None:
        """End the thread, and write the status of a run that is over: nothing says that it runs.

        verdict   what verdict.json says
        """
        self.stop()
        if os.getpid() != self._ownership.claim.process:
            return  # a forked child closes its copy
        reason = verdict["reason"]
        with self._guard:
            self._fields = {
                "ended": time.time(),
                "verdict": verdict["verdict"],
                "reason": UNTOLD if reason == schema.NOT_ENDED else reason,
                "last": self._fields,
            }
        with contextlib.suppress(ProjectLockedError):  # the next writer's status is there
            self._try_to_beat()


def verdict_of(claim: WriterClaim, verdict: str, reason: str) -> dict[str, Any]:
    """Return what verdict.json says: how this run ended, and which job it was."""
    return {
        "verdict": verdict,
        "reason": reason,
        "job": claim.batch.job if claim.batch else None,
        "system": claim.batch.system if claim.batch else None,
        "restarts": claim.batch.restarts if claim.batch else 0,
        "epoch": claim.epoch,
        "time": time.time(),
    }


def write_verdict(ownership: Ownership, value: dict[str, Any]) -> None:
    """Replace verdict.json, durable."""
    _replace(ownership, schema.VERDICT, value, sync=True)


def _replace(ownership: Ownership, name: str, value: dict[str, Any], *, sync: bool) -> None:
    data = schema.sign(schema.encode(value))
    path = ownership.project / name
    temporary = path.with_name(schema.temporary_name(ownership.claim.epoch, name))
    ownership.verify()
    with durable.named_errors(path, len(data)):
        durable.write_temporary(temporary, data)
        durable.replace(temporary, path, verify=ownership.verify, sync=sync)
