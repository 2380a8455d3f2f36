"""The routers of this process: opened when they are first asked for, closed with it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from mpipar.errors import LaunchError
from mpipar.interfaces.calls import user_main
from mpipar.interfaces.calls.call_stage import is_in_task
from mpipar.interfaces.calls.router import CallRouter
from mpipar.runtime.stage import Policy

if TYPE_CHECKING:
    from mpipar.runtime.pool import Pool

__all__ = ["close_all", "crew", "install", "is_installed", "resolve"]

Opener: TypeAlias = "Callable[[str], Pool]"
Resolver: TypeAlias = Callable[[str | None, int | None], str]
_opener: Opener | None = None
_resolver: Resolver | None = None
_isolate = False
_crews: dict[str, CallRouter] = {}
_lock = threading.Lock()


def install(opener: Opener, resolver: Resolver, *, isolate: bool = False) -> None:
    """Say how workers are come by in this process.

    opener    opens the pool of a `--parallel`
    resolver  makes that `--parallel` of what was asked for: a `--parallel`, if any, and a number
              of workers, if any. Raises what is wrong with it here
    """
    global _opener, _resolver, _isolate
    _opener, _resolver, _isolate = opener, resolver, isolate


def is_installed() -> bool:
    """Whether it has been said how workers are come by."""
    return _opener is not None


def resolve(parallel: str | None = None, workers: int | None = None) -> str:
    """Return the `--parallel` that is meant in this process. Raises what is wrong with it."""
    if is_in_task() or user_main.is_loading():
        raise LaunchError(
            "a worker cannot have workers of its own: make the executor, and all that a script "
            'does with it, below `if __name__ == "__main__":`, not in a function that workers run'
        )
    if _opener is None or _resolver is None:
        raise LaunchError("nothing says how workers are opened: import mpipar.launch.interfaces")
    return _resolver(parallel, workers)


def crew(parallel: str | None = None, workers: int | None = None) -> CallRouter:
    """Return the crew of that `--parallel`, opened now if it is not yet.

    workers   how many are wanted, where that can be chosen
    """
    text = resolve(parallel, workers)
    with _lock:
        if text not in _crews:
            assert _opener is not None  # else `resolve` would have complained
            isolate = _isolate or text.startswith("thread")
            _crews[text] = CallRouter(_opener(text), Policy(isolate=isolate))
            atexit.unregister(close_all)
            atexit.register(close_all)
        return _crews[text]


def close_all(*, drop: bool = False) -> None:
    """Let the workers of all crews go, after their calls have been answered or dropped."""
    with _lock:
        crews = list(_crews.values())
        _crews.clear()
    for each in crews:
        each.close(drop=drop)
