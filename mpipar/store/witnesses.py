"""What else tells of commits: project.h5 and sealed segments, which are written beside the journal.

    record durable --> project.h5 lists the commit      so: listed, but not in the journal: damage
    segment sealed --> record durable                   so: one without a record may be a cut-off
                                                        commit; two of one epoch are damage

A file that only *cannot be read* proves nothing, and nothing is removed because of that.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mpipar.errors import CorruptStoreError, StoreError
from mpipar.store import durable, history, project_index, schema

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.store.history import History
    from mpipar.store.project_index import ListedCommits

__all__ = ["beyond_journal", "read_agreeing", "segment_names"]


def read_agreeing(project: Path) -> History:
    """Read the history; CorruptStoreError if anything names more than the journal holds."""
    try:
        listed = project_index.listed_commits(project)  # first, so that the journal is not older
    except StoreError:
        listed = None  # it is derived, and made anew
    names = segment_names(project)
    found = history.read(project)
    problems = beyond_journal(project, found, listed, names)
    if problems:
        raise CorruptStoreError("; ".join((*problems, history.REMEDY)))
    return found


def segment_names(project: Path) -> list[str]:
    """Return the names in segments/; none if there is no such folder."""
    try:
        return sorted(os.listdir(project / schema.SEGMENTS))  # noqa: PTH208 - names are enough
    except FileNotFoundError:
        return []
    except OSError as error:
        raise durable.not_readable(project / schema.SEGMENTS, error) from error


def beyond_journal(
    project: Path, found: History, listed: ListedCommits | None, names: list[str]
) -> list[str]:
    """Return a line for each witness of something durable that the journal does not hold.

    names   of the files in segments/
    """
    problems = []
    if listed is not None:
        problems = _beyond_by_index(project, found, listed)
    if not problems:
        problems = _beyond_by_segments(project, found, names)
    return problems


def _beyond_by_index(project: Path, found: History, listed: ListedCommits) -> list[str]:
    index, journals = project / schema.PROJECT, project / schema.JOURNAL
    kept = {(info.number, info.segment, info.sha256) for info in found.commits}
    counted = [c for c in listed.commits if c.segment not in found.pruned]  # it may be older
    more = [c for c in counted if (c.number, c.segment, c.sha256) not in kept]
    if more:
        numbers = ", ".join(str(info.number) for info in more)
        held = len(found.commits)
        return [
            f"{index}: lists commits that {journals} does not hold: {numbers} (it holds {held})"
        ]
    if listed.epoch > found.epoch:
        name = schema.journal_name(listed.epoch)
        return [f"{index}: was made in epoch {listed.epoch}, but {journals / name} holds nothing"]
    return []


def _beyond_by_segments(project: Path, found: History, names: list[str]) -> list[str]:
    """A line for segments of the newest epoch, or of one without a journal, that no record names.

    Segments of older epochs without a record are what was left when these epochs were passed over.
    """
    owners = {name: schema.epoch_of_segment(name) or 0 for name in names}
    extra = [name for name in names if owners[name] > found.epoch]
    if found.epoch and not found.closed:
        own = [info.segment for info in found.commits if info.epoch == found.epoch]
        last = max(map(_serial, own), default=0)
        later = [n for n in names if owners[n] == found.epoch and _serial(n) > last]
        extra += later if len(later) > 1 else []  # one: a commit that was cut off
    if not extra:
        return []
    return [
        f"{project / schema.SEGMENTS}: holds segments that no journal names: {', '.join(extra)}"
    ]


def _serial(segment: str) -> int:
    return int(segment.rpartition("-")[2].partition(".")[0])
