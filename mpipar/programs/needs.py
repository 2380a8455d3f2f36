"""What a refinement will need, roughly: memory, disk, and time.

The factors were fitted to two runs of one process, of boxes 64 and 96. The split of memory between
rank 0 and a worker is reckoned, not measured; the time depends on how busy this host is just now.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem.alignment import shift_grid
from mpipar.cryoem.fourier import components, largest_radius
from mpipar.cryoem.reconstruction import empty_sums
from mpipar.cryoem.rotations import orientation_grid
from mpipar.cryoem.search_plan import Sampling, plan_search
from mpipar.views.progress import duration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.stages import ImageGeometry
    from mpipar.settings import RefineSettings

MEGABYTE: Final = 1e6
PROGRAM: Final = 350 * MEGABYTE  # a process with all libraries
ROW: Final = 2000  # bytes of rank 0's memory for each particle's row
MASTER_COPIES: Final = 10  # sums of one half set and volumes of that size, on rank 0, at most
WORKER_COPIES: Final = 6
COMMIT_VOLUMES, RESULT_VOLUMES, BYTES_PER_VOXEL = 6, 4, 4
COMMITTED_ROW: Final = 120  # bytes for each particle in a commit
BESIDE_PRODUCTS: Final = 4.0  # time of an iteration over that of its matrix products alone
TRIAL: Final = 1024  # rows and columns of the matrix product that is timed


def needs(
    inputs: RefineInputs,
    geometry: ImageGeometry,
    symmetry: NDArray[np.float64],
    settings: RefineSettings,
    workers: int,
) -> list[str]:
    """Return lines that say what the run will need.

    symmetry   (g, 3, 3)
    workers    how many share the images and the work
    """
    count, box = inputs.particles.count, inputs.box
    sampling = Sampling(box, 2 * geometry.radius, largest_radius(box), len(symmetry))
    plan = plan_search(sampling, largest_radius(box), exhaustive=True, free_scale=True)
    grid = orientation_grid(plan.step, symmetry, np.random.SeedSequence(settings.seed))
    values = 2 * len(components(box, plan.coarse_radius).shell)
    sums = empty_sums(largest_radius(box)).nbytes
    images = min(count * box * box * 4 / workers, settings.cache * MEGABYTE)
    slices = 2 * len(grid) * values * 4
    master = PROGRAM + MASTER_COPIES * sums + count * ROW
    worker = PROGRAM + WORKER_COPIES * sums + images + slices
    commit = COMMIT_VOLUMES * BYTES_PER_VOXEL * box**3 + COMMITTED_ROW * count
    results = RESULT_VOLUMES * BYTES_PER_VOXEL * box**3 + ROW * count / 4
    shifts = len(shift_grid(plan.shift_range, plan.shift_step))
    work = 2.0 * count * len(grid) * shifts * values
    seconds = BESIDE_PRODUCTS * work / _speed(values) / (workers * settings.threads)
    return [
        f"memory: about {_bytes(master)} on rank 0, {_bytes(worker)} on each of {workers} workers",
        f"disk: about {_bytes(results)} for the results and {_bytes(commit)} for each iteration",
        f"time: about {duration(seconds)} for each iteration over all orientations; often 5 to 10",
    ]


def _speed(values: int) -> float:
    """Return the floating-point operations per second of a product like that of the search."""
    left, right = (np.ones(shape, np.float32) for shape in ((TRIAL, values), (values, TRIAL)))
    left @ right  # the first one may load the library
    started = time.perf_counter()
    left @ right
    return 2.0 * TRIAL * TRIAL * values / max(time.perf_counter() - started, 1e-9)


def _bytes(size: float) -> str:
    gigabyte = 1000 * MEGABYTE
    return f"{size / gigabyte:.1f} GB" if size >= gigabyte else f"{size / MEGABYTE:.0f} MB"
