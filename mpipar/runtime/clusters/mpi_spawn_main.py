"""What MPI_Comm_spawn starts for a lost worker: a supervisor that forks the new worker.

MPI waits for MPI_Init in the process that it spawns. The supervisor has no MPI; the worker that it
forks calls MPI_Init, and says so through a pipe. If the worker dies before, the supervisor starts
MPI in its place and ends, so that rank 0 does not wait for ever.

This file is run as a script, with three words in JSON: the rank of the worker, the folders in which
Python finds modules, and environment variables.
"""

from __future__ import annotations

import json
import os
import signal
import sys


def main(words: str) -> None:
    """Fork the worker and wait until MPI has started in it, or in this process instead."""
    rank, folders, settings = json.loads(words)
    os.environ.update(settings)
    sys.path[:] = folders  # without the folder of this file
    from mpipar.runtime.process.mpi_settings import prepare_mpi
    from mpipar.system import end_with_parent

    prepare_mpi()
    reading, writing = os.pipe()
    supervisor, worker = os.getpid(), os.fork()
    if worker == 0:
        os.close(reading)
        if not end_with_parent(supervisor):
            os._exit(1)
        from mpipar.runtime.clusters.mpi_cluster import serve_as

        serve_as(rank, writing)
    os.close(writing)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.read(reading, 1):
        os.waitpid(worker, 0)
    else:
        os.kill(worker, signal.SIGKILL)
        from mpi4py import MPI  # noqa: F401 - its import starts MPI
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
