"""The grammar of `--parallel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpipar.errors import UsageError

__all__ = ["Parallel"]

TYPES = """\
the types are
  serial      one process, one worker
  thread:N    one process, N workers (no mpirun)
  mpi         the ranks that mpirun or srun started
  mpi:N       N ranks including the master; starts mpirun itself"""


@dataclass(frozen=True)
class Parallel:
    """A parsed `--parallel`."""

    kind: Literal["serial", "thread", "mpi"]
    count: int | None = None  # workers for thread, ranks for mpi

    @classmethod
    def parse(cls, text: str) -> Parallel:
        """Read what the user wrote. Raises UsageError that lists the valid types."""
        kind, *fields = text.strip().split(":")
        match kind.lower(), fields:
            case "serial", []:
                return cls("serial")
            case "thread" | "threads", [number]:
                return cls("thread", _count(text, number))
            case "mpi", []:
                return cls("mpi")
            case "mpi", [number]:
                return cls("mpi", _count(text, number))
            case "dc", _:
                raise UsageError(
                    f"--parallel={text}: there is no dc type; one MPI job replaces the server and "
                    f"its clients: mpirun -n N python -m mpipar ..., or --parallel=mpi:N; {TYPES}"
                )
            case _:
                raise UsageError(f"--parallel={text}: unknown type or wrong fields; {TYPES}")

    def __str__(self) -> str:
        return self.kind if self.count is None else f"{self.kind}:{self.count}"


def _count(text: str, number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(f"--parallel={text}: {number!r} must be a whole number from 1; {TYPES}")
    return int(number)
