"""Stages and a source of blocks for tests of whole pools."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpipar.errors import InputError
from mpipar.runtime.stage import Stage, Task
from tests.support.memory import inode_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.runtime.stage import Block, Sums


class Seeing(NamedTuple):
    """What a task saw of an array."""

    process: int
    inode: int
    total: float
    flags: tuple[bool, bool]  # C order, writeable


def tasks_of(count: int, *, blocks: bool = True) -> list[Task]:
    return [Task(number, number if blocks else None, number) for number in range(count)]


class Numbers:
    """Block b is an array of 1000 times b. Remembers who read what."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, str]] = []

    def read(self, block: int) -> dict[str, Any]:
        self.reads.append((block, threading.current_thread().name))
        return {"x": np.full(1000, block, np.int64)}


class Truncated(Numbers):
    """Has no block 7."""

    def read(self, block: int) -> dict[str, Any]:
        if block == 7:
            raise InputError("particles.mrcs: 4096 bytes expected, 7 found")
        return super().read(block)


class Total(Stage):
    """Adds up the blocks and counts the tasks; a task may be told to sleep."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def start(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        counted = np.zeros(int(shared["count"]), np.int64)
        sums = {"counted": counted, "total": np.zeros((3, 1000), np.int64)}
        return {"sums": sums, "lock": threading.Lock()}

    def run(self, task: Task, block: Block | None, state: dict[str, Any]) -> int:
        time.sleep(self.seconds)
        value = block["x"] if block is not None else np.full(1000, task.id)
        with state["lock"]:
            state["sums"]["counted"][task.id] += 1
            state["sums"]["total"] += value
        return int(value[0])

    def partial(self, state: dict[str, Any]) -> Sums | None:
        sums: Sums = state["sums"]
        return sums


class Where(Stage):
    """Says in which process a task ran, and what was shared."""

    def start(self, shared: Mapping[str, Any]) -> float:
        return float(sum(np.sum(array) for array in shared.values()))

    def run(self, task: Task, block: Block | None, state: float) -> tuple[str, int, float]:
        time.sleep(0.005)
        return socket.gethostname(), os.getpid(), state


class Seen(Stage):
    """Says who ran a task, and which memory the shared array "a" was read from there."""

    def start(self, shared: Mapping[str, Any]) -> Mapping[str, Any]:
        return shared

    def run(self, task: Task, block: Block | None, state: Mapping[str, Any]) -> Seeing:
        array = state["a"]
        flags = bool(array.flags.c_contiguous), bool(array.flags.writeable)
        time.sleep(0.01)
        return Seeing(os.getpid(), inode_of(array), float(array.sum()), flags)


class Fails(Total):
    """Task 3 raises, on every worker or only the first time on the one that has run task 2."""

    def __init__(self, *, everywhere: bool) -> None:
        super().__init__()
        self.everywhere = everywhere

    def start(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        return super().start(shared) | {"tries": 0}

    def run(self, task: Task, block: Block | None, state: dict[str, Any]) -> int:
        first = state["sums"]["counted"][2] == 1 and state["tries"] == 0
        if task.id == 3 and (self.everywhere or first):
            state["tries"] += 1
            raise ValueError("task 3 does not want to")
        return super().run(task, block, state)


class Wide(Total):
    """Has sums of many chunks."""

    def start(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        state = super().start(shared)
        state["sums"]["wide"] = np.zeros((1500, 1000), np.int64)
        return state

    def run(self, task: Task, block: Block | None, state: dict[str, Any]) -> int:
        with state["lock"]:
            state["sums"]["wide"] += task.id
        return super().run(task, block, state)


class Occupied(Stage):
    """Task 0 is long and computes without a pause; all others are short. Times of start and end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def start(self, shared: Mapping[str, Any]) -> Any:
        return np.ones((2000, 2000), np.float32)

    def run(self, task: Task, block: Block | None, state: Any) -> tuple[float, float, int]:
        start = time.monotonic()
        if task.id == 0 and self.kind == "kernel":
            for _ in range(10):
                state @ state  # releases the interpreter lock, as numba's kernels do
        elif task.id == 0:
            while time.monotonic() < start + 0.5:
                pass
        return start, time.monotonic(), os.getpid()
