"""The user's main module and `sys.path`, as workers get them.

Functions of a script are pickled as members of `__main__`, which on a worker is another program. As
multiprocessing does, a worker runs the script once under the name `__mp_main__` (so that what is
below `if __name__ == "__main__"` does not run). From then on that module is its `__main__`.
"""

from __future__ import annotations

import os
import sys
import threading
import types
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

__all__ = ["UserMain", "is_loading"]

NAME = "__mp_main__"
_lock = threading.RLock()
_loaded: list[UserMain] = []  # in this process
_loading = threading.local()


def is_loading() -> bool:
    """Whether this thread is running a user's script only to get its functions."""
    return bool(getattr(_loading, "now", False))


@dataclass(frozen=True)
class UserMain:
    """What a worker needs to read pickles of the user's process."""

    process: int
    search: tuple[str, ...]  # sys.path
    module: str | None  # python -m module
    path: str | None  # of the script
    source: bytes | None  # its text, because a worker need not see the file

    @classmethod
    def here(cls) -> UserMain:
        """Describe this process."""
        search = tuple(entry or str(Path.cwd()) for entry in sys.path)
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        module = getattr(spec, "name", None)
        path = getattr(main, "__file__", None)
        source = None
        if module is None and path is not None:
            path = str(Path(path).absolute())
            try:
                source = Path(path).read_bytes()
            except OSError:
                path = None
        return cls(os.getpid(), search, module, path, source)

    @property
    def is_this_process(self) -> bool:
        """Whether the user's process is this one."""
        return self.process == os.getpid()

    def extend_search(self) -> None:
        """Let imports find the modules that they find in the user's process."""
        if not self.is_this_process:
            sys.path.extend(entry for entry in self.search if entry not in sys.path)

    def load(self) -> None:
        """Make the user's main module this process's `__main__`. Later calls do nothing."""
        with _lock:
            if self.is_this_process or self in _loaded:
                return
            _loading.now = True
            try:
                main = self._run()
            finally:
                _loading.now = False
            if main is not None:
                sys.modules["__main__"] = sys.modules[NAME] = main
            _loaded.append(self)

    def _run(self) -> types.ModuleType | None:
        if self.module is not None:
            name = self.module.removesuffix(".__main__")
            return import_module(name) if name == self.module else None
        if self.source is None or self.path is None:
            return None
        main = types.ModuleType(NAME)
        main.__file__ = self.path
        before = sys.modules.get(NAME)
        sys.modules[NAME] = main  # dataclasses and pickle look up the module of a class by name
        try:
            exec(compile(self.source, self.path, "exec"), main.__dict__)
        except BaseException:
            if before is not None:
                sys.modules[NAME] = before
            raise
        return main
