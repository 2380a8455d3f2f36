"""Checking a project folder, and unlocking one whose owner a person knows to be dead."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from mpipar.errors import MpiparError, ProjectLockedError, StoreError, reason_of
from mpipar.store import (
    durable,
    epoch,
    evidence,
    history,
    project_index,
    published,
    schema,
    segments,
    status,
    takeover,
    witnesses,
)
from mpipar.store.epoch import OwnerProcess
from mpipar.store.published import ANEW

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.store.history import History
    from mpipar.store.project_index import ListedCommits
    from mpipar.store.schema import CommitInfo

HARMLESS: Final = "the next run on this project does without it"


def check(path: Path) -> list[str]:
    """Return what is wrong with a project, one line each; an empty list if it is sound.

    Writes nothing. What a killed run leaves is not wrong: a torn last batch in a journal,
    unfinished files, segments without a record, and a project.h5 without the newest commit.
    """
    try:
        takeover.require_project(path)
    except StoreError as error:
        return [str(error)]
    problems = [*_claim_problems(path), *status.problems(path)]
    listed, entry_point = _entry_point(path)  # first, so that the journal is not older
    try:
        names = witnesses.segment_names(path)
        found = history.read(path)
    except MpiparError as error:
        return [*problems, *({str(error)} - {*problems})]
    problems += _wrong_order(path, found)
    for info in found.commits:
        problems += _segment_problems(path, info)
    if listed is None and not entry_point and found.commits:
        entry_point = [f"{path / schema.PROJECT}: is missing; {ANEW}"]
    if listed is not None:
        entry_point = published.index_problems(path, found, listed)
    problems += [*entry_point, *witnesses.beyond_journal(path, found, listed, names)]
    return problems + published.export_problems(path, found) + _verdict_problems(path, found)


def _verdict_problems(path: Path, found: History) -> list[str]:
    if status.problem(path / schema.VERDICT):
        return []  # it is damaged, and that is said
    return published.verdict_problems(path, found, status.shown_verdict(path))


def _claim_problems(path: Path) -> list[str]:
    return [line for number in epoch.used_epochs(path) for line in _problems_of_epoch(path, number)]


def _problems_of_epoch(path: Path, number: int) -> list[str]:
    problems = []
    try:
        claim = epoch.claim_path(path, number)
        if epoch.read_claim(path, number) is None:
            is_there = number in epoch.epochs(path)
            problems.append(f"{claim}: is {'damaged' if is_there else 'missing'}; {HARMLESS}")
        epoch.released_journal(path, number)
    except MpiparError as error:
        problems.append(str(error))
    except ValueError:
        mark = path / schema.EPOCH / schema.released_name(number)
        problems.append(f"{mark}: is damaged; {HARMLESS}")
    return problems


def _wrong_order(path: Path, found: History) -> list[str]:
    numbers = [info.number for info in found.commits]
    if numbers == sorted(set(numbers)):
        return []
    return [f"{path / schema.JOURNAL}: commits do not follow each other: {numbers}"]


def _segment_problems(path: Path, info: CommitInfo) -> list[str]:
    segment = path / schema.SEGMENTS / info.segment
    try:
        sealed = segments.seal_of(segment)
        if (sealed.size, sealed.sha256) != (info.size, info.sha256):
            return [f"{segment}: is not what commit {info.number} wrote (size or sha256 differ)"]
        segments.StoredArrays(segment)
    except OSError as error:
        return [f"{segment}: cannot be read: {reason_of(error)}; commit {info.number} needs it"]
    except MpiparError as error:
        return [str(error)]
    return []


def _entry_point(path: Path) -> tuple[ListedCommits | None, list[str]]:
    """What project.h5 lists, and its problems: it may lack the newest commits."""
    try:
        return project_index.listed_commits(path), []
    except MpiparError as error:
        return None, [f"{error}; {ANEW}"]


def unlock(path: Path, *, force: bool = False) -> str:
    """Let the next writer pass over the newest claim, on the user's word; return what was done.

    An owner that lives after all stops at its next write, and nothing that it adds then counts.

    force    unlock even if the owner's process is seen to live on this machine
    raises   ProjectLockedError if the owner lives and `force` is not given
    """
    takeover.require_project(path)
    newest = epoch.used_epochs(path)[-1]
    claim = epoch.read_claim(path, newest)
    owner = claim.owner() if claim else f"an unreadable claim ({schema.claim_name(newest)})"
    for name, how in (
        (schema.released_name(newest), "closed"),
        (schema.unlocked_name(newest), "unlocked already"),
    ):
        if epoch.is_marked(path, name):
            return f"{path}: nothing to do: the last writer was {owner}, and its claim is {how}"
    if claim is not None and not force:
        _refuse_if_alive(path, claim)
    with durable.named_errors(path, schema.SMALL_FILE):
        by = f"user {os.getuid()} on {socket.gethostname()}"
        epoch.mark(path, schema.unlocked_name(newest), by)
    beat = (status.read_status(path) or {}).get("beat", "none")
    return (
        f"{path}: unlocked. It was claimed by {owner} (epoch {newest}, last heart-beat {beat}). "
        f"The next writer takes epoch {newest + 1}; if the old one lives after all, it stops at "
        "its next write and nothing more of it counts"
    )


def _refuse_if_alive(path: Path, claim: epoch.WriterClaim) -> None:
    own = evidence.this_process(claim.epoch + 1, claim.identity)
    if evidence.process_evidence(claim, own) is OwnerProcess.ALIVE:
        raise ProjectLockedError(
            f"{path}: {claim.owner()} is alive on this machine; end it first, or add --force"
        )
