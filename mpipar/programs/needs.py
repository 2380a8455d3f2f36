"""What a refinement will need: memory, disk, and time.

The factors of memory were fitted to the peaks of each process (time -f %M) of runs under mpirun
with two workers: rank 0's with boxes 64, 128 and 256, workers' with 64, 96, 128, 192 and 256, where
all peaks lie within a factor 1.5. Sums are of folds, or whole, never both in one iteration. What is
written is counted, and agreed within 3 %. The time is of a matrix product like the search's, timed
on this host, and of the sums; iterations took within a factor 3 of it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mpipar.cryoem.alignment import shift_grid
from mpipar.cryoem.device.device_memory import (
    LARGEST_DEVICE_BLOCK,
    device_bytes,
    soft_device_bytes,
)
from mpipar.cryoem.fourier import components, largest_radius
from mpipar.cryoem.orientation_grids import orientation_grid
from mpipar.cryoem.search_plan import Sampling, plan_search, plan_soft
from mpipar.errors import counted
from mpipar.programs.dataset import folds_of
from mpipar.programs.fold_sums import LARGEST_SUMS, sums_bytes
from mpipar.programs.folds import reference_box
from mpipar.views.progress import duration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.programs.block_rows import ImageGeometry
    from mpipar.programs.inputs import RefineInputs
    from mpipar.settings import RefineSettings

MEGABYTE: Final = 1e6
MASTER_PROGRAM, WORKER_PROGRAM = 450 * MEGABYTE, 200 * MEGABYTE  # with all libraries
ROW: Final = 2500  # bytes of rank 0's memory for each particle: its row, as text and as numbers
ROW_PER_PIXEL: Final = 8  # and for each pixel of the box's width: its power and largest amplitudes
MASTER_SUMS: Final = 1.5  # scaled sums of both half sets and volumes, over a half set's integers
MASTER_FOLDED: Final = 2.0  # sums of folds beyond two: as they come, added up, and one at a time
WORKER_SUMS: Final = 2.4
COMMIT_VOLUMES, RESULT_VOLUMES, FIRST_VOLUMES, BYTES_PER_VOXEL = 4, 4, 2, 4  # but for references
COMMITTED_ROW, RESULT_ROW = 120, 500  # bytes for each particle
BESIDE_PRODUCTS: Final = 2.5  # time of a search over that of its matrix products alone
SECONDS_PER_BYTE: Final = 6e-9  # of the sums: to gather them, solve the maps, save
TRIAL, TRIALS = 1024, 3  # rows and columns of the matrix product that is timed, and how often


def needs(
    inputs: RefineInputs,
    geometry: ImageGeometry,
    symmetry: NDArray[np.float64],
    settings: RefineSettings,
    workers: int,
    *,
    threads_only: bool = False,
) -> list[str]:
    """Return lines that say what the run will need.

    symmetry       (g, 3, 3)
    workers        how many share the images and the work
    threads_only   whether they are threads of this process, not processes
    """
    count, box = inputs.particles.count, inputs.box
    sampling = Sampling(box, 2 * geometry.radius, largest_radius(box), len(symmetry))
    plan = plan_search(sampling, largest_radius(box), exhaustive=True, free_scale=True)
    grid = _half_grid(plan.step, symmetry, settings.seed)
    values = 2 * len(components(box, plan.coarse_radius).shell)
    sums = sums_bytes(largest_radius(box))
    folded = _folded(inputs, symmetry)
    images = min(count * box * box * 4 / workers, settings.cache * MEGABYTE)
    slices = 2 * len(grid) * values * 4  # of both references
    images += max(slices, _soft_bytes(sampling, symmetry, settings.seed))
    master = (
        MASTER_PROGRAM
        + max(MASTER_SUMS * sums, MASTER_FOLDED * folded.more(2 * folded.count))
        + count * (ROW + ROW_PER_PIXEL * box)
    )
    own = folded.more(1 + math.ceil(2 * folded.count / workers))
    worker = WORKER_PROGRAM + WORKER_SUMS * sums + own + images
    shifts = len(shift_grid(plan.shift_range, plan.shift_step))
    work = 2.0 * count * len(grid) * shifts * values
    seconds = BESIDE_PRODUCTS * work / _speed(values) / (workers * settings.threads)
    seconds += SECONDS_PER_BYTE * sums
    memory = f"{_bytes(master)} on rank 0, {_bytes(worker)} on each of {counted(workers, 'worker')}"
    if threads_only:
        memory = _bytes(master + (images + 2 * sums) * workers)
    return [
        f"memory: about {memory}",
        _disk_line(box, count, folded),
        f"time: about {duration(seconds)} for each iteration over all orientations; often 5 to 10",
        *_device_lines(inputs, symmetry, settings),
    ]


def _disk_line(box: int, count: int, folded: _Folded) -> str:
    volume = BYTES_PER_VOXEL * box**3
    references = BYTES_PER_VOXEL * max(2 * box**3, 2 * folded.count * folded.box**3)
    commit = COMMIT_VOLUMES * volume + references + COMMITTED_ROW * count
    results = (RESULT_VOLUMES + FIRST_VOLUMES) * volume + (COMMITTED_ROW + RESULT_ROW) * count
    return f"disk: about {_bytes(results)} for the results and {_bytes(commit)} for each iteration"


@dataclass(frozen=True)
class _Folded:
    """What iterations need that keep sums by fold: nothing more, where there is one fold.

    count   folds of a half set
    sums    bytes of the largest sums of a fold
    box     of the references of all folds then, pixels
    """

    count: int
    sums: float
    box: int

    def more(self, kept: int) -> float:
        """Return the bytes of so many sums, at most all, beyond those of two half sets."""
        return self.sums * max(min(kept, 2 * self.count) - 2, 0)


def _folded(inputs: RefineInputs, symmetry: NDArray[np.float64]) -> _Folded:
    half = np.resize(np.array([1, 2], np.int8), inputs.particles.count)
    count = int(folds_of(half, len(symmetry)).max()) + 1
    radius = largest_radius(inputs.box)
    while radius > 1 and 2 * count * sums_bytes(radius) > LARGEST_SUMS:
        radius -= 1
    return _Folded(count, sums_bytes(radius), reference_box(inputs.box, radius))


def _half_grid(step: float, symmetry: NDArray[np.float64], seed: int) -> NDArray[np.float32]:
    return orientation_grid(step, symmetry, np.random.SeedSequence(seed), half_turn=True)


def _soft_bytes(sampling: Sampling, symmetry: NDArray[np.float64], seed: int) -> float:
    """Return the bytes of slices and of sums by orientation, of both half sets, on a worker."""
    plan = plan_soft(sampling, sampling.finest_shell, 2, spread=None, free_scale=False)
    grid = _half_grid(plan.step, symmetry, seed)
    known, added = (
        len(components(sampling.box, radius).shell)
        for radius in (plan.radius, plan.insertion_radius)
    )
    return 2.0 * len(grid) * (3 * known * 4 + 3 * added * 8)


def _device_lines(
    inputs: RefineInputs, symmetry: NDArray[np.float64], settings: RefineSettings
) -> list[str]:
    if settings.gpu is None:
        return []
    device = device_need(inputs, symmetry, settings.seed)
    return [
        f"GPU memory: about {_bytes(device)} for each worker; the time above is that of processors"
    ]


def device_need(inputs: RefineInputs, symmetry: NDArray[np.float64], seed: int) -> float:
    """Return the bytes that a worker takes of its GPU in the largest iteration.

    symmetry   (g, 3, 3)
    """
    box, finest = inputs.box, largest_radius(inputs.box)
    sampling = Sampling(box, 0.7 * box, finest, len(symmetry))
    plan = plan_search(sampling, finest, exhaustive=True, free_scale=True, doubtful=True)
    grid = orientation_grid(plan.step, symmetry, np.random.SeedSequence(seed))
    images = min(inputs.particles.count, LARGEST_DEVICE_BLOCK)
    soft = plan_soft(sampling, finest, 2, spread=None, free_scale=False)
    soft_grid = _half_grid(soft.step, symmetry, seed)
    return max(
        device_bytes(box, plan, finest, len(grid), images),
        soft_device_bytes(box, soft, len(soft_grid), images),
    )


def _speed(values: int) -> float:
    """Return the floating-point operations per second of a product like that of the search."""
    left, right = (np.ones(shape, np.float32) for shape in ((TRIAL, values), (values, TRIAL)))
    left @ right  # the first one may load the library
    taken = []
    for _ in range(TRIALS):  # the quickest is the least disturbed
        started = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - started)
    return 2.0 * TRIAL * TRIAL * values / max(min(taken), 1e-9)


def _bytes(size: float) -> str:
    gigabyte = 1000 * MEGABYTE
    return f"{size / gigabyte:.1f} GB" if size >= gigabyte else f"{size / MEGABYTE:.0f} MB"
