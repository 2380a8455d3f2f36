"""One rank of a refinement that `refine.py` measures: `python measured_rank.py FOLDER refine ...`.

It is `python -m mpipar refine ...`, and notes the processor and wall seconds at which each stage
begins on this rank, how fast products of the grid search are, and the most memory it has used. A
phase lasts until the next stage begins: on rank 0 it includes the maps that follow from the stage.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpipar.cli.main import main
from mpipar.launch import Launch
from mpipar.runtime.loops import worker_loop
from mpipar.runtime.pool import Pool

if TYPE_CHECKING:
    from mpipar.runtime.stage import Stage

PHASES = {"LookStage": "first look", "SoftStage": "soft", "HeldOutStage": "signal"}
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def processor_seconds() -> float:
    """Return user and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Notes:
    """What one rank notes; written to a file of its own when the process ends."""

    def __init__(self, folder: Path) -> None:
        rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
        self.path = folder / f"rank-{int(rank):04d}.json"
        self.marks: list[tuple[str, float, float]] = [("start", 0.0, time.time())]
        self.product = [0.0, 0.0]  # floating-point operations of products, processor seconds

    def stage_begins(self, stage: Stage) -> None:
        """Note that a phase begins on this rank."""
        name = type(stage).__name__
        plan = getattr(stage, "plan", None)
        phase = PHASES.get(name) or ("search" if getattr(plan, "exhaustive", False) else "local")
        self.marks.append((phase, processor_seconds(), time.time()))

    def write(self) -> None:
        """Write what was noted until now."""
        self.marks.append(("end", processor_seconds(), time.time()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        noted = {"marks": self.marks, "peak": peak, "product": self.product}
        self.path.write_text(json.dumps(noted), encoding="utf-8")


def watch_stages(notes: Notes) -> None:
    """Have rank 0 note each run of a stage, and workers each start of one."""
    from mpipar.programs.look_stage import LookStage
    from mpipar.programs.soft_stage import HeldOutStage, SoftStage
    from mpipar.programs.stages import AlignStage

    def watched(start: Any) -> Any:
        def begin(stage: Stage, *arguments: Any) -> Any:
            notes.stage_begins(stage)
            return start(stage, *arguments)

        return begin

    kinds: list[Any] = [LookStage, SoftStage, HeldOutStage, AlignStage]
    for kind in kinds:
        kind.start = watched(kind.start)
    pools: Any = Pool
    run = pools.run

    def run_noted(pool: Pool, stage: Stage, *arguments: Any, **words: Any) -> Any:
        notes.stage_begins(stage)
        return run(pool, stage, *arguments, **words)

    pools.run = run_noted


def watch_end(notes: Notes) -> None:
    """Write the notes once the work is done; where MPI tolerates faults, a rank then just exits."""
    launch: Any = Launch
    loop: Any = worker_loop
    finish, serve = launch.finish, loop.serve

    def finish_noted(job: Any, code: int) -> None:
        notes.write()
        finish(job, code)

    def serve_noted(transport: Any) -> Any:
        departure = serve(transport)
        notes.write()
        return departure

    launch.finish, loop.serve = finish_noted, serve_noted


def watch_products(notes: Notes) -> None:
    """Count the operations of grid searches, and the seconds of the threads that do them."""
    from mpipar.cryoem.alignment import GridSearch, shift_grid

    grids: Any = GridSearch
    begin, find = grids.__init__, grids.best_candidates

    def begin_counted(grid: Any, reference: Any, orientations: Any, plan: Any, wanted: Any) -> None:
        begin(grid, reference, orientations, plan, wanted)
        shifts = len(shift_grid(plan.shift_range, plan.shift_step))
        # two products, real and imaginary, of a multiplication and an addition each; and |slice|^2
        grid.operations = len(orientations) * wanted.within(plan.coarse_radius) * (4 * shifts + 2)

    def find_counted(grid: Any, data: Any, centres: Any) -> Any:
        began = time.thread_time()
        found = find(grid, data, centres)
        notes.product[1] += time.thread_time() - began
        notes.product[0] += grid.operations * len(data)
        return found

    grids.__init__, grids.best_candidates = begin_counted, find_counted


if __name__ == "__main__":
    own = Notes(Path(sys.argv[1]))
    watch_end(own)
    watch_stages(own)
    watch_products(own)
    sys.exit(main(sys.argv[2:]))
