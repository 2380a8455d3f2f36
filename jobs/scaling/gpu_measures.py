"""What is measured on a GPU alone: its rates, bits, the time of each step, images per second."""

from __future__ import annotations

import hashlib
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.scaling.gpu_problem import LOCAL, SOFT, Problem, part_of
from mpipar.cryoem import alignment

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.programs.block_rows import ParticleRows
    from mpipar.programs.device_block import DeviceAligner, DeviceBlocks
    from mpipar.programs.device_soft import DeviceExpecter


def aligner_of(accelerator: Accelerator, problem: Problem) -> DeviceAligner:
    """Return a new aligner, whose sums are empty."""
    from mpipar.programs.device_block import DeviceAligner

    stage = problem.stage
    return DeviceAligner(_blocks_of(accelerator, problem), stage.plan, stage.scales)


def expecter_of(accelerator: Accelerator, problem: Problem) -> DeviceExpecter:
    """Return what does the soft iteration's work, with empty sums."""
    from mpipar.programs.device_soft import DeviceExpecter

    stage = problem.soft
    return DeviceExpecter(_blocks_of(accelerator, problem, soft=True), stage.plan, stage.scales)


def _blocks_of(accelerator: Accelerator, problem: Problem, *, soft: bool = False) -> DeviceBlocks:
    from mpipar.programs.device_block import DeviceBlocks

    radius = problem.soft.plan.insertion_radius if soft else problem.stage.insertion_radius
    shared = problem.soft_shared if soft else problem.shared
    return DeviceBlocks.of(accelerator, problem.stage.geometry, radius, shared)


def seconds_of(accelerator: Accelerator, work: Callable[[], Any], repeat: int = 5) -> float:
    """Return the median time of some work on the device; the first time is not counted."""
    xp = accelerator.xp
    if not accelerator.is_real:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    work()
    times: list[float] = []
    for _ in range(repeat):
        first, last = xp.cuda.Event(), xp.cuda.Event()
        first.record()
        work()
        last.record()
        last.synchronize()
        times.append(xp.cuda.get_elapsed_time(first, last) / 1e3)
    return float(statistics.median(times))


def ceilings(accelerator: Accelerator, side: int) -> dict[str, float]:
    """Measure the card's matrix rates and its memory, with random numbers."""
    xp = accelerator.xp
    left, right = (
        accelerator.to_device(np.random.default_rng(n).random((side, side), np.float32))
        for n in (1, 2)
    )
    rounded = seconds_of(accelerator, lambda: accelerator.coarse_product(left, right))
    exact = seconds_of(accelerator, lambda: xp.matmul(left, right))
    large = xp.zeros(side * side * 8, np.float32)
    copy = seconds_of(accelerator, large.copy)
    work = 2.0 * side**3
    return {
        "tf32_tflops": work / rounded / 1e12,
        "fp32_tflops": work / exact / 1e12,
        "copy_tb_per_s": 2.0 * large.nbytes / copy / 1e12,
    }


def bits_of(
    accelerator: Accelerator, problem: Problem, size: int, kind: str, *, backwards: bool
) -> str:
    """Return a digest of poses, residuals and sums of all images, in blocks."""
    work = worker_of(accelerator, problem, kind)
    rows = problem.near if kind == LOCAL else problem.rows
    digests = {}
    starts = list(range(0, len(problem.images), size))
    for start in reversed(starts) if backwards else starts:
        part = slice(start, start + size)
        found, residual, *_ = work(part_of(rows, part), problem.images[part])
        poses = found.poses if kind == SOFT else found
        values = (poses.rotations, poses.shifts, poses.score, residual)
        digests[start] = hashlib.sha256(b"".join(v.tobytes() for v in values)).hexdigest()
    total = hashlib.sha256("".join(digests[start] for start in starts).encode())
    total.update(work.args[0].sums()["half1"].tobytes())
    return total.hexdigest()[:16]


