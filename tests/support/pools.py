"""Pools on real ranks for tests: rank 0 runs a program, the others serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mpipar.runtime.clusters.mpi_cluster import MpiTransport
from mpipar.runtime.loops import worker_loop
from mpipar.runtime.node_memory.sharing_transport import SharingTransport
from mpipar.runtime.pool import Pool
from tests.support.ranks import assert_on_all_ranks
from tests.support.stages import Total, tasks_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.runtime.reports import RunResult
    from mpipar.runtime.stage import Stage

COUNT: Final = 60  # tasks


def on_pool(
    world: Any, program: Callable[[Pool], bool], *, threads: int = 1, cache_bytes: int = 1 << 28
) -> None:
    """Run `program(pool)` on rank 0 while the others serve; its verdict holds on all ranks."""
    transport: SharingTransport[Any] = SharingTransport(MpiTransport(world))
    if world.rank:
        departure = worker_loop.serve(transport)
        assert_on_all_ranks(world, departure.code == 0, f"{departure}")
        return
    verdict, said = False, ""
    try:
        with Pool(transport, threads=threads, cache_bytes=cache_bytes, vendor="MPI 1.0") as pool:
            verdict = program(pool)
    except Exception as error:  # the others must hear of it
        said = repr(error)
    assert_on_all_ranks(world, verdict, said)


def is_right(outcome: RunResult, count: int = COUNT) -> bool:
    """Whether each of so many tasks of the stage Total has its result and was added once."""
    return (
        outcome.results == list(range(count))
        and outcome.sums is not None
        and outcome.sums["counted"].tolist() == [1] * count
        and bool(np.all(outcome.sums["total"] == sum(range(count))))
    )


def run(pool: Pool, stage: Stage | None = None, count: int = COUNT) -> RunResult:
    """Run a stage, or Total, with so many tasks, each of which has a block."""
    return pool.run(stage or Total(), {"count": count}, tasks_of(count))
