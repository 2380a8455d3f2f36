"""Tasks and setups for the tests of `mpipar.imp`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


class Give:
    """Return a value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *setup: Any) -> Any:
        return self.value


class Sleep(Give):
    """Return a value after some time."""

    def __init__(self, value: Any, seconds: float) -> None:
        super().__init__(value)
        self.seconds = seconds

    def __call__(self, *setup: Any) -> Any:
        time.sleep(self.seconds)
        return self.value


class Arguments(Give):
    """Return a value and what the setup gave."""

    def __call__(self, *setup: Any) -> Any:
        return self.value, setup


class NotedSetup:
    """Leave a file for each call; give a name and this process."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    def __call__(self) -> tuple[str, int]:
        (self.folder / f"{self.name}-{os.getpid()}-{time.monotonic_ns()}").touch()
        return self.name, os.getpid()


class Deadly:
    """Send a signal to this process or to its parent, but only so many times."""

    def __init__(self, folder: Path, times: int, signal_number: int, *, parent: bool) -> None:
        self.folder = folder
        self.times = times
        self.signal_number = signal_number
        self.parent = parent

    def __call__(self, *setup: Any) -> str:
        time.sleep(0.05)
        if len(list(self.folder.iterdir())) < self.times:
            (self.folder / f"{time.monotonic_ns()}").touch()
            os.kill(os.getppid() if self.parent else os.getpid(), self.signal_number)
            time.sleep(30)
        return "survived"


def raise_value_error(*setup: Any) -> None:
    raise ValueError("no such thing")


def raise_in_setup() -> tuple[()]:
    raise LookupError("no model there")


def give_one_number() -> Any:
    return 7


def give_unpicklable(*setup: Any) -> Any:
    return lambda: None


class Unreadable:
    """Can be pickled, but not read back."""

    def __reduce__(self) -> Any:
        return raise_value_error, ()


def give_unreadable(*setup: Any) -> Any:
    return Unreadable()


def give_processes(*setup: Any) -> tuple[int, int]:
    time.sleep(0.02)
    return os.getppid(), os.getpid()


def give_large(*setup: Any) -> Any:
    array = np.zeros(2_200_000_000, np.uint8)
    array[-1] = 7
    return array
