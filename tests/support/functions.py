"""Functions that tests have workers call."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

setups: list[tuple[int, Any]] = []  # of this process: thread, argument
current = threading.local()


def square(number: float) -> float:
    return number * number


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise ArithmeticError(f"{number} is bad")
    return number


def remember(argument: Any) -> tuple[Any]:
    setups.append((threading.get_ident(), argument))
    current.argument = argument
    return (argument,)


def recall() -> Any:
    return current.argument


def refuse() -> None:
    raise LookupError("no such file on this node")


def double_in_place(array: NDArray[Any]) -> NDArray[Any]:
    array *= 2
    return array


def ramp(size: int) -> NDArray[np.float64]:
    return np.arange(size, dtype=np.float64)


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def pair(*arguments: Any, **keywords: Any) -> tuple[Any, Any]:
    return arguments, keywords


def unpicklable() -> Any:
    return lambda: None


@dataclass
class NeedsTwoError(Exception):
    """Can be pickled, but not read back."""

    first: int
    second: int

    def __post_init__(self) -> None:
        super().__init__(self.first)


def raise_needs_two() -> None:
    raise NeedsTwoError(1, 2)


class Model:
    """A callable object that holds its data."""

    def __init__(self, size: int) -> None:
        self.data = np.ones(size)
        self.pickled = 0

    def __getstate__(self) -> dict[str, Any]:
        self.pickled += 1
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        setups.append((threading.get_ident(), self.data.size))

    def __call__(self, factor: float) -> float:
        return float(self.data.sum()) * factor


class Counter:
    """A callable object that changes with each call."""

    def __init__(self, size: int) -> None:
        self.data = np.zeros(size)
        self.calls: list[int] = []

    def __call__(self, number: int) -> tuple[float, int, int]:
        self.data[0] += 1
        self.calls.append(number)
        return float(self.data[0]), len(self.calls), self.calls[0]


class EndsWhenRead:
    """An object that no process can read, e.g. for want of a licence."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __setstate__(self, state: dict[str, Any]) -> None:
        sys.exit(state["code"])


class EndsWhenPickled(EndsWhenRead):
    """An object that cannot be pickled either."""

    def __reduce__(self) -> tuple[Any, ...]:
        sys.exit(self.code)