def kernels(accelerator: Accelerator, problem: Problem) -> dict[str, float]:
    """Time each step of the alignment of one block, in microseconds per image."""
    from mpipar.cryoem.device import device_alignment, device_images, device_spread
    from mpipar.cryoem.device.device_alignment import DevicePoses
    from mpipar.cryoem.device.device_memory import ROWS_PER_PRODUCT, device_bytes

    if accelerator.is_real:
        accelerator.xp.get_default_memory_pool().free_all_blocks()
    on, stage, images, rows = accelerator, problem.stage, problem.images, problem.rows
    aligner = aligner_of(on, problem)
    fold = aligner.blocks.fold(rows)
    reference, search, weights = (
        aligner.blocks.reference(fold),
        aligner.search(fold),
        aligner.weights(1),
    )
    wanted, plan = aligner.blocks.wanted, stage.plan
    xp, geometry, count = on.xp, stage.geometry, len(images)
    assert search is not None
    pixels = on.to_device(images)
    ctf = device_images.contrast_on(
        on, rows.ctf, wanted.frequencies, geometry.box, geometry.pixel_size
    )
    there = device_images.image_components(on, pixels, wanted)
    data = device_images.weigh(on, there, ctf, weights)
    centres = xp.zeros((count, 2))
    found = search.best_candidates(data, centres)
    near = problem.near.poses
    turns, shifts = on.to_device(near.rotations), on.to_device(near.shifts)

    def climb(start: DevicePoses, depth: tuple[int, int]) -> None:
        again = DevicePoses.of(xp, start.rotations.copy(), start.shifts.copy(), start.owners)
        device_alignment.climb(reference, wanted, data, again, plan, depth)

    single = DevicePoses.of(xp, turns, shifts, xp.arange(count, dtype=np.int32))
    score, which = search._score(data, centres)
    size = search._slices.shape
    shift_count = len(alignment.shift_grid(plan.shift_range, plan.shift_step))
    group = max(1, ROWS_PER_PRODUCT // shift_count)
    columns = xp.ones((group * shift_count, size[1]), np.float32)
    turned = search._slices.T
    steps: dict[str, Callable[[], Any]] = {
        "upload": lambda: on.to_device(images),
        "ctf": lambda: device_images.contrast_on(
            on, rows.ctf, wanted.frequencies, geometry.box, geometry.pixel_size
        ),
        "discs": lambda: device_images.soft_discs(on, geometry.box, centres, geometry.radius, 5.0),
        "fft": lambda: device_images.image_components(on, pixels, wanted),
        "weigh": lambda: device_images.weigh(on, there, ctf, weights),
        "grid scores": lambda: search._score(data, centres),
        "grid whole": lambda: search.best_candidates(data, centres),
        "climb candidates": lambda: climb(found, (plan.middle_radius, 4)),
        "climb one": lambda: climb(single, (plan.radius, 10)),
        "slices": lambda: device_alignment.slices_of(reference, turns, wanted.frequencies),
        "insert": lambda: aligner.insert(rows, there, ctf, device_spread.at_best(xp, single)),
    }
    result = {name: 1e6 * seconds_of(on, work) / count for name, work in steps.items()}
    product = seconds_of(on, lambda: on.coarse_product(columns, turned))
    work = 2.0 * len(columns) * size[0] * size[1]
    result["product_tflops"] = work / product / 1e12
    result["grid_tflops"] = 2.0 * size[0] * size[1] * shift_count / result["grid scores"] / 1e6
    result["orientations"], result["shifts"], result["components"] = (
        size[0], shift_count, size[1] // 2,
    )  # fmt: skip
    del score, which
    if accelerator.is_real:
        plan_bytes = device_bytes(geometry.box, plan, stage.insertion_radius, size[0], count)
        result["predicted_gb"] = plan_bytes / 1e9
        result["pool_gb"] = xp.get_default_memory_pool().total_bytes() / 1e9
        free, total = xp.cuda.runtime.memGetInfo()
        result["used_gb"] = (total - free) / 1e9
    return result


def soft_steps(accelerator: Accelerator, problem: Problem) -> dict[str, float]:
    """Time the steps of a soft iteration with one block, in microseconds per image."""
    from mpipar.cryoem.device import device_images
    from mpipar.cryoem.device.device_memory import SOFT_ROWS

    on, rows, count = accelerator, problem.rows, len(problem.images)
    blocks = _blocks_of(on, problem, soft=True)
    grid = expecter_of(on, problem).grid(blocks.fold(rows))
    images, ctf = blocks.scaled(rows, on.to_device(problem.images))
    masked = blocks.inside_discs(images, rows.poses.shifts)
    data = device_images.weigh(on, masked, ctf, blocks.weights(problem.spectrum()))
    centres = on.xp.zeros((count, 2))
    size = min(count, max(1, SOFT_ROWS // len(grid.shifts)))
    some, their = data[:size], centres[:size]
    real, imaginary = grid._rows(some, their)
    first = grid._weights(some, real, imaginary).first.reshape(len(real), -1)
    steps: dict[str, tuple[Callable[[], Any], int]] = {
        "all": (lambda: grid.expect(data, centres), count),
        "images moved": (lambda: grid._rows(some, their), size),
        "log-likelihoods": (lambda: grid._weights(some, real, imaginary), size),
        "one product for them": (lambda: on.coarse_product(real, grid._real.T), size),
        "one product of sums": (lambda: on.xp.matmul(first.T, real), size),
    }
    result = {name: 1e6 * seconds_of(on, work) / of for name, (work, of) in steps.items()}
    work = 2.0 * real.size * len(grid._real) / size
    result["log_likelihood_tflops"] = work / result["one product for them"] / 1e6
    result["sum_tflops"] = work / result["one product of sums"] / 1e6
    result["orientations"], result["shifts"], result["components"] = (
        len(grid._real), len(grid.shifts), real.shape[1],
    )  # fmt: skip
    return result


def align_rate(
    accelerator: Accelerator, problem: Problem, size: int, *, kind: str, seconds: float
) -> float:
    """Return images per second of whole blocks, from pixels on the host to poses on the host."""
    rows, work = (
        problem.near if kind == "local" else problem.rows,
        worker_of(accelerator, problem, kind),
    )
    parts = [slice(s, s + size) for s in range(0, len(problem.images), size)]
    blocks = [(part_of(rows, part), problem.images[part]) for part in parts]
    threads = 2 if accelerator.is_real else 1  # one copies while the other's block is computed
    while len(blocks) < 2 * threads:
        blocks *= 2
    work(*blocks[0])
    begin, done = time.perf_counter(), 0
    with ThreadPoolExecutor(threads) as pool:
        while done == 0 or time.perf_counter() - begin < seconds:
            for _ in pool.map(lambda block: work(*block), blocks):
                done += size
    return done / (time.perf_counter() - begin)


def worker_of(accelerator: Accelerator, problem: Problem, kind: str) -> partial[Any]:
    """Return what a worker does with rows and pixels of a block; its first argument has sums."""
    if kind == SOFT:
        expecter = expecter_of(accelerator, problem)
        return partial(_expect, expecter, problem.spectrum())
    return partial(_align, aligner_of(accelerator, problem))


def _align(aligner: DeviceAligner, rows: ParticleRows, pixels: NDArray[np.float32]) -> Any:
    return aligner.align(rows, pixels)


def _expect(
    expecter: DeviceExpecter,
    spectrum: NDArray[np.float64],
    rows: ParticleRows,
    pixels: NDArray[np.float32],
) -> Any:
    return expecter.expect(rows, pixels, spectrum)
