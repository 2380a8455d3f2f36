"""The lock with which one process of a node compiles the kernels while the others wait."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPILED_FIRST = "interpolation.*.nbi"
"""Files of numba's cache that are there once kernels have been compiled."""


@contextmanager
def one_compiler_per_node() -> Iterator[None]:
    """Hold the node's compile lock while processes that start together load the kernels.

    The process that finds none compiled says on its standard error what it is doing.
    """
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"mpipar-compile-{os.getuid()}.lock").open("a")
    except OSError:  # a read-only node: every process compiles for itself
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _are_compiled():
            sys.stderr.write(
                f"mpipar: compiling kernels, once on this machine ({socket.gethostname()})\n"
            )
        yield


def _are_compiled() -> bool:
    """Whether numba's cache has the kernels, or needs none."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        return True
    cache = os.environ.get("NUMBA_CACHE_DIR")
    beside = Path(__file__).parent  # where numba puts it if it is told no folder
    return any(True for _ in (Path(cache) if cache else beside).rglob(COMPILED_FIRST))
