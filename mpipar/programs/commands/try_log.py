"""What is kept of each try: its output in a log, and its outcome in the journal, in this order.

A command counts as done when the journal's record of it is on the disk, and its log was there
before. So whatever kills a run, the next one knows what was acknowledged, and can show its output.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from mpipar.programs.commands.command_stage import CommandTry
from mpipar.store import durable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mpipar.programs.commands.dispatch import PendingCommand, UnrunCommand
    from mpipar.programs.commands.listing import Command, Key
    from mpipar.store.project import Project

__all__ = ["LOGS", "CommandOutcome", "TryLog", "outcome_of"]

KIND: Final = "try"  # of the records
LOGS: Final = "logs"
SHELL_SIGNALS: Final = 128  # exit code of a shell whose last command signal n has ended, less n


@dataclass(frozen=True)
class CommandOutcome:
    """One try as the journal has it."""

    key: Key
    line: int  # at that time
    number: int  # of the try, from 1
    code: int | None
    signal: int | None
    reason: str  # why it failed, if it was not the exit code or a signal alone
    host: str
    rank: int | None
    seconds: float | None
    began: float  # seconds since 1970

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
        self._logs = project.path / LOGS
        self._new_names = False  # whether the folder of logs has names that may not be durable

    def outcomes(self) -> list[CommandOutcome]:
        """Every try of this run and of those that it goes on with, oldest first."""
        return [_from_json(record) for record in self._project.records(KIND, every=True)]

    def keep(
        self,
        tried: Sequence[tuple[PendingCommand, CommandTry | UnrunCommand]],
        outcomes: Sequence[CommandOutcome],
    ) -> None:
        """Write down tries and how they went; durable on return."""
        for (pending, answer), outcome in zip(tried, outcomes, strict=True):
            self._append(log_name(outcome.line), log_text(pending.command, outcome, answer))
        if self._new_names:
            durable.sync_folder(self._logs)
            self._new_names = False
        self._project.append(KIND, *(_to_json(outcome) for outcome in outcomes))

    def _append(self, name: str, data: bytes) -> None:
        path = self._logs / name
        with durable.named_errors(path, len(data)):
            if not path.exists():
                self._logs.mkdir(exist_ok=True)
                self._new_names = True
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            fd = os.open(path, flags, 0o666)
            try:
                durable.write_all(fd, data)
                os.fdatasync(fd)
            finally:
                os.close(fd)


def outcome_of(pending: PendingCommand, answer: CommandTry | UnrunCommand) -> CommandOutcome:
    """How a try went."""
    command, number = pending.command, pending.tries_before + pending.tries
    if not isinstance(answer, CommandTry):
        reason = f"{answer.kind}: {answer.text}".splitlines()[0]
        return CommandOutcome(
            command.key, command.line, number, None, None, reason, "", None, None, time.time()
        )
    ended = answer.ended
    return CommandOutcome(
        command.key,
        command.line,
        number,
        ended.code,
        ended.signal,
        _reason(answer),
        answer.place[0],
        answer.rank,
        None if ended.seconds is None else round(ended.seconds, 3),
        round(answer.began, 3),
    )


def _reason(attempt: CommandTry) -> str:
    ended = attempt.ended
    if ended.unseen:
        return "its supervising process was killed"
    if ended.timed_out:
        return "timed out"
    return "hangs in the kernel" if ended.unkillable else ""


def log_name(line: int) -> str:
    """File in the folder of logs for the command that begins in this line."""
    return f"{line:06d}.log"


def log_text(command: Command, outcome: CommandOutcome, answer: CommandTry | UnrunCommand) -> bytes:
    """One try: two lines about it, then the output as it came."""
    where = f"{outcome.host} (rank {outcome.rank})" if outcome.host else "nowhere"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(outcome.began))
    took = "" if outcome.seconds is None else f" after {outcome.seconds:.1f} s"
    head = [
        f"=== line {command.line}, try {outcome.number}, {where}, {when}: {outcome}{took}",
        "=== " + command.text.replace("\n", "\n=== "),
    ]
    if not isinstance(answer, CommandTry):
        return _lines([*head, answer.text])
    ended = answer.ended
    if ended.left_behind and not ended.timed_out:
        head.append(f"=== processes that it left behind, ended: {ended.left_behind}")
    parts = [_lines(head), ended.head]
    if ended.dropped:
        parts.append(_lines(["", f"=== {ended.dropped} bytes left out here (--output)"]))
    parts.append(ended.tail)
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
    return CommandOutcome(key=(text, occurrence), **fields)
