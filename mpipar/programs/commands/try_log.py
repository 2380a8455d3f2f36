"""What is kept of each try of a command: its output in a log, then its outcome in the journal.

A command is done when its record in the journal is durable, and the log is durable before that. So
whatever kills a run, the next run knows which commands are done, and their output can be read.
"""

from __future__ import annotations

import itertools
import json
import signal
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from mpipar.errors import CorruptStoreError
from mpipar.programs.commands.command_stage import CommandTry
from mpipar.store import durable, schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mpipar.programs.commands.dispatch import PendingCommand
    from mpipar.programs.commands.listing import Command, Key
    from mpipar.programs.commands.supervisor_client import CommandEnd
    from mpipar.runtime.stage import GivenUpTask
    from mpipar.store.project import Project

__all__ = ["LOGS", "CommandOutcome", "TryLog", "log_names", "outcome_of"]

KIND: Final = "try"  # of the journal's records
LOGS: Final = "logs"
SHELL_SIGNALS: Final = 128  # a shell whose last command was ended by signal n exits with 128 + n


@dataclass(frozen=True)
class CommandOutcome:
    """How one try of a command ended; the fields are the keys of its record in the journal."""

    key: Key
    line: int  # in the command file of that time
    number: int  # of the try, from 1, counted over all runs
    code: int | None
    signal: int | None
    reason: str  # why the try failed, where exit code and signal do not say it; else empty
    host: str
    rank: int | None
    seconds: float | None
    began: float  # seconds since 1970
    log_name: str = ""  # in the folder of logs; empty: `log_of_line`, as mpipar 0.1 has it

    @property
    def log(self) -> str:
        """Where the output is: a path in the run's folder."""
        return f"{LOGS}/{self.log_name or log_of_line(self.line)}"

    @property
    def is_done(self) -> bool:
        return self.code == 0 and not self.reason

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        if self.code is not None and self.code > SHELL_SIGNALS:
            name = _signal_name(self.code - SHELL_SIGNALS)
            return f"exit code {self.code} ({name})" if name.isalpha() else f"exit code {self.code}"
        return f"exit code {self.code}"


class TryLog:
    """The journal and the logs of a run, on rank 0."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def outcomes(self) -> list[CommandOutcome]:
        """Return every try of this run, those before a resumption included, oldest first.

        raises   StoreError if another version of mpipar wrote one that this one does not know
        """
        records = self._project.records(KIND, every=True)
        try:
            return [_from_json(record) for record in records]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStoreError(
                f"{self._project.path}: a record of a command is not as this mpipar writes it "
                f"({error}); go on with the version that made the run, or begin a new one"
            ) from error

    def record(
        self,
        tried: Sequence[tuple[PendingCommand, CommandTry | GivenUpTask]],
        outcomes: Sequence[CommandOutcome],
    ) -> None:
        """Write tries to their logs and to the journal; durable on return."""
        logs: dict[str, bytes] = {}
        for (pending, answer), outcome in zip(tried, outcomes, strict=True):
            name = outcome.log_name
            before = logs[name] if name in logs else self._log(name)
            logs[name] = before + log_text(pending.command, outcome, answer)
        self._project.write_files(LOGS, logs)
        self._project.append(KIND, *(_to_json(outcome) for outcome in outcomes))

    def _log(self, name: str) -> bytes:
        """Return what a log holds of earlier tries."""
        path = self._project.path / LOGS / name
        with durable.named_read_errors(path):
            return path.read_bytes() if path.exists() else b""


def outcome_of(pending: PendingCommand, answer: CommandTry | GivenUpTask) -> CommandOutcome:
    """Return the outcome to record of a try, or of a task that the runtime has given up."""
    command, number = pending.command, pending.tries_before + pending.tries
    log = pending.log_name or log_of_line(command.line)
    if not isinstance(answer, CommandTry):
        reason = f"{answer.kind}: {answer.text}".splitlines()[0]
        return CommandOutcome(
            command.key, command.line, number, None, None, reason, "", None, None, time.time(), log
        )
    end = answer.end
    return CommandOutcome(
        command.key,
        command.line,
        number,
        end.code,
        end.signal,
        _reason(end),
        answer.place[0],
        answer.rank,
        None if end.seconds is None else round(end.seconds, 3),
        round(answer.began, 3),
        log,
    )


def _reason(end: CommandEnd) -> str:
    if end.supervisor_died:
        return "its supervising process was killed"
    if end.timed_out:
        return "timed out"
    return "hangs in the kernel" if end.unkillable else ""


def log_of_line(line: int, copy: int = 1) -> str:
    """Name of the log of the command that begins in this line, and of a later one in its place."""
    return f"{line:06d}.log" if copy == 1 else f"{line:06d}-{copy}.log"


def log_names(commands: Iterable[Command], outcomes: Iterable[CommandOutcome]) -> dict[Key, str]:
    """Return the name of the log of each command: no two share one, also after an edited resume.

    outcomes   all earlier tries
    """
    owners = {outcome.log: outcome.key for outcome in outcomes}
    names = {}
    for command in commands:
        copies = (log_of_line(command.line, copy) for copy in itertools.count(1))
        free = (n for n in copies if owners.get(f"{LOGS}/{n}", command.key) == command.key)
        names[command.key] = next(free)
    return names


def log_text(command: Command, outcome: CommandOutcome, answer: CommandTry | GivenUpTask) -> bytes:
    """Return what a log says of one try: lines about the try, then the command's output."""
    where = f"{outcome.host} (rank {outcome.rank})" if outcome.host else "nowhere"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(outcome.began))
    took = "" if outcome.seconds is None else f" after {outcome.seconds:.1f} s"
    head = [
        f"=== line {command.line}, try {outcome.number}, {where}, {when}: {outcome}{took}",
        "=== " + command.text.replace("\n", "\n=== "),
    ]
    if not isinstance(answer, CommandTry):
        return _lines([*head, answer.text])
    end = answer.end
    if end.left_behind and not end.timed_out:
        head.append(f"=== processes that it left behind, ended: {end.left_behind}")
    parts = [_lines(head), end.head]
    if end.dropped:
        parts.append(_lines(["", f"=== {end.dropped} bytes left out here (--output)"]))
    parts.append(end.tail)
    text = b"".join(parts)
    return text if text.endswith(b"\n") else text + b"\n"


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _to_json(outcome: CommandOutcome) -> bytes:
    return json.dumps(asdict(outcome), separators=(",", ":")).encode()


def _from_json(data: bytes) -> CommandOutcome:
    fields = json.loads(data)
    text, occurrence = fields.pop("key")
    return schema.build(
        CommandOutcome, {**fields, "key": (text, occurrence)}, "a record of a command"
    )
