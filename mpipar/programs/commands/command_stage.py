"""One command, one try: what a worker does."""

from __future__ import annotations

import itertools
import os
import queue
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mpipar.programs.commands.command_environment import inherited
from mpipar.programs.commands.supervisor_client import CommandEnd, CommandOrder, SupervisorClient
from mpipar.runtime.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mpipar.runtime.stage import Block, Task

__all__ = ["CommandStage", "CommandTask", "CommandTerms", "CommandTry", "ElsewhereError"]

Place = tuple[str, int, int]
"""Host, process, and number of a worker within its process."""

RANK_NAMES: Final = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
_numbers: Final = itertools.count()  # of the workers of this process


@dataclass(frozen=True, slots=True)
class CommandTask:
    """What a task carries: a command, and which try this is."""

    line: int
    text: str
    number: int  # of the try, from 1, counted over all runs
    avoid: tuple[Place, ...] = ()  # workers on which it failed


@dataclass(frozen=True)
class CommandTerms:
    """What all commands of a run have in common."""

    cwd: str
    timeout: float | None  # seconds
    grace: float  # seconds from SIGTERM to SIGKILL
    limit: int  # bytes of output that are kept
    variables: Mapping[str, str]  # for every command's environment


@dataclass(frozen=True)
class CommandTry:
    """How one try went, and where."""

    ended: CommandEnd
    place: Place
    rank: int
    began: float  # seconds since 1970


class ElsewhereError(Exception):
    """This worker is one to avoid: raised so that the runtime takes the task to another one."""


class CommandStage(Stage):
    """Runs shell commands."""

    def __init__(self, terms: CommandTerms) -> None:
        self.terms = terms

    def start(self, shared: Mapping[str, Any]) -> CommandSite:
        del shared
        return CommandSite()

    def run(self, task: Task, block: Block | None, state: Any) -> CommandTry:
        del block
        post: CommandSite = state
        errand: CommandTask = task.payload
        if post.place in errand.avoid:
            raise ElsewhereError(f"line {errand.line} has failed here")
        terms = self.terms
        variables = {
            **terms.variables,
            "MPIPAR_LINE": str(errand.line),
            "MPIPAR_TRY": str(errand.number),
            "MPIPAR_RANK": str(post.rank),
            "PWD": terms.cwd,
        }
        environment = {**post.environment, **variables}
        order = CommandOrder(
            errand.text, terms.cwd, environment, terms.timeout, terms.grace, terms.limit
        )
        began = time.time()
        with post.shepherd() as shepherd:
            ended = shepherd.run(order)
        return CommandTry(ended, post.place, post.rank, began)


class CommandSite:
    """A worker's place in the job, and its shepherds: one for each command that runs at a time."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.place: Place = (socket.gethostname(), os.getpid(), number)
        self.rank = _rank() or number + 1
        self.environment = inherited()
        self._idle: queue.SimpleQueue[SupervisorClient] = queue.SimpleQueue()

    @contextmanager
    def shepherd(self) -> Iterator[SupervisorClient]:
        """One that is free, or a new one."""
        try:
            found = self._idle.get_nowait()
        except queue.Empty:
            found = SupervisorClient()
        try:
            yield found
        finally:
            self._idle.put(found)


def _rank() -> int:
    """This process's rank in the job, as the launcher told it; 0 if it is rank 0, or the only one.

    Workers that are threads of rank 0's process are counted from 1, as ranks would be.
    """
    told = (os.environ.get(name, "") for name in RANK_NAMES)
    return next((int(text) for text in told if text.isdecimal()), 0)
