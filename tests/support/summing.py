"""A job of a few short runs with blocks, shared arrays and sums, which checks all it gets.

`mpirun ... python -m tests.support.summing [replace] [count] [RUNS]`: rank 0 says which process
each worker is, then whom it lost and who is new, and `all right` at the end; with `count`, also the
end of each run. With words such as
`1:sends:Claim:2` rank 1 kills itself when it is about to send, has `sent`, or `receives` its second
Claim; `2:starts` before it says a word. `hosts:2` makes ranks believe that they are on two hosts by
turns, and `3:late` makes rank 3 slow to look for arrays that another has published for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.errors import MpiparError
from mpipar.runtime.node_memory.shared_arrays import SharedArrays
from mpipar.runtime.process.mpi_settings import prepare_mpi
from mpipar.runtime.stage import Stage, Task

prepare_mpi()  # before mpi4py is loaded, as mpipar.launch does it

from mpipar.runtime.clusters import mpi_cluster  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.runtime.machines.messages import Message, Rank
    from mpipar.runtime.pool import Pool

RUNS, TASKS = 4, 150
SECONDS = 0.008  # of a task
WIDE = (4, 300_000)  # several chunks of the reduction
LARGE = 2_000_000  # numbers that go over the tree


class Sums(Stage):
    """Notes which tasks were counted, and adds their blocks up."""

    def start(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        assert shared["large"].sum() == LARGE
        return {"counted": np.zeros(TASKS, np.int64), "wide": np.zeros(WIDE, np.int64)}

    def run(self, task: Task, block: Mapping[str, Any] | None, state: dict[str, Any]) -> int:
        assert block is not None
        time.sleep(SECONDS)
        value = int(block["x"][-1])
        state["counted"][task.id] += 1
        state["wide"] += value
        return value

    def partial(self, state: dict[str, Any]) -> dict[str, Any]:
        return state


class Blocks:
    """Block b is an array of 3 b + 1; the last ones are large."""

    def read(self, block: int) -> dict[str, Any]:
        size = 5_000_000 if block > TASKS - 4 else 50_000
        return {"x": np.full(size, 3 * block + 1, np.int64)}


def compute(pool: Pool, runs: int, *, count: bool) -> None:
    """Run and check, and count the runs aloud if asked to."""
    pool.serve(Blocks())
    tasks = [Task(number, number, None) for number in range(TASKS)]
    wanted = [3 * number + 1 for number in range(TASKS)]
    shares = Counter[int]()
    for number in range(runs):
        known = len(pool.losses)
        outcome = pool.run(Sums(), {"large": np.ones(LARGE)}, tasks)
        assert outcome.sums is not None
        shares.update(outcome.statistics.tasks_per_rank)
        assert outcome.results == wanted
        assert outcome.sums["counted"].tolist() == [1] * TASKS
        assert (outcome.sums["wide"] == sum(wanted)).all()
        for loss in pool.losses[known:]:
            print(loss, flush=True)
        if count:
            print(f"run {number + 1} is right", flush=True)
    for gain in pool.gains:
        print(f"{gain}; it did {shares[gain.rank]} tasks")
    print("all right", flush=True)


def believe_as_told(rank: int, words: list[str]) -> None:
    """Arrange this rank's host, and how late it is."""
    find = SharedArrays.attach

    def find_late(values: Mapping[str, Any]) -> SharedArrays:
        time.sleep(0.3)
        return find(values)

    for who, what in (word.split(":") for word in words):
        if who == "hosts":
            name = f"node{rank % int(what)}"
            socket.gethostname = partial(str, name)
        elif int(who) == rank:
            SharedArrays.attach = find_late  # type: ignore[method-assign]


def die_as_told(rank: int, words: list[str]) -> None:
    """Arrange this rank's death."""
    for mine, event, *when in (word.split(":") for word in words):
        if int(mine) == rank and event == "starts":
            os.kill(os.getpid(), signal.SIGKILL)
        if int(mine) == rank:
            _die_at(event, when[0], int(when[1]))


def _die_at(event: str, kind: str, count: int) -> None:
    left = count
    send, receive = mpi_cluster.MpiTransport.send, mpi_cluster.MpiTransport.receive

    def met(message: Message) -> bool:
        nonlocal left
        left -= type(message).__name__ == kind
        return left == 0

    def sending(self: mpi_cluster.MpiTransport[Any], rank: Rank, message: Message) -> None:
        now = event != "receives" and met(message)
        if now and event == "sends":
            os.kill(os.getpid(), signal.SIGKILL)
        send(self, rank, message)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    def receiving(self: mpi_cluster.MpiTransport[Any]) -> list[tuple[Rank, Any]]:
        arrived = receive(self)
        if event == "receives" and sum(met(message) for _, message in arrived):
            os.kill(os.getpid(), signal.SIGKILL)
        return arrived

    mpi_cluster.MpiTransport.send = sending  # type: ignore[method-assign]
    mpi_cluster.MpiTransport.receive = receiving  # type: ignore[method-assign]


def main(words: list[str]) -> int:
    """Rank 0's part, or a worker's."""
    rank = mpi_cluster.world().rank
    beliefs = [word for word in words if word.startswith("hosts:") or word.endswith(":late")]
    believe_as_told(rank, beliefs)
    replace, count = "replace" in words, "count" in words
    words = [word for word in words if word not in {"replace", "count"}]
    runs = int(words.pop(0)) if words and words[0].isdecimal() else RUNS
    if rank:
        die_as_told(rank, [word for word in words if word not in beliefs])
        return mpi_cluster.serve()
    code = 0
    try:
        with mpi_cluster.open_pool() as pool:
            assert not replace or pool.replace_lost()
            processes = {rank: hello.process for rank, hello in pool.hosts.items()}
            print(json.dumps(processes), flush=True)
            compute(pool, runs, count=count)
    except MpiparError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        code = error.exit_code
    mpi_cluster.finish(code)
    return code


if __name__ == "__main__":
    from tests.support import summing  # a spawned worker has another __main__

    sys.exit(summing.main(sys.argv[1:]))
