"""What it saves that ranks of one host map the shared arrays: memory of all ranks, time of Begin.

    python -m tests.bench.node_memory [RANKS] [MIB]          default: 8 ranks, 256 MiB

Starts mpirun with and without, and prints for each the best of three runs: the most memory that
all ranks had together (PSS: a page that n processes map counts once), and the time until the stage
had started on every worker, and until it had also read the whole array there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.runtime.process.mpi_settings import prepare_mpi
from mpipar.runtime.stage import Stage, Task
from tests.support.memory import proportional_bytes

prepare_mpi()  # before mpi4py is loaded, as mpipar.launch does it

from mpipar.runtime.clusters import mpi_cluster  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mpipar.runtime.pool import Pool

REPEATS = 3
HOLD_SECONDS = 0.5


class Reads(Stage):
    """Notes when it started and when it had read the array, and holds it for a while."""

    def start(self, shared: Mapping[str, Any]) -> tuple[Any, float, float]:
        begun = time.monotonic()
        assert shared["array"].sum() == shared["array"].size
        return shared["array"], begun, time.monotonic()

    def run(self, task: Task, block: Any, state: tuple[Any, float, float]) -> tuple[float, float]:
        time.sleep(HOLD_SECONDS)
        return state[1:]


def run_once(pool: Pool, array: NDArray[np.float64]) -> dict[str, float]:
    """Run a task on every worker."""
    processes = [os.getpid(), *(hello.process for hello in pool.hosts.values())]
    tasks = [Task(number, None, None) for number in range(pool.workers)]
    seen: list[int] = []

    def watch(_: object) -> None:
        seen.append(sum(map(proportional_bytes, processes)))

    start = time.monotonic()
    results = pool.run(Reads(), {"array": array}, tasks, watch=watch).results
    begun, read = (max(moments) - start for moments in zip(*results, strict=True))
    return {"bytes": max(seen), "begun": begun, "read": read}


def measure(mebibytes: int) -> dict[str, float]:
    """Run on rank 0: seconds and bytes."""
    array = np.ones(mebibytes << 17)
    with mpi_cluster.open_pool() as pool:
        rows = []
        for _ in range(REPEATS):
            rows.append(run_once(pool, array))
            time.sleep(HOLD_SECONDS)  # so that the arrays of one run have gone before the next
    return {name: min(row[name] for row in rows) for name in rows[0]}


def job(ranks: int, mebibytes: int, knob: str) -> dict[str, float]:
    """Measure in a job of its own."""
    from tests.support import jobs
    from tests.support.installed import mpirun

    program = [sys.executable, "-m", "tests.bench.node_memory", "--measure", str(mebibytes)]
    line = [*mpirun(), "-n", str(ranks), *program]
    with jobs.Job([], line=line, env={"MPIPAR_NODE_MEMORY": knob}) as started:
        done = started.finish(120.0)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(ranks: int, mebibytes: int) -> dict[str, dict[str, float]]:
    """Measure with and without; print one line for each."""
    found = {knob: job(ranks, mebibytes, knob) for knob in ("on", "off")}
    print(f"{ranks} ranks, an array of {mebibytes} MiB")
    for knob, row in found.items():
        print(
            f"MPIPAR_NODE_MEMORY={knob:3}  PSS of all ranks {row['bytes'] / (1 << 20):6.0f} MiB   "
            f"started everywhere after {row['begun']:.2f} s, read after {row['read']:.2f} s"
        )
    return found


def main(words: list[str]) -> int:
    """A rank's part, or the caller's."""
    if words[:1] != ["--measure"]:
        table(*[int(word) for word in words] or [8, 256])
        return 0
    if mpi_cluster.world().rank:
        return mpi_cluster.serve()
    print(json.dumps(measure(int(words[1]))), flush=True)
    mpi_cluster.finish(0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
