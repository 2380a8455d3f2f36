"""The table of a run: one row for each command, those that failed first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mpipar.errors import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mpipar.programs.commands.listing import Command, Key
    from mpipar.programs.commands.try_log import CommandOutcome

__all__ = ["DONE", "ReportRow", "one_line", "rows_of", "summary", "tsv"]

FAILURES_SHOWN: Final = 50
OTHERS_SHOWN: Final = 20
TEXT_WIDTH: Final = 60
COLUMNS: Final = (
    "line", "result", "exit_code", "signal", "tries", "host", "rank", "seconds", "log", "command",
)  # fmt: skip
FAILED, NOT_DONE, DONE = "failed", "not done", "done"


@dataclass(frozen=True)
class ReportRow:
    """A row of the table: one command and the outcome of its last try."""

    command: Command
    last: CommandOutcome | None  # None: not tried yet
    failed_now: bool  # whether all tries of this run have failed

    @property
    def result(self) -> str:
        """One of `failed`, `not done`, `done`."""
        if self.last is not None and self.last.is_done:
            return DONE
        return FAILED if self.failed_now else NOT_DONE


def rows_of(
    commands: Iterable[Command], outcomes: Iterable[CommandOutcome], failed: set[Key]
) -> list[ReportRow]:
    """Return a row for each command: those that failed, then those not done, then those done."""
    last: dict[Key, CommandOutcome] = {}
    for outcome in outcomes:
        if outcome.key not in last or not last[outcome.key].is_done:
            last[outcome.key] = outcome
    rows = [
        ReportRow(command, last.get(command.key), command.key in failed) for command in commands
    ]
    return sorted(
        rows, key=lambda row: ((FAILED, NOT_DONE, DONE).index(row.result), row.command.line)
    )


def summary(rows: Sequence[ReportRow], where: str) -> list[str]:
    """Return the table's lines for a person: the failures, and the other rows if they are few."""
    failed = [row for row in rows if row.result == FAILED]
    others = rows[len(failed) :]
    shown = [*failed[:FAILURES_SHOWN], *(others if len(others) <= OTHERS_SHOWN else ())]
    cells = [("line", "result", "tries", "host", "seconds", "command")]
    cells += [_cells(row) for row in shown]
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    lines = []
    for line, result, tries, host, seconds, text in cells if shown else []:
        lines.append(
            f"{line:>{widths[0]}}  {result:<{widths[1]}}  {tries:>{widths[2]}}  "
            f"{host:<{widths[3]}}  {seconds:>{widths[4]}}  {text}"
        )
    if len(shown) < len(rows):
        lines.append(f"all {counted(len(rows), 'command')}: {where}")
    return lines


def one_line(command: Command) -> str:
    """Return a command's text on one line, cut if it is long."""
    text = " ".join(command.text.split())
    text = text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 3]}..."
    return text.encode("utf-8", "replace").decode()


def _cells(row: ReportRow) -> tuple[str, str, str, str, str, str]:
    last = row.last
    text = one_line(row.command)
    if last is None:
        return str(row.command.line), row.result, "0", "-", "-", text
    seconds = "-" if last.seconds is None else f"{last.seconds:.1f}"
    result = row.result if row.result == DONE else f"{row.result}: {last}"
    return str(row.command.line), result, str(last.number), last.host or "-", seconds, text


def tsv(rows: Iterable[ReportRow]) -> bytes:
    """Return the whole table with tabs between columns; line breaks in commands are escaped."""
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(_fields(row)) for row in rows]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _fields(row: ReportRow) -> list[str]:
    escapes = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
    text = row.command.text.translate(escapes)
    last = row.last
    if last is None:
        return [str(row.command.line), row.result, "", "", "0", "", "", "", "", text]
    result = row.result if row.result == DONE or not last.reason else f"{row.result}: {last.reason}"
    known = (last.code, last.signal, last.number, last.host, last.rank, last.seconds)
    values = ["" if value is None else str(value) for value in known]
    return [str(row.command.line), result.translate(escapes), *values, last.log, text]
