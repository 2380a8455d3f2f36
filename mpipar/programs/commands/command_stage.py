"""The stage of `mpipar run`: a worker runs one try of one command."""

from __future__ import annotations

import itertools
import os
import queue
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mpipar.programs.commands.command_environment import inherited, own_session_folder
from mpipar.programs.commands.supervisor_client import CommandEnd, CommandOrder, SupervisorClient
from mpipar.runtime.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mpipar.runtime.stage import Block, Task

__all__ = ["AvoidedWorkerError", "CommandStage", "CommandTask", "CommandTerms", "CommandTry"]

Place = tuple[str, int, int]
"""A worker: host, process id, and the worker's number within that process."""

RANK_NAMES: Final = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
_worker_numbers: Final = itertools.count()  # of the workers of this process


@dataclass(frozen=True, slots=True)
class CommandTask:
    """The payload of a task: a command, and which try of the command this is."""

    line: int
    text: str
    try_number: int  # from 1, counted over all runs
    avoid: tuple[Place, ...] = ()  # workers on which the command has failed


@dataclass(frozen=True)
class CommandTerms:
    """What is the same for all commands of a run."""

    cwd: str
    timeout: float | None  # seconds
    grace: float  # seconds from SIGTERM to SIGKILL
    output_limit: int  # bytes of a command's output that are kept
    variables: Mapping[str, str]  # added to every command's environment


@dataclass(frozen=True)
class CommandTry:
    """The result of a task: how one try of a command ended, and where."""

    end: CommandEnd
    place: Place
    rank: int
    began: float  # seconds since 1970


class AvoidedWorkerError(Exception):
    """The command has failed on this worker: the runtime then takes the task to another worker."""


class CommandStage(Stage):
    """Runs shell commands, one per task."""

    def __init__(self, terms: CommandTerms) -> None:
        self.terms = terms

    def start(self, shared: Mapping[str, Any]) -> CommandSite:
        del shared
        return CommandSite()

    def run(self, task: Task, block: Block | None, state: Any) -> CommandTry:
        del block
        site: CommandSite = state
        command: CommandTask = task.payload
        if site.place in command.avoid:
            raise AvoidedWorkerError(f"line {command.line} has failed here")
        terms = self.terms
        variables = {
            **terms.variables,
            "MPIPAR_LINE": str(command.line),
            "MPIPAR_TRY": str(command.try_number),
            "MPIPAR_RANK": str(site.rank),
            "PWD": terms.cwd,
        }
        began = time.time()
        with (
            own_session_folder({**site.environment, **variables}) as environment,
            site.supervisor() as supervisor,
        ):
            order = CommandOrder(
                command.text, terms.cwd, environment, terms.timeout, terms.grace, terms.output_limit
            )
            end = supervisor.run(order)
        return CommandTry(end, site.place, site.rank, began)


class CommandSite:
    """A worker: its place and rank, the environment of its commands, and its idle supervisors.

    A worker has as many supervisors as it runs commands at a time.
    """

    def __init__(self) -> None:
        number = next(_worker_numbers)
        self.place: Place = (socket.gethostname(), os.getpid(), number)
        self.rank = _rank() or number + 1
        self.environment = inherited()
        self._idle: queue.SimpleQueue[SupervisorClient] = queue.SimpleQueue()

    @contextmanager
    def supervisor(self) -> Iterator[SupervisorClient]:
        """Lend an idle supervisor, or a new one where all are busy."""
        try:
            found = self._idle.get_nowait()
        except queue.Empty:
            found = SupervisorClient()
        try:
            yield found
        finally:
            self._idle.put(found)


def _rank() -> int:
    """Rank of this process in the job, from the launcher's variables; 0 on rank 0 or without them.

    Workers that are threads of rank 0's process are numbered from 1, as ranks would be.
    """
    values = (os.environ.get(name, "") for name in RANK_NAMES)
    return next((int(text) for text in values if text.isdecimal()), 0)
