"""The routers of this process: opened when they are first asked for, closed when it ends."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from mpipar.errors import LaunchError
from mpipar.interfaces.calls import user_main
from mpipar.interfaces.calls.call_stage import is_in_call
from mpipar.interfaces.calls.router import CallRouter
from mpipar.runtime.stage import Policy

if TYPE_CHECKING:
    from mpipar.runtime.pool import Pool

__all__ = ["close_all", "install", "is_installed", "open_router", "resolve"]

PoolOpener: TypeAlias = "Callable[[str], Pool]"
ParallelResolver: TypeAlias = Callable[[str | None, int | None], str]
_opener: PoolOpener | None = None
_resolver: ParallelResolver | None = None
_isolate = False
_routers: dict[str, CallRouter] = {}  # by `--parallel`
_lock = threading.Lock()


def install(opener: PoolOpener, resolver: ParallelResolver, *, isolate: bool = False) -> None:
    """Set how pools of workers are opened in this process.

    opener    opens the pool of a `--parallel`
    resolver  chooses that `--parallel` by what was asked for: a `--parallel`, if any, and a number
              of workers, if any. Raises if that cannot be had in this process
    isolate   whether calls run in supervised child processes, if nothing else is asked for
    """
    global _opener, _resolver, _isolate
    _opener, _resolver, _isolate = opener, resolver, isolate


def is_installed() -> bool:
    """Whether `install` was called."""
    return _opener is not None


def resolve(parallel: str | None = None, workers: int | None = None) -> str:
    """Return the `--parallel` that is meant in this process. Raises LaunchError, UsageError."""
    if is_in_call() or user_main.is_loading():
        raise LaunchError(
            "a worker cannot have workers of its own: make the executor, and all that a script "
            'does with it, below `if __name__ == "__main__":`, not in a function that workers run'
        )
    if _opener is None or _resolver is None:
        raise LaunchError(
            "nothing says how workers are opened: import mpipar.launch.interface_workers"
        )
    return _resolver(parallel, workers)


def open_router(parallel: str | None = None, workers: int | None = None) -> CallRouter:
    """Return the router of that `--parallel`, opened now if it is not yet.

    workers   how many are wanted, where that can be chosen
    """
    text = resolve(parallel, workers)
    with _lock:
        if text not in _routers:
            assert _opener is not None  # else `resolve` would have raised
            isolate = _isolate or text.startswith("thread")
            _routers[text] = CallRouter(_opener(text), Policy(isolate=isolate))
            atexit.unregister(close_all)
            atexit.register(close_all)
        return _routers[text]


def close_all(*, drop: bool = False) -> None:
    """Let the workers of all routers go, after their calls have been answered, or dropped."""
    with _lock:
        routers = list(_routers.values())
        _routers.clear()
    for router in routers:
        router.close(drop=drop)
