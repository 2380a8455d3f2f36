"""A cluster inside one process: rank 0's pool, and worker threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mpipar.errors import UsageError
from mpipar.runtime.loops.prepared_stage import await_closed
from mpipar.runtime.loops.worker_loop import serve
from mpipar.runtime.node_memory.sharing_transport import SharingTransport
from mpipar.runtime.pool import STOP_SECONDS, Pool, stop_workers
from mpipar.runtime.process.environment import tune_process
from mpipar.runtime.transports.in_process import local_cluster

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Rank


def open_pool(workers: int, *, threads: int = 1, cache_bytes: int = 1 << 30) -> Pool:
    """Open a pool of worker threads in this process."""
    if workers < 1:
        raise UsageError(f"a pool needs at least one worker, not {workers}")
    tune_process()
    transports = local_cluster(workers + 1)
    worker_threads = [
        threading.Thread(
            target=serve, args=(transport,), name=f"worker-{transport.rank}", daemon=True
        )
        for transport in transports[1:]
    ]
    for thread in worker_threads:
        thread.start()

    def join(silent: list[Rank]) -> None:
        for thread in worker_threads:
            thread.join(0.0 if silent else STOP_SECONDS)
        await_closed()

    try:
        rank_0 = SharingTransport(transports[0], one_process=True)
        return Pool(rank_0, threads=threads, cache_bytes=cache_bytes, on_close=join)
    except BaseException:
        join(stop_workers(transports[0], range(1, workers + 1)))
        raise
