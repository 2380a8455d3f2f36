"""The program behind `mpipar run`, on rank 0: a list of commands, from start to end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.errors import CommandsFailedError, UsageError, counted
from mpipar.programs import run_folder, status_report
from mpipar.programs.commands import listing, report
from mpipar.programs.commands.command_stage import (
    AvoidedWorkerError,
    CommandStage,
    CommandTerms,
    CommandTry,
)
from mpipar.programs.commands.dispatch import Dispatch, PendingCommand
from mpipar.programs.commands.try_log import LOGS, TryLog, log_names, outcome_of
from mpipar.runtime.reports import CANNOT_REPLACE
from mpipar.runtime.stage import Policy
from mpipar.views.progress import View, duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.programs.commands.listing import Command, Key
    from mpipar.programs.commands.try_log import CommandOutcome
    from mpipar.runtime.pool import Pool
    from mpipar.runtime.stage import GivenUpTask
    from mpipar.settings import RunSettings
    from mpipar.store.project import Project

__all__ = ["run"]

OpenPool = Callable[[int, int], "Pool"]
TABLE: Final = "commands.tsv"  # one row for each command
COPY: Final = "commands.txt"  # the command file as it was read
MEGABYTE: Final = 1_000_000
TURN_SECONDS: Final = 0.25  # between two looks at the workers
STATUS_SECONDS: Final = 1.0  # between two updates of status.json
FAILURES_TOLD: Final = 20
COMMANDS_LISTED: Final = 10  # by --check
GRACE_SECONDS: Final = 5.0


def run(settings: RunSettings, open_pool: OpenPool, view: View) -> None:
    """Run the commands of a file, or go on with an earlier run.

    open_pool   makes the pool from: commands at a time per worker, bytes of its block cache
    raises      CommandsFailedError if some commands have failed; other MpiparError
    """
    project: Project | None = None
    kept = "what is done" if settings.resume else ""
    try:
        if settings.resume:
            project, settings = run_folder.reopen(
                settings, settings.path, writer=not settings.check, say=view.say
            )
        settings = dataclasses.replace(settings, cwd=_working_folder(settings))
        commands, text = listing.read(_command_file(settings))
        outcomes = TryLog(project).outcomes() if project else []
        waiting = _pending(commands, outcomes)
        _describe(settings, commands, waiting, outcomes, view)
        if settings.check:
            if project is None:
                run_folder.require_possible(settings, settings.path)
            view.say("checked; nothing was run or written")
            return
        project = project or run_folder.create(settings, settings.path)
        view.say(f"logs and table go to {project.path}")
        pool = open_pool(settings.per_worker, 0)
        if settings.replace_lost and not pool.replace_lost():
            view.say(f"note: {CANNOT_REPLACE}")
        kept = "what is done"
        _export(project, COPY, text)
        session = CommandsSession(settings, project, pool, view, commands, outcomes)
        session.run(waiting)
        project.verdict("done", f"{counted(len(commands), 'command')} done")
    except BaseException as error:
        run_folder.close_after_error(project, error, kept, view.say)
        raise
    finally:
        if project is not None:
            project.close()


def _working_folder(settings: RunSettings) -> Path:
    """Return where the commands run; saved with the run, so a resumed run uses the same folder."""
    cwd = (settings.cwd or Path.cwd()).absolute()
    if not cwd.is_dir():
        raise UsageError(f"--cwd {cwd}: is not a folder; make it, or name another")
    return cwd


def _command_file(settings: RunSettings) -> Path:
    assert settings.commands is not None  # only --resume may leave it out, and takes the saved one
    return settings.commands


def _pending(
    commands: Sequence[Command], outcomes: Sequence[CommandOutcome]
) -> list[PendingCommand]:
    """Return the commands that are not done yet, with the number of their earlier tries."""
    done = {outcome.key for outcome in outcomes if outcome.is_done}
    tries: dict[Key, int] = {}
    for outcome in outcomes:
        tries[outcome.key] = max(outcome.number, tries.get(outcome.key, 0))
    logs = log_names(commands, outcomes)
    return [
        PendingCommand(command, tries.get(command.key, 0), log_name=logs[command.key])
        for command in commands
        if command.key not in done
    ]


def _describe(
    settings: RunSettings,
    commands: Sequence[Command],
    waiting: Sequence[PendingCommand],
    outcomes: Sequence[CommandOutcome],
    view: View,
) -> None:
    """Say what will be run."""
    view.say(
        f"{counted(len(commands), 'command')} in {settings.commands}, to be run in {settings.cwd}"
    )
    if settings.resume:
        gone = len({outcome.key for outcome in outcomes} - {command.key for command in commands})
        changed = f"; no longer in the file: {gone}" if gone else ""
        view.say(f"{len(commands) - len(waiting)} are done, {len(waiting)} are to be run{changed}")
    if settings.check:
        limit = "no limit" if settings.seconds is None else f"at most {duration(settings.seconds)}"
        tries = counted(settings.tries, "try", "tries")
        view.say(f"{tries} each, {limit}; if one fails: {settings.on_error}")
        for pending in waiting[:COMMANDS_LISTED]:
            view.say(f"  line {pending.command.line}: {report.one_line(pending.command)}")
        if len(waiting) > COMMANDS_LISTED:
            view.say(f"  and {len(waiting) - COMMANDS_LISTED} more")


def _export(project: Project, name: str, data: bytes) -> None:
    with project.export(name) as path:
        path.write_bytes(data)


@dataclass
class CommandsSession:
    """One run: its commands, their outcomes, the pool, the project folder and the view."""

    settings: RunSettings
    project: Project
    pool: Pool
    view: View
    commands: list[Command]
    outcomes: list[CommandOutcome]  # all tries, those before a resumption included
    failed: set[Key] = field(default_factory=set)  # commands with no try left in this run
    finished: int = 0  # commands done or failed in this run
    retried: int = 0  # tries that failed and were followed by another, in this run
    status_at: float = 0.0  # when status.json was last written

    def run(self, waiting: Sequence[PendingCommand]) -> None:
        """Run the waiting commands, then write the table, also after an error."""
        start, before = time.monotonic(), len(self.outcomes)
        try:
            if waiting:
                self._run_commands(waiting)
        finally:
            rows = report.rows_of(self.commands, self.outcomes, self.failed)
            _export(self.project, TABLE, report.tsv(rows))
        self.view.phase("")
        for line in report.summary(rows, str(self.project.path / TABLE)):
            self.view.say(line)
        spent = sum(outcome.seconds or 0.0 for outcome in self.outcomes[before:])
        done = sum(row.result == report.DONE for row in rows)
        self.view.say(
            f"{done} of {counted(len(rows), 'command')} {'is' if len(rows) == 1 else 'are'} done; "
            f"{duration(spent)} of commands in {duration(time.monotonic() - start)}"
        )
        if done < len(rows):
            left = len(rows) - done - len(self.failed)
            raise CommandsFailedError(
                f"{len(self.failed)} of {counted(len(rows), 'command')} failed"
                + (f", and {left} were not begun (--on-error stop)" if left else "")
                + f"; see {self.project.path / LOGS}; --resume runs what is not done"
            )

    def _run_commands(self, waiting: Sequence[PendingCommand]) -> None:
        settings = self.settings
        terms = CommandTerms(
            cwd=str(settings.cwd),
            timeout=settings.seconds,
            grace=GRACE_SECONDS,
            output_limit=int(settings.output * MEGABYTE),
            variables={"MPIPAR_RUN": str(self.project.path.absolute())},
        )
        dispatch = Dispatch(waiting, self.pool, prefetch=settings.on_error == "continue")
        # This program, not the runtime, tries failed commands again, so that each try has its
        # number and its log. The runtime only moves a task from a worker that must be avoided.
        policy = Policy(tries=settings.tries + 1)
        stream = self.pool.stream(CommandStage(terms), {}, dispatch, policy=policy)
        try:
            while not dispatch.is_finished:
                arrived = dispatch.take(TURN_SECONDS)
                if arrived:
                    self._handle(dispatch, arrived)
                    dispatch.handled(len(arrived))
                stream.notify()  # also without results: there may be more workers than before
                self._report(len(waiting), dispatch.running)
            stream.close()
            self.status_at = 0.0
            self._report(len(waiting), running=0)
        except BaseException:
            stream.abort()
            raise

    def _handle(
        self,
        dispatch: Dispatch,
        arrived: Sequence[tuple[PendingCommand, CommandTry | GivenUpTask]],
    ) -> None:
        """Record what has arrived, and decide which commands are tried again."""
        tried = []
        for pending, answer in arrived:
            if not isinstance(answer, CommandTry) and answer.kind == AvoidedWorkerError.__name__:
                pending.tries -= 1  # not a try: the command has failed on all workers that are left
                dispatch.retry(pending, None)
            else:
                tried.append((pending, answer))
        for (pending, answer), outcome in zip(tried, self._record(tried), strict=True):
            if outcome.is_done:
                self.finished += 1
            elif isinstance(answer, CommandTry) and pending.tries < self.settings.tries:
                dispatch.retry(pending, answer.place)
                self.retried += 1
            else:
                self._mark_failed(outcome, pending)
                if self.settings.on_error == "stop":
                    dispatch.halt()

    def _record(
        self, tried: Sequence[tuple[PendingCommand, CommandTry | GivenUpTask]]
    ) -> list[CommandOutcome]:
        if not tried:
            return []
        outcomes = [outcome_of(pending, answer) for pending, answer in tried]
        TryLog(self.project).record(tried, outcomes)
        self.outcomes += outcomes
        return outcomes

    def _mark_failed(self, outcome: CommandOutcome, pending: PendingCommand) -> None:
        self.finished += 1
        self.failed.add(pending.command.key)
        if len(self.failed) <= FAILURES_TOLD:
            tries = "" if self.settings.tries == 1 else f" (try {pending.tries})"
            self.view.say(f"line {outcome.line} failed: {outcome}{tries}; {outcome.log}")
        elif len(self.failed) == FAILURES_TOLD + 1:
            self.view.say(f"more failures are in {TABLE} at the end")

    def _report(self, total: int, running: int) -> None:
        for loss in self.pool.new_losses():
            self.view.say(str(loss))
        failed = len(self.failed)
        self.view.progress("commands", self.finished, total, running=running, failed=failed or None)
        now = time.monotonic()
        if now - self.status_at >= STATUS_SECONDS:
            self.status_at = now
            statistics = self.pool.statistics()
            self.project.status(
                phase="commands",
                done=self.finished,
                total=total,
                unit="commands",
                running=running,
                failed=failed,
                retried=self.retried,
                done_before=len(self.commands) - total,
                **status_report.of_pool(self.pool.workers, statistics),
            )
