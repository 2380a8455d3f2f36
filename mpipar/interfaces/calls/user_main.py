"""The user's main module and `sys.path`, as workers get them.

Functions of a script are pickled as members of `__main__`, which on a worker is another program. As
multiprocessing does, a worker runs the script once under the name `__mp_main__` (so that what is
below `if __name__ == "__main__"` does not run). From then on that module is its `__main__`, also by
name, as in a process that was forked: libraries such as cloudpickle look at the names of modules.
"""

from __future__ import annotations

import os
import sys
import threading
import types
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from mpipar.interfaces.calls.main_names import MainNames
from mpipar.interfaces.calls.surroundings import BEGIN, Surroundings

__all__ = ["UserMain", "at_load", "is_loading", "program_begins"]

NAME = "__mp_main__"
_lock = threading.RLock()
_loaded: list[UserMain] = []  # in this process
at_load: dict[str, Any] = {}  # what the module level of the user's script has bound here
_loading = threading.local()
_sources: dict[str, bytes] = {}  # by path: the text of the script that this process runs


def is_loading() -> bool:
    """Whether this thread is running a user's script only to get its functions."""
    return bool(getattr(_loading, "now", False))


def program_begins(path: str | None = None, source: bytes | None = None) -> None:
    """Note that the user's program begins now: with these arguments, in this folder.

    path, source   of a script; workers get this text, even if the file is edited meanwhile
    """
    global _begin  # noqa: PLW0603 - of the whole process
    _begin = Surroundings.here()
    if path is not None and source is not None:
        _sources[path] = source


_begin = BEGIN  # of the program; as it was when mpipar was imported, unless `program_begins` says


@dataclass(frozen=True)
class UserMain:
    """What a worker needs to read pickles of the user's process."""

    process: int
    search: tuple[str, ...]  # sys.path
    module: str | None  # python -m module
    path: str | None  # of the script
    source: bytes | None  # its text, because a worker need not see the file
    begin: Surroundings = BEGIN  # in which the program began, and its module level is run
    now: Surroundings = field(default=BEGIN, compare=False)  # in which calls are made

    @classmethod
    def here(cls) -> UserMain:
        """Describe this process."""
        now = Surroundings.here(_begin)
        search = tuple(str(Path(_begin.cwd, entry)) for entry in sys.path)
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        module = getattr(spec, "name", None)
        path = getattr(main, "__file__", None)
        source = None
        if module is None and path is not None:
            path = str(Path(_begin.cwd, path))
            try:
                source = _sources.get(path) or Path(path).read_bytes()
            except OSError:
                path = None
        return cls(os.getpid(), search, module, path, source, _begin, now)

    def names(self) -> MainNames:
        """Return what a worker's main module has; in the user's process."""
        if self._is_package:
            return MainNames()
        if self.module is None:
            return MainNames.of(self.source)
        main = sys.modules["__main__"]
        loader: Any = main.__spec__ and main.__spec__.loader
        text = loader.get_source(self.module) if hasattr(loader, "get_source") else None
        return MainNames(frozenset(vars(main))) if text is None else MainNames.of(text)

    @property
    def _is_package(self) -> bool:
        """Whether this is `python -m package` or a zip file, which are not imported by name."""
        return self.module is not None and self.module.split(".")[-1] == "__main__"

    def surroundings_here(self) -> Surroundings:
        """Return the surroundings of the user's process, which is this one, at this moment."""
        return Surroundings.here(self.begin)

    @property
    def is_this_process(self) -> bool:
        """Whether the user's process is this one."""
        return self.process == os.getpid()

    def extend_search(self) -> None:
        """Let imports find the modules that they find in the user's process."""
        if not self.is_this_process:
            sys.path.extend(entry for entry in self.search if entry not in sys.path)

    def load(self) -> bool:
        """Make the user's main module this process's `__main__`; return whether it was not yet."""
        with _lock:
            if self.is_this_process or self in _loaded:
                return False
            self.begin.enter()
            self._search_as_there()
            _loading.now = True
            try:
                main = self._run()
            finally:
                _loading.now = False
            sys.modules["__main__"] = sys.modules[NAME] = main
            at_load.clear()
            at_load.update(main.__dict__)
            _loaded.append(self)
            return True

    def _search_as_there(self) -> None:
        """Look for modules first where the script does: in its own folder."""
        first = self.search[:1]
        if first and sys.path[:1] != [*first]:
            sys.path[:0] = first

    def _run(self) -> types.ModuleType:
        if self.module is not None and not self._is_package:
            return import_module(self.module)
        if self.source is None or self.path is None:
            main = types.ModuleType("__main__")
            main.__package__ = self.module.rpartition(".")[0] if self.module else None
            return main
        main = types.ModuleType(NAME)
        main.__file__ = self.path
        before = sys.modules.get(NAME)
        sys.modules[NAME] = main  # dataclasses and pickle look up the module of a class by name
        try:
            # `dont_inherit`: without it the script would have the future statements of this module
            code = compile(self.source, self.path, "exec", dont_inherit=True)
            exec(code, main.__dict__)
        except BaseException:
            if before is not None:
                sys.modules[NAME] = before
            raise
        _rename(main)
        return main


def _rename(main: types.ModuleType) -> None:
    """Call a module, and what is defined in it, `__main__`."""
    main.__dict__["__name__"] = "__main__"
    for value in list(main.__dict__.values()):
        _rename_object(value)


def _rename_object(value: Any) -> None:
    if isinstance(value, property):
        parts = [value.fget, value.fset, value.fdel]
    elif isinstance(value, staticmethod | classmethod):
        parts = [value.__func__]
    elif getattr(value, "__module__", None) != NAME:
        return
    else:
        with suppress(AttributeError, TypeError):  # it has no name of its own
            value.__module__ = "__main__"
        parts = list(vars(value).values()) if isinstance(value, type) else []
        parts.append(getattr(value, "__wrapped__", None))
    for part in parts:
        _rename_object(part)
