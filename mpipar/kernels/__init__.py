"""Numba loops: arrays in, arrays changed in place; no checks, no Python objects.

Only `mpipar.cryoem` calls them. All are compiled, or loaded from numba's cache, when one is used
first: processes that use none start without numba.
"""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mpipar.kernels.compile_lock import one_compiler_per_node

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "begin_to_load",
    "insertion",
    "pose_weights",
    "poses",
    "scores",
    "slices",
    "volume_passes",
]

NAMES = ("insertion", "pose_weights", "poses", "scores", "slices", "volume_passes")


def load() -> None:
    """Load all kernels; the first process of a node compiles them."""
    with one_compiler_per_node(), _no_collection():
        for name in NAMES:
            import_module(f"{__name__}.{name}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let Python's garbage collector rest: what numba makes here stays, and is very much."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def begin_to_load() -> None:
    """Load all kernels in a thread, so that they are there when they are needed."""
    threading.Thread(target=load, name="load-kernels").start()


class KernelModule(ModuleType):
    """A module of kernels, under its name, that is loaded when a kernel of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        load()
        found = getattr(import_module(self.__name__), name)
        setattr(self, name, found)  # from now on it is found at once
        return found


if TYPE_CHECKING:
    from mpipar.kernels import insertion, pose_weights, poses, scores, slices, volume_passes
else:
    insertion, pose_weights, poses, scores, slices, volume_passes = (
        KernelModule(f"{__name__}.{name}") for name in NAMES
    )
