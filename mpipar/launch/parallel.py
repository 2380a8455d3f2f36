"""The grammar of `--parallel`: EMAN2's types and fields, in EMAN2's order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpipar.errors import UsageError

__all__ = ["Parallel"]

TYPES = """\
the types are
  serial                one process, one worker
  thread:N[:scratch]    one machine, N workers (no mpirun)
  mpi                   the ranks that mpirun or srun started
  mpi:N[:scratch]       N ranks including the master; starts mpirun or srun itself
scratch is a folder on each node's own disk for temporary files and compiled kernels"""

THIRD_FIELDS = {
    "usethreads": "mpirun's own options place the ranks, --threads gives each one compute threads",
    "nocache": "blocks are kept in memory only, and --cache says how much of it",
}


@dataclass(frozen=True)
class Parallel:
    """A parsed `--parallel`."""

    kind: Literal["serial", "thread", "mpi"]
    count: int | None = None  # workers for thread, ranks for mpi
    scratch: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Parallel:
        """Read what the user wrote. Raises UsageError that lists the valid types."""
        kind, *fields = text.strip().split(":")
        match kind.lower(), fields:
            case "serial", []:
                return cls("serial")
            case "thread" | "threads", [number]:
                return cls("thread", _count(text, number))
            case "thread" | "threads", [number, scratch]:
                return cls("thread", _count(text, number), _scratch(text, scratch))
            case "mpi", []:
                return cls("mpi")
            case "mpi", [number]:
                return cls("mpi", _count(text, number))
            case "mpi", [number, scratch]:
                return cls("mpi", _count(text, number), _scratch(text, scratch))
            case "thread" | "threads" | "mpi", [_, _, third, *_]:
                raise UsageError(f"--parallel={text}: {_no_third(third)}; {TYPES}")
            case "dc", _:
                raise UsageError(
                    f"--parallel={text}: there is no dc type; one MPI job replaces the server and "
                    f"its clients: mpirun -n N python -m mpipar ..., or --parallel=mpi:N; {TYPES}"
                )
            case _:
                raise UsageError(f"--parallel={text}: unknown type or wrong fields; {TYPES}")

    def __str__(self) -> str:
        fields = (self.kind, self.count, self.scratch)
        return ":".join(str(field) for field in fields if field is not None)


def _count(text: str, number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(f"--parallel={text}: {number!r} must be a whole number from 1; {TYPES}")
    return int(number)


def _scratch(text: str, folder: str) -> Path:
    """The folder, its case kept; absolute, because ranks need not start where the user is."""
    if not folder or folder in THIRD_FIELDS:
        raise UsageError(f"--parallel={text}: {folder!r} is no scratch folder; {TYPES}")
    return Path(folder).expanduser().absolute()


def _no_third(field: str) -> str:
    """Why there is nothing behind the scratch folder, where EMAN2 had a third field."""
    reason = THIRD_FIELDS.get(field.lower())
    if reason is None and field.isdecimal():
        reason = THIRD_FIELDS["usethreads"]
    instead = f" (EMAN2's {field}: {reason})" if reason else ""
    return f"{field!r} is one field too many{instead}"
