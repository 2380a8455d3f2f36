"""Run a function in a child that ends, as by kill -9, at the n-th line of a package, or n-th call.

`sys.settrace` counts the lines in the child, so production code needs no hooks. What the kernel has
been given survives such a death; that bytes reach the disk in the right order is tested by a
recording fake (unit/store/test_durable.py).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

Choice = Callable[[int], Iterable[int]]  # of how many lines -> at which to die

DIED: Final = 77  # exit code of a child that met its line
KILLED: Final = 9  # exit code of a child that met its call
NEVER: Final = 1_000_000_000
# each child is forked from a server that has imported the store and has no threads: fast, and safe
_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mpipar.store"])


def _run(act: Callable[[], object], folder: str, die_at: int, count: Any) -> None:
    lines = 0

    def on_event(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(folder):
            return None
        if event == "line":
            lines += 1
            if lines == die_at:
                os._exit(DIED)
        return on_event

    sys.settrace(on_event)
    act()
    sys.settrace(None)
    count.value = lines
    os._exit(0)


def run(act: Callable[[], object], package: Path, die_at: int = NEVER) -> tuple[int, int]:
    """Call `act` (pickled) in a child; return its exit code and, if it lived, the lines it ran."""
    count = _CONTEXT.Value("q", 0)
    child = _CONTEXT.Process(target=_run, args=(act, f"{package.resolve()}{os.sep}", die_at, count))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode, int(count.value)


def run_to_call(
    number: int,
    calls: Iterable[tuple[Any, str]],
    act: Callable[..., object],
    begin: Callable[[], tuple[Any, ...]] = tuple,
) -> int:
    """Call `act` in a forked child that ends at the n-th call of some functions.

    calls     a module and the name of a function there, each
    begin     called before calls count; returns the arguments of `act`
    returns   the child's exit code: KILLED; 0 if it did not get so far; 1 after an exception
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = number

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os._exit(KILLED)
            return function(*words, **more)

        return call

    try:
        arguments = begin()
        for module, name in calls:
            setattr(module, name, counted(getattr(module, name)))
        act(*arguments)
        os._exit(0)
    finally:
        os._exit(1)


def spread(deaths: int) -> Choice:
    """Choose about so many lines, spread evenly, with the first and the last."""
    return lambda total: sorted({1 + round(i * (total - 1) / (deaths - 1)) for i in range(deaths)})


def every(shards: int, shard: int) -> Choice:
    """Choose each line of one shard; all shards together are all lines."""
    return lambda total: range(1 + shard, total + 1, shards)


def package_folder(module: Any) -> Path:
    """Where a package's modules lie."""
    return Path(module.__file__).parent
