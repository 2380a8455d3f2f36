"""What the user asked for, as a command gets it."""

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
    """Parsed words of the command line; values are unchecked until `read` makes settings."""

    kind: type[Settings]
    flags: dict[str, Any]
    file: Path | None  # --settings
    words: list[str]
    around: LaunchEnvironment
    rest: list[str] = field(default_factory=list)  # what follows the options, if the command says

    def read(self, kind: type[S]) -> S:
        """Settings from the file and the flags, which win. Opens the file: for rank 0 only."""
        from_file = read_settings_file(self.file, kind.command) if self.file else {}
        return kind.from_mapping({**from_file, **self.flags}, source=f"--settings {self.file}")


@dataclass(frozen=True)
class Subcommand:
    """One command of mpipar."""

    settings: type[Settings]
    run: Callable[[Request], int]
    is_parallel: bool = False  # ranks > 0 take part; for other commands they leave at once
