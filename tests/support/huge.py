"""A job whose arrays are beyond 2 GiB: what is shared, blocks, results, sums, one after another.

`mpirun ... python -m tests.support.huge shared block result sums pickle isolated` says of each
whether it arrived right.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.runtime.process.mpi_settings import prepare_mpi
from mpipar.runtime.stage import Policy, Stage, Task

prepare_mpi()  # before mpi4py is loaded, as mpipar.launch does it

from mpipar.runtime.clusters import mpi_cluster  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mpipar.runtime.pool import Pool
    from mpipar.runtime.stage import Sums

SIZE = (1 << 31) + 12_345_678  # bytes
STEP = 1 << 22


def marked() -> NDArray[np.uint8]:
    """Return bytes of which every STEP-th, and the last, says where it is."""
    array = np.zeros(SIZE, np.uint8)
    array[::STEP] = 1 + np.arange(len(array[::STEP])) % 251
    array[-1] = 77
    return array


def is_marked(array: NDArray[np.uint8]) -> bool:
    """Whether this is what `marked` gave."""
    marks = 1 + np.arange(len(array[::STEP])) % 251
    return (
        array.shape == (SIZE,)
        and bool((array[::STEP] == marks).all())
        and int(array[-1]) == 77
        and int(np.count_nonzero(array)) == len(marks) + 1
    )


class Looks(Stage):
    """Says whether it sees the shared array, and the block, as they should be."""

    def start(self, shared: Mapping[str, Any]) -> Any:
        return shared.get("huge")

    def run(self, task: Task, block: Mapping[str, Any] | None, state: Any) -> bool:
        return is_marked(state if block is None else block["huge"])


class Gives(Stage):
    """Has a huge array, or a huge string, as its result."""

    def run(self, task: Task, block: Mapping[str, Any] | None, state: Any) -> Any:
        return marked() if task.payload == "array" else "x" * SIZE


class Adds(Stage):
    """Adds one to each of its many numbers for every task."""

    def start(self, shared: Mapping[str, Any]) -> Sums:
        return {"huge": np.zeros((3, SIZE // 24), np.int64)}

    def run(self, task: Task, block: Mapping[str, Any] | None, state: Sums) -> None:
        state["huge"] += 1

    def partial(self, state: Sums) -> Sums:
        return state


class Blocks:
    """One huge block."""

    def read(self, block: int) -> dict[str, Any]:
        return {"huge": marked()}


def is_right(pool: Pool, what: str) -> bool:
    """Run what has such an array, and look at it."""
    tasks = [Task(number, None, what) for number in range(pool.workers)]
    match what:
        case "shared":
            return all(pool.run(Looks(), {"huge": marked()}, tasks).results)
        case "block":
            pool.serve(Blocks())
            right = all(pool.run(Looks(), {}, [Task(0, 0, None)]).results)
            pool.serve(Blocks())  # workers forget what they have cached
            return right
        case "result":
            (result,) = pool.run(Gives(), {}, [Task(0, None, "array")]).results
            return is_marked(result)
        case "pickle":
            (text,) = pool.run(Gives(), {}, [Task(0, None, "text")]).results
            return len(text) == SIZE and set(text[::STEP]) == {"x"}
        case "isolated":
            alone = Policy(isolate=True)
            (right,) = pool.run(
                Looks(), {"huge": marked()}, [Task(0, None, "")], policy=alone
            ).results
            (result,) = pool.run(Gives(), {}, [Task(0, None, "array")], policy=alone).results
            return right and is_marked(result)
        case "sums":
            sums = pool.run(Adds(), {}, tasks).sums
            return sums is not None and bool((sums["huge"] == len(tasks)).all())
        case _:
            raise ValueError(what)


def main(words: list[str]) -> int:
    """Rank 0's part, or a worker's."""
    if mpi_cluster.world().rank:
        return mpi_cluster.serve()
    with mpi_cluster.open_pool() as pool:
        for what in words:
            print(f"{what}: {'right' if is_right(pool, what) else 'wrong'}", flush=True)
    mpi_cluster.finish(0)
    return 0


if __name__ == "__main__":
    from tests.support import huge  # child processes cannot import classes of __main__

    sys.exit(huge.main(sys.argv[1:]))
