"""What the journal says of the files that are replaced: exports, verdict.json, project.h5.

    export:   file written under a temporary name --> record "exporting" --> rename
              record "export", with the next batch: the rename is done
    verdict:  record --> verdict.json replaced

So a reader can tell the newest version of each file from an older one: from a backup, or from a
writer that was passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import reason_of
from mpipar.store import schema, segments
from mpipar.store.schema import EXPORT, EXPORTING, VERDICT_RECORD, ExportInfo

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.store.history import History
    from mpipar.store.project_index import ListedCommits

__all__ = ["export_problems", "index_problems", "newest_verdict", "verdict_problems"]

ANEW: Final = "the next run on this project makes it anew"


def newest_verdict(found: History) -> dict[str, Any] | None:
    """Return what verdict.json should say; None if the journal has no verdict."""
    verdicts = [r.payload for r in found.records if r.kind == VERDICT_RECORD]
    return schema.decode(verdicts[-1]) if verdicts else None


def verdict_problems(project: Path, found: History, shown: dict[str, Any] | None) -> list[str]:
    """Return a line if verdict.json is not the newest: that of an older epoch, or missing.

    shown   the contents of verdict.json; None if it is missing
    """
    verdicts = [r.payload for r in found.records if r.kind == VERDICT_RECORD]
    if not verdicts:
        return []
    # a kill, or a full disk, may have come between the last record and the file
    accepted = verdicts[-2:] if found.records[-1].kind == VERDICT_RECORD else verdicts[-1:]
    if shown in [schema.decode(payload) for payload in accepted]:
        return []
    path, epoch = project / schema.VERDICT, schema.decode(verdicts[-1])["epoch"]
    if shown is None:
        return [] if len(verdicts) == 1 else [f"{path}: is missing; {ANEW}"]
    return [f"{path}: is not the verdict of epoch {epoch}, the latest; {ANEW}"]


def index_problems(project: Path, found: History, listed: ListedCommits) -> list[str]:
    """Return a line if project.h5 is older than the journal.

    A kill may have come between the latest commit, the last record then, and project.h5.
    """
    there = {info.segment for info in listed.commits}
    missing = sum(info.segment not in there for info in found.commits)
    if not missing or (missing == 1 and _may_be_a_commit_behind(found)):
        return []
    newest = listed.commits[-1].number if listed.commits else "none"
    path, latest = project / schema.PROJECT, found.commits[-1].number
    return [f"{path}: its newest commit is {newest}, and {latest} is the latest; {ANEW}"]


def _may_be_a_commit_behind(found: History) -> bool:
    return not found.closed or found.records[-1].kind == schema.COMMIT


def export_problems(project: Path, found: History) -> list[str]:
    """Return a line for each export that is not as this run has written it."""
    lines = []
    for name, accepted in accepted_exports(found).items():
        path = project / name
        try:
            sealed = segments.seal_of(path)
        except FileNotFoundError:
            if accepted[0].is_done:
                lines.append(f"{path}: is missing; {_again(project, found)}")
            continue
        except OSError as error:
            lines.append(f"{path}: cannot be read: {reason_of(error)}")
            continue
        if (sealed.size, sealed.sha256) not in [(e.size, e.sha256) for e in accepted]:
            lines.append(
                f"{path}: is not what epoch {accepted[-1].epoch} wrote, the latest (size or sha256 "
                f"differ); {_again(project, found)}"
            )
    return lines


def accepted_exports(found: History) -> dict[str, list[ExportInfo]]:
    """The newest version of each export that is there, then those that may be in its place."""
    exports: dict[str, list[ExportInfo]] = {}
    for record in found.records:
        if record.kind in {EXPORT, EXPORTING}:
            info = schema.export_from_json(record.payload, is_done=record.kind == EXPORT)
            if info.is_done:
                exports[info.name] = [info]
            else:
                exports.setdefault(info.name, []).append(info)
    return exports


def _again(project: Path, found: History) -> str:
    return f"`mpipar {found.identity.kind} --resume --path {project}` writes it again"
