"""Tasks per second of an executor, with whatever workers it finds.

mpirun --with-ft ulfm -n 4 python -m mpipar exec tests/bench/executors.py mpipar
mpirun -n 4 python -m mpi4py.futures tests/bench/executors.py mpi4py
python tests/bench/executors.py processes
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def empty(number: int) -> None:
    del number


def image(number: int) -> NDArray[np.uint8]:
    return np.full(1 << 16, number % 256, np.uint8)


def executor_of(name: str) -> Any:
    if name == "mpipar":
        from mpipar import Executor

        return Executor()
    if name == "mpi4py":
        from mpi4py.futures import MPIPoolExecutor

        return MPIPoolExecutor()
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(3)


def best(seconds: float, run: Any) -> float:
    """Tasks per second of the best of several runs that take about so long together."""
    rates, until = [0.0], time.perf_counter() + seconds
    while time.perf_counter() < until:
        begin = time.perf_counter()
        count = run()
        rates.append(count / (time.perf_counter() - begin))
    return max(rates)


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    many = 100_000 if name == "mpipar" else 10_000
    with executor_of(name) as executor:
        list(executor.map(empty, range(100)))

        def mapped(function: Any, count: int, chunksize: int) -> Any:
            return lambda: sum(1 for _ in executor.map(function, range(count), chunksize=chunksize))

        def submitted() -> int:
            for future in [executor.submit(empty, number) for number in range(2000)]:
                future.result()
            return 2000

        def one_by_one() -> int:
            for number in range(200):
                executor.submit(empty, number).result()
            return 200

        runs = {
            "empty, chunk 1": mapped(empty, many, 1),
            "empty, chunk 100": mapped(empty, 200_000, 100),
            "64 KiB result, chunk 1": mapped(image, 2000, 1),
            "64 KiB result, chunk 20": mapped(image, 2000, 20),
            "empty, submitted": submitted,
            "empty, one after the other": one_by_one,
        }
        for what, run in runs.items():
            print(f"{name:10} {what:28} {best(seconds, run):12,.0f} /s", flush=True)


if __name__ == "__main__":
    main()
