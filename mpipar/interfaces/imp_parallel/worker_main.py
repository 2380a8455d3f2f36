"""The program of a worker of `mpipar.imp`.

    python -m mpipar.interfaces.imp_parallel.worker_main HOST PORT KEYFILE ID

The program connects to its manager, and runs tasks until it is told to stop or the connection
breaks. If it cannot connect, its output says why.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mpipar.errors import MissingInputError, MpiparError
from mpipar.runtime.clusters import tcp_cluster
from mpipar.runtime.process.exits import exit_now


def main(arguments: list[str]) -> int:
    """Be a worker; return the exit code."""
    host, port, key_file, unique_id = arguments
    try:
        departure = tcp_cluster.serve(host, int(port), _key(key_file), unique_id)
    except MpiparError as error:
        sys.stderr.write(f"mpipar: {error}\n")
        return error.exit_code
    if not departure.threads_ended:
        exit_now(departure.code)  # a thread inside a task would keep this process
    return departure.code


def _key(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise MissingInputError(
            f"cannot read the key of the job ({error}): either its manager has ended, or this host "
            "does not see the folder in which the manager runs"
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
