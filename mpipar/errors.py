"""All errors that users can meet, each with the exit code of its process.

The codes are those of BSD's sysexits.h. 75 means "temporary": a job script may requeue the job. A
message tells what is wrong, where, and what to do about it. It is printed once, by rank 0, as
`mpipar: <message>`, without a traceback.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ADVICE",
    "LESS_MEMORY",
    "CancelledError",
    "CommandsFailedError",
    "CorruptStoreError",
    "DiskFullError",
    "InputError",
    "LaunchError",
    "MissingInputError",
    "MpiparError",
    "NoSignalError",
    "OutputError",
    "ProjectLockedError",
    "ProtocolError",
    "RequeueError",
    "StoppedError",
    "StoreError",
    "TaskFailedError",
    "UnavailableError",
    "UsageError",
    "counted",
    "exit_code_named",
    "reason_of",
]

LESS_MEMORY: Final = "start fewer ranks or threads per node, or ask the batch system for more"
ADVICE: Final = {
    errno.EACCES: "ask its owner for the right to use it and the folders above it",
    errno.EPERM: "ask its owner for the right to use it",
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "your share of the disk is full: make room",
    errno.EROFS: "that disk cannot be written: choose another folder",
    errno.EIO: "the disk or the connection to it fails",
    errno.ESTALE: "the file server has lost it: mount the folder again",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: LESS_MEMORY,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links lead in a circle: correct them",
}
"""What a user can do about what the system refuses, by the error's number."""


def reason_of(error: OSError, advices: Mapping[int, str] = ADVICE) -> str:
    """Return why the system refused, and what can be done about that if it is known."""
    reason = error.strerror or str(error)
    advice = advices.get(error.errno or 0)
    return f"{reason}; {advice}" if advice else reason


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Return "1 worker" or "3 workers"; `nouns` is a plural that is not made with an s."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


class MpiparError(Exception):
    """Base of all errors of this package; only its subclasses are raised."""

    exit_code: ClassVar[int] = 1


class UsageError(MpiparError):
    """A flag or setting is unknown, malformed or out of bounds. Raised before a file is opened."""

    exit_code = 64


class InputError(MpiparError):
    """The input is wrong: a malformed file, a particle without an image, boxes that differ."""

    exit_code = 65


class MissingInputError(MpiparError):
    """A file that the settings or another file refer to does not exist or cannot be read."""

    exit_code = 66


class UnavailableError(MpiparError):
    """A library, an MPI or a launcher that is needed is not installed."""

    exit_code = 69


class ProtocolError(MpiparError):
    """Something that must always hold does not, such as a task that ends twice: a bug.

    The message says what was found and where; of a task, all that has happened to it.
    """

    exit_code = 70


class NoSignalError(MpiparError):
    """A refinement found nothing in the images beyond its start. Its results are kept, marked."""

    exit_code = 79


class TaskFailedError(MpiparError):
    """A task raised on every rank that tried it. The message ends with the remote traceback."""

    exit_code = 70


class CommandsFailedError(MpiparError):
    """Some commands of `mpipar run` failed on every try; the others are done and kept."""

    exit_code = 70


class LaunchError(MpiparError):
    """Processes were started in a way that cannot work: each of many believes to be alone."""

    exit_code = 71


class OutputError(MpiparError):
    """The output folder exists already, cannot be created, or cannot be written."""

    exit_code = 73


class StoreError(MpiparError):
    """The project folder could not be read or written."""

    exit_code = 74


class CorruptStoreError(StoreError):
    """The project folder breaks its own rules: a sealed file that changed, a gap in the journal."""

    exit_code = 65


class DiskFullError(MpiparError):
    """No space or quota is left. The commit failed whole and the state before it stands."""

    exit_code = 74


class ProjectLockedError(MpiparError):
    """Another writer of the project lives; the message names it. Raised before any write."""

    exit_code = 75


class RequeueError(MpiparError):
    """The run had to end early and can be resumed: time limit, preemption, a lost rank."""

    exit_code = 75


class StoppedError(RequeueError):
    """A signal asked the run to end: SIGTERM, SIGUSR1 and the like. What is finished is kept."""


class CancelledError(StoppedError):
    """The user ended the run with ^C."""

    exit_code = 130


def exit_code_named(name: str, kind: type[MpiparError] = MpiparError) -> int | None:
    """Return the exit code of the error class of a name, as in a verdict's reason; None if none."""
    if kind.__name__ == name:
        return kind.exit_code
    codes = (exit_code_named(name, subclass) for subclass in kind.__subclasses__())
    return next((code for code in codes if code is not None), None)
