"""A stage whose tasks do what their payload says: to their own process, mostly."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from mpipar.runtime.stage import Stage, Task

if TYPE_CHECKING:
    from collections.abc import Mapping


class Acts(Stage):
    """Does what a task says."""

    def start(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        act(shared.get("start", "nothing"))
        return {"count": 0, "shared": shared}

    def run(self, task: Task, block: Any, state: dict[str, Any]) -> Any:
        state["count"] += 1
        match task.payload:
            case "count":
                return os.getpid(), state["count"]
            case "environment":
                return dict(os.environ), signal.getsignal(signal.SIGINT), sys.stdin.read()
            case "arrays":
                big = block["x"]
                return big * 2, state["shared"]["y"], big.flags.writeable
            case "block":
                return None if block is None else int(block["x"][0])
            case "lambda":
                return lambda: None
            case float():
                time.sleep(task.payload)
            case _:
                act(task.payload)
        return task.id


def act(what: str) -> None:
    """Do something to this process."""
    match what:
        case "segfault":
            ctypes.string_at(0)
        case "exit 3":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sys.exit":
            sys.exit("enough")
        case "raise":
            raise ValueError("bad task")
        case "hang":
            while True:
                pass
        case "offspring":
            with subprocess.Popen(["sleep", "60"]) as sleeper:
                print("sleeper", sleeper.pid)
                os._exit(1)
        case "print":
            print("hello from a task", end="")
        case _:
            pass


def tasks(*payloads: Any) -> list[tuple[Task, None]]:
    """Tasks without blocks, one for each payload."""
    return [(Task(number, None, payload), None) for number, payload in enumerate(payloads)]
