"""`python -m tests.bench.compare [ROUNDS]`: mpipar.Executor beside mpi4py.futures, as ratios.

Both on 4 ranks of the same Open MPI (3 workers), by turns, mpipar with fault tolerance. The best
rate of all rounds counts, for both; the ratio is that of the best.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).with_name("executors.py")
MPIRUN = [str(Path(sys.executable).with_name("mpirun")), "--oversubscribe"]
COMMANDS = {
    "mpipar": [*MPIRUN, "--with-ft", "ulfm", "-n", "4", sys.executable, "-m", "mpipar", "exec"],
    "mpi4py": [*MPIRUN, "-n", "4", sys.executable, "-m", "mpi4py.futures"],
}
SURROUNDINGS = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,sm,tcp",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def rates(name: str) -> dict[str, float]:
    """Run one of the two once; tasks per second by what they do."""
    command = [*COMMANDS[name], str(BENCH), name, "1.5"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**SURROUNDINGS, **os.environ}
    )
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith(name) and line.endswith("/s"):
            what, rate = line[len(name) : -2].strip().rsplit(maxsplit=1)
            found[what.strip()] = float(rate.replace(",", ""))
    return found


def main(rounds: int) -> None:
    """Print the table."""
    best: dict[str, dict[str, float]] = {name: {} for name in COMMANDS}
    for _ in range(rounds):
        for name, known in best.items():
            for what, rate in rates(name).items():
                known[what] = max(known.get(what, 0.0), rate)
    load = os.getloadavg()[0]
    print(f"{'tasks per second':28} {'mpipar':>12} {'mpi4py':>12} {'ratio':>7}   (load {load:.1f})")
    for what, rate in best["mpipar"].items():
        other = best["mpi4py"][what]
        print(f"{what:28} {rate:12,.0f} {other:12,.0f} {rate / other:7.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
