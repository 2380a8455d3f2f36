"""The parsed command line, as a command gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mpipar.options import Settings, read_settings_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mpipar.launch import LaunchEnvironment

__all__ = ["Request", "Subcommand"]

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Request:
    """The parsed command line; values are unchecked until `read` makes settings of them."""

    kind: type[Settings]
    flags: dict[str, Any]
    file: Path | None  # --settings
    arguments: list[str]  # the whole command line, as it was
    environment: LaunchEnvironment
    rest: list[str] = field(default_factory=list)  # what follows the options, for `Settings.rest`

    def read(self, kind: type[S]) -> S:
        """Return settings from file and flags; the flags win. Opens the file: on rank 0 only."""
        from_file = read_settings_file(self.file, kind.command) if self.file else {}
        return kind.from_mapping({**from_file, **self.flags}, source=f"--settings {self.file}")


@dataclass(frozen=True)
class Subcommand:
    """A command of mpipar."""

    settings: type[Settings]
    run: Callable[[Request], int]
    is_parallel: bool = False  # other ranks than 0 take part; else they end at once
