"""What a program can see and change of its process: workers have it as the user's process has it.

A process that is forked has all of this from its parent. Workers are other processes, so they get
it with their calls.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["BEGIN", "Surroundings"]


@dataclass(frozen=True)
class Surroundings:
    """Arguments, folder, environment, recursion limit and umask of a process."""

    argv: tuple[str, ...]
    cwd: str
    recursion_limit: int
    variables: tuple[tuple[str, str | None], ...] = ()
    """What the program has ever changed in the environment since it began; None: deleted.

    Not all variables: ranks have some of their own, from the launcher and their host."""
    moved: bool = False  # whether the program has changed its folder since it began
    umask: int | None = None  # None: as it was when the program began

    @classmethod
    def here(cls, begin: Surroundings | None = None) -> Surroundings:
        """Return those of this process; `begin` is how the program began, if that was before."""
        argv = tuple(getattr(sys, "argv", ()))
        limit = sys.getrecursionlimit()
        try:
            cwd = str(Path.cwd())
        except OSError:  # the folder is deleted
            cwd = begin.cwd if begin is not None else "/"
        if begin is None:
            _environment.clear()
            _environment.update(os.environ)
            _umask_at_begin[:] = [_umask()]
            return cls(argv, cwd, limit)
        now = dict(os.environ)
        names = {*_environment, *now}
        _changed_ever.update(name for name in names if now.get(name) != _environment.get(name))
        changed = tuple((name, now.get(name)) for name in sorted(_changed_ever))
        umask = _umask()
        new = umask if [umask] != _umask_at_begin else None
        return cls(argv, cwd, limit, changed, cwd != begin.cwd, new)

    def enter(self) -> None:
        """Let this process, a worker, have these surroundings.

        Raises OSError if the folder into which the program went is not there on this host.
        """
        sys.argv[:] = self.argv
        sys.setrecursionlimit(self.recursion_limit)
        for name, before in _changed_here.items():
            _set(name, before)
        _changed_here.clear()
        for name, value in self.variables:
            _changed_here[name] = os.environ.get(name)
            _set(name, value)
        if self.umask is not None:
            usual = os.umask(self.umask)
            _umask_here[:] = _umask_here or [usual]
        elif _umask_here:
            os.umask(_umask_here.pop())
        self._enter_folder()

    def _enter_folder(self) -> None:
        try:
            os.chdir(self.cwd)
        except OSError as error:
            if self.moved:  # else the launcher has chosen this worker's folder
                where = f"the script works in {self.cwd}, which {socket.gethostname()} cannot enter"
                raise OSError(error.errno, f"{where}: {error.strerror}") from None


_environment: Final = dict[str, str]()  # of this process when the user's program began
_umask_at_begin: Final = list[int]()
_changed_ever: Final = set[str]()  # names; a worker may have been started at any time
_umask_here: Final = list[int]()  # that of this process, if `enter` has set another
_changed_here: Final = dict[str, str | None]()  # what `enter` has set; the values before


def _umask() -> int:
    """Return what this process takes from the rights of its new files."""
    try:  # without changing it, which another thread would see
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        return int(lines.partition("Umask:")[2].split()[0], 8)
    except (OSError, ValueError, IndexError):
        mask = os.umask(0o77)
        os.umask(mask)
        return mask


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


BEGIN: Final = Surroundings.here()  # of this process, as it was when mpipar was imported
