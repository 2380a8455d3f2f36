"""Becoming the writer of a project: judge the newest claim, wait for evidence, claim the next."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from mpipar.errors import CorruptStoreError, MissingInputError, MpiparError, ProjectLockedError
from mpipar.store import durable, epoch, evidence, history, schema, witnesses
from mpipar.store.epoch import LEASES_TO_WATCH, Decision, Verdict, WriterClaim, may_take_over
from mpipar.store.salvage import salvage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mpipar.store.history import History

log = logging.getLogger(__name__)


def require_project(path: Path) -> None:
    """Raise MissingInputError if there is no project in a folder."""
    if epoch.used_epochs(path):
        return
    if not path.is_dir():
        raise MissingInputError(f"{path}: no such project folder")
    raise MissingInputError(
        f"{path}: holds no project, or one whose creation was cut off before anything was stored; "
        "start the run anew, without --resume"
    )


def take_next_epoch(
    path: Path, lease: float, say: Callable[[str], None], *, agreeing: bool = True
) -> WriterClaim:
    """Claim the epoch after the newest, or raise ProjectLockedError that names the living owner.

    CorruptStoreError if anything names more than the journals hold, StoreError if a later version
    of mpipar made the project: then nothing is written.

    lease      seconds
    say        is called before the owner's heart-beat is watched, and with what was cut off
    agreeing   whether the journals must hold all that the other files name
    """
    identity = schema.for_writing(history.identity_of(path), str(path))
    while True:
        newest = epoch.used_epochs(path)[-1]
        older = epoch.read_claim(path, newest)
        own = evidence.this_process(newest + 1, identity, lease)
        decision = _judge(path, newest, older, own, say)
        if decision.verdict is Verdict.REFUSE:
            raise ProjectLockedError(_refusal(path, older, newest, decision))
        found = _agreeing(path) if agreeing else None  # before anything is written
        log.info("epoch %d may be passed over: %s", newest, decision.reason)
        try:
            with durable.named_errors(path, schema.SMALL_FILE):
                _publish(path, own)
        except _TakenError:
            continue  # another process was faster; it lives, and the error will name it
        if found is not None:  # not before: what a living writer is just writing is not cut off
            _say_what_is_cut_off(path, found, say)
        return own


def _agreeing(path: Path) -> History:
    try:
        return witnesses.read_agreeing(path)
    except CorruptStoreError as error:
        kept = "what can be read"
        with contextlib.suppress(MpiparError):
            kept = str(salvage(path))
        raise CorruptStoreError(
            f"{error}; nothing was written; `mpipar check --repair {path}` would bring back {kept}"
        ) from error


def _say_what_is_cut_off(path: Path, found: History, say: Callable[[str], None]) -> None:
    """Tell of a batch that a kill has cut off at the end of the newest journal."""
    if not found.pins or found.closed:
        return
    journal = path / schema.JOURNAL / schema.journal_name(found.epoch)
    with contextlib.suppress(OSError):
        more = journal.stat().st_size - found.pins[-1].size
        if more > 0:
            say(
                f"{journal}: ends in {more} bytes of a batch that was cut off; they stay there and "
                "do not count"
            )


class _TakenError(Exception):
    """Another process has published the same epoch."""


def _publish(path: Path, claim: WriterClaim) -> None:
    for name in schema.FOLDERS:  # one may have been lost
        (path / name).mkdir(exist_ok=True)
    try:
        epoch.publish_claim(path, claim)
    except FileExistsError as error:
        raise _TakenError from error


def _judge(
    path: Path,
    newest: int,
    older: WriterClaim | None,
    own: WriterClaim,
    say: Callable[[str], None],
) -> Decision:
    found = evidence.gather(path, newest, older, own)
    decision = may_take_over(older, found)
    if decision.verdict is not Verdict.WATCH:
        return decision
    lease = older.lease if older else epoch.LEASE
    owner = older.owner() if older else f"an unreadable claim ({schema.claim_name(newest)})"
    say(
        f"{path} is claimed by {owner}, of which nothing can be learned from here; watching its "
        f"heart-beat for up to {LEASES_TO_WATCH * lease:.0f} s"
    )
    return may_take_over(older, replace(found, beat=evidence.watch(path, older)))


def _refusal(path: Path, older: WriterClaim | None, newest: int, decision: Decision) -> str:
    owner = older.owner() if older else f"the owner of epoch {newest}"
    return (
        f"{path}: is being written by {owner}: {decision.reason}; wait until it ends, "
        f"or, if you know that it is dead, run `mpipar unlock {path}`"
    )
