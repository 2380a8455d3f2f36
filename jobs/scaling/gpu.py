"""One GPU beside this machine's processors: poses, bits, and speed.

    bash jobs/scaling/gpu.sh                               all of it, under eight minutes
    bash jobs/scaling/gpu.sh --boxes 128 --parts cores bits align

Parts: `ceilings` (what the card itself can do), `cores` (images per second of all cores, and the
GPU's poses against theirs), `bits` (the same blocks twice, in another order), `kernels` (time of
each), `align` (images per second of the whole alignment on the GPU), `core` (on one core), `refine`
(whole runs). What fails is noted, and the next part runs. `--simulate`, with NUMBA_ENABLE_CUDASIM=1
set, takes numpy and numba's CUDA simulator for the GPU: an exercise of this script, no more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from jobs.scaling.gpu_problem import Problem, make_problem, part_of
from jobs.scaling.simulated_set import SetOptions, write_set
from mpipar.cryoem import alignment, rotations
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.resolution import fourier_shell_correlation
from mpipar.formats.mrc import read_volume
from mpipar.runtime.stage import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.cryoem.device.accelerator import Accelerator
    from mpipar.programs.device_block import DeviceAligner

SAME_ANGLE, SAME_SHIFT = 0.05, 0.02  # degrees, pixels
WRONG = 5.0  # degrees from the truth
POSE_NAMES = ("rotations", "shifts", "score")
LARGE_BOX = 256


# The processors: every process makes the problem for itself, and takes a part of the images.


def align_on_core(
    box: int, count: int, exhaustive: bool, which: slice, repeat: int
) -> tuple[float, Poses]:
    """Return the seconds of a worker for some of the images, and their poses."""
    problem = make_problem(box, count, exhaustive=exhaustive)
    rows = part_of(problem.rows if exhaustive else problem.near, which)
    task, block = Task(0, 0, rows), {"images": problem.images[which]}
    state = problem.stage.start(problem.shared)
    found = problem.stage.run(task, block, state)  # the first makes the grid's slices
    GATE.wait()
    begin = time.perf_counter()
    for _ in range(repeat):
        found = problem.stage.run(task, block, state)
    return (time.perf_counter() - begin) / repeat, found.poses


class Gate:
    """Lets all processes begin to measure at the same time."""

    barrier: Any = None

    def wait(self) -> None:
        if self.barrier is not None:
            self.barrier.wait(120)


GATE = Gate()


def enter(barrier: Any) -> None:
    """Give a new process the barrier that it waits at."""
    GATE.barrier = barrier


def on_cores(
    box: int, count: int, *, exhaustive: bool, cores: int, each: int
) -> tuple[float, Poses]:
    """Return images per second of some cores at once, and the poses of the first images."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores)
    parts = [slice(n * each, (n + 1) * each) for n in range(cores)]
    with context.Pool(cores, enter, (barrier,)) as pool:
        jobs = [(box, count, exhaustive, part, 1) for part in parts]
        results = pool.starmap(align_on_core, jobs, chunksize=1)
    slowest = max(seconds for seconds, _ in results)
    return cores * each / slowest, alignment.joined(*(poses for _, poses in results))


# The GPU


def aligner_of(accelerator: Accelerator, problem: Problem) -> DeviceAligner:
    """Return a new aligner, whose sums are empty."""
    from mpipar.programs.device_block import DeviceAligner

    stage = problem.stage
    radius, scales = stage.insertion_radius, stage.scales
    return DeviceAligner(accelerator, stage.geometry, stage.plan, radius, scales, problem.shared)


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


def differences(one: Poses, other: Poses, true: Poses) -> dict[str, float]:
    """Compare poses with each other, and both with the truth."""
    angle = rotations.angle_between(one.rotations, other.rotations)
    shift = np.abs(one.shifts - other.shifts).max(axis=1)
    errors = [rotations.angle_between(found.rotations, true.rotations) for found in (one, other)]
    return {
        "images": len(angle),
        "same_percent": 100.0 * float(np.mean((angle < SAME_ANGLE) & (shift < SAME_SHIFT))),
        "median_angle": float(np.median(angle)),
        "worst_angle": float(angle.max()),
        "median_shift": float(np.median(shift)),
        "median_score_gain": float(np.median(other.score - one.score)),
        "cpu_error_median": float(np.median(errors[0])),
        "gpu_error_median": float(np.median(errors[1])),
        "cpu_wrong_percent": 100.0 * float(np.mean(errors[0] > WRONG)),
        "gpu_wrong_percent": 100.0 * float(np.mean(errors[1] > WRONG)),
    }


def bits_of(accelerator: Accelerator, problem: Problem, size: int, *, backwards: bool) -> str:
    """Return a digest of poses, residuals and sums of all images, in blocks."""
    aligner = aligner_of(accelerator, problem)
    digests = {}
    starts = list(range(0, len(problem.images), size))
    for start in reversed(starts) if backwards else starts:
        part = slice(start, start + size)
        poses, residual, _ = aligner.align(part_of(problem.rows, part), problem.images[part])
        values = (poses.rotations, poses.shifts, poses.score, residual)
        digests[start] = hashlib.sha256(b"".join(v.tobytes() for v in values)).hexdigest()
    total = hashlib.sha256("".join(digests[start] for start in starts).encode())
    total.update(aligner.sums()["half1"].tobytes())
    return total.hexdigest()[:16]


def kernels(accelerator: Accelerator, problem: Problem) -> dict[str, float]:
    """Time each step of the alignment of one block, in microseconds per image."""
    from mpipar.cryoem.device import device_alignment, device_images
    from mpipar.cryoem.device.device_alignment import DevicePoses
    from mpipar.cryoem.device.device_memory import ROWS_PER_PRODUCT, device_bytes

    if accelerator.is_real:
        accelerator.xp.get_default_memory_pool().free_all_blocks()
    on, stage, images, rows = accelerator, problem.stage, problem.images, problem.rows
    aligner = aligner_of(on, problem)
    half, wanted, plan = aligner.half(1), aligner.wanted, stage.plan
    xp, geometry, count = on.xp, stage.geometry, len(images)
    assert half.search is not None
    pixels = on.to_device(images)
    ctf = device_images.contrast_on(
        on, rows.ctf, wanted.frequencies, geometry.box, geometry.pixel_size
    )
    there = device_images.image_components(on, pixels, wanted)
    data = device_images.weigh(on, there, ctf, half.weights)
    centres = xp.zeros((count, 2))
    found = half.search.best_candidates(data, centres)
    near = problem.near.poses
    turns, shifts = on.to_device(near.rotations), on.to_device(near.shifts)

    def climb(start: DevicePoses, depth: tuple[int, int]) -> None:
        again = DevicePoses(
            start.rotations.copy(), start.shifts.copy(), start.score.copy(), start.owners
        )
        device_alignment.climb(half.reference, wanted, data, again, plan, depth)

    single = DevicePoses(turns, shifts, xp.zeros(count), xp.arange(count, dtype=np.int32))
    search = half.search
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
        "weigh": lambda: device_images.weigh(on, there, ctf, half.weights),
        "grid scores": lambda: search._score(data, centres),
        "grid whole": lambda: search.best_candidates(data, centres),
        "climb candidates": lambda: climb(found, (plan.middle_radius, 4)),
        "climb one": lambda: climb(single, (plan.radius, 10)),
        "slices": lambda: device_alignment.slices_of(half.reference, turns, wanted.frequencies),
        "insert": lambda: aligner._insert(half, there, ctf, single),
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


def align_rate(
    accelerator: Accelerator, problem: Problem, size: int, *, exhaustive: bool, seconds: float
) -> float:
    """Return images per second of whole blocks, from pixels on the host to poses on the host."""
    aligner = aligner_of(accelerator, problem)
    rows = problem.rows if exhaustive else problem.near
    parts = [slice(s, s + size) for s in range(0, len(problem.images), size)]
    blocks = [(part_of(rows, part), problem.images[part]) for part in parts]
    threads = 2 if accelerator.is_real else 1  # one copies while the other's block is computed
    while len(blocks) < 2 * threads:
        blocks *= 2
    aligner.align(*blocks[0])
    begin, done = time.perf_counter(), 0
    with ThreadPoolExecutor(threads) as pool:
        while done == 0 or time.perf_counter() - begin < seconds:
            for _ in pool.map(lambda block: aligner.align(*block), blocks):
                done += size
    return done / (time.perf_counter() - begin)


def without_poses(value: Any) -> Any:
    """Return a result without the poses of all images."""
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if key not in POSE_NAMES}


class Report:
    """What was found; a part that fails is noted, and the others go on."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.found: dict[str, Any] = {}
        self.begin = time.perf_counter()

    def add(self, name: str, work: Callable[[], Any]) -> Any:
        """Do some work, keep what it returns, and write all that is known so far."""
        begin = time.perf_counter()
        try:
            value = work()
        except Exception:
            value = {"failed": traceback.format_exc()}
            print(value["failed"], file=sys.stderr, flush=True)
        self.found[name] = value
        spent = time.perf_counter() - begin
        shown = without_poses(value)
        print(f"[{time.perf_counter() - self.begin:6.1f} s] {name} ({spent:.1f} s)", flush=True)
        print(f"    {json.dumps(shown)[:900]}", flush=True)
        kept = {key: without_poses(each) for key, each in self.found.items()}
        self.out.write_text(json.dumps(kept, indent=1) + "\n")
        return value


def measure_box(
    report: Report, accelerator: Accelerator, box: int, options: argparse.Namespace
) -> None:
    """Do all parts that are wanted for one box."""
    count = options.images if box < LARGE_BOX else max(options.cores * 4, options.images // 4)
    parts, cores = options.parts, options.cores
    for kind, exhaustive in (("search", True), ("local", False)):
        problem = make_problem(box, count, exhaustive=exhaustive)
        some = partial(on_cores, box, count, exhaustive=exhaustive)
        if "cores" in parts:
            cpu = report.add(
                f"{box} {kind} {cores} cores",
                partial(_plain, partial(some, cores=cores, each=count // cores)),
            )
            if "failed" not in cpu:
                poses = Poses(*(np.array(cpu.pop(name)) for name in POSE_NAMES))
                compare = partial(_compare, accelerator, problem, poses, exhaustive=exhaustive)
                report.add(f"{box} {kind} right", compare)
        if "bits" in parts and exhaustive:
            repeat = partial(bits_of, accelerator, problem, max(1, count // 4))
            report.add(f"{box} bits", partial(_both_ways, repeat))
        if "kernels" in parts and exhaustive:
            report.add(f"{box} kernels", partial(kernels, accelerator, problem))
        for size in options.blocks if "align" in parts else ():
            rate = partial(align_rate, accelerator, problem, min(size, count))
            report.add(
                f"{box} {kind} gpu blocks of {min(size, count)}",
                partial(rate, exhaustive=exhaustive, seconds=2.0),
            )
        if "core" in parts and exhaustive:
            report.add(
                f"{box} {kind} one core",
                partial(_plain, partial(some, cores=1, each=min(16, count))),
            )


def refine(folder: Path, name: str, *options: str) -> float:
    """Run `mpipar refine` on the set in the folder; return its seconds."""
    command = [
        sys.executable, "-m", "mpipar", "refine", "--input", str(folder / "particles.star"),
        "--model", str(folder / "init.mrc"), "--path", str(folder / name), *options,
    ]  # fmt: skip
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    print(done.stdout[-1800:], done.stderr[-2000:], sep="\n", flush=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    return seconds


def whole_runs(options: argparse.Namespace) -> dict[str, Any]:
    """Refine the same particles on the GPU, twice in different ways, and on all cores."""
    with tempfile.TemporaryDirectory() as name:
        folder, cores = Path(name), options.cores
        write_set(folder, SetOptions(options.refine_box, options.refine_images), cores)
        found: dict[str, Any] = {"box": options.refine_box, "images": options.refine_images}
        half = max(1, cores // 2)
        one = ("--gpu", "0", "--parallel=thread:1", "--threads", str(cores))
        two = ("--gpu", "0", "--parallel=thread:2", "--threads", str(half))
        found["gpu_seconds"] = refine(folder, "gpu", *one)
        found["gpu_again_seconds"] = refine(folder, "again", *two)
        digests = [
            hashlib.sha256((folder / run / "map.mrc").read_bytes()).hexdigest()[:16]
            for run in ("gpu", "again")
        ]
        found["gpu_map"], found["gpu_same_bits"] = digests[0], digests[0] == digests[1]
        if options.refine_cpu:
            found["cpu_seconds"] = refine(folder, "cpu", f"--parallel=thread:{cores}")
            maps = [read_volume(folder / run / "map.mrc").data for run in ("gpu", "cpu")]
            curve = fourier_shell_correlation(maps[0], maps[1])
            found["fsc_gpu_to_cpu"] = {
                shell: float(curve[shell]) for shell in range(8, len(curve), 8)
            }
        return found


def _both_ways(repeat: Callable[..., str]) -> list[str]:
    return [repeat(backwards=False), repeat(backwards=True)]


def _plain(measure: Callable[[], tuple[float, Poses]]) -> dict[str, Any]:
    rate, poses = measure()
    return {"images_per_s": rate, **{name: getattr(poses, name).tolist() for name in POSE_NAMES}}


def _compare(
    accelerator: Accelerator, problem: Problem, cpu: Poses, *, exhaustive: bool
) -> dict[str, float]:
    which = slice(0, len(cpu.score))
    rows = part_of(problem.rows if exhaustive else problem.near, which)
    found, _, _ = aligner_of(accelerator, problem).align(rows, problem.images[which])
    true = Poses(problem.true.rotations[which], problem.true.shifts[which], cpu.score)
    return differences(cpu, found, true)


def table(found: dict[str, Any]) -> str:
    """Return what matters most, as lines."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            text = "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {str(v)[-200:]}"
                for k, v in without_poses(value).items()
            )
        else:
            text = f"{value:.5g}" if isinstance(value, float) else str(value)
        lines.append(f"{name:<34} {text}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write a file of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    every = ["ceilings", "cores", "bits", "kernels", "align", "core", "refine"]
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--boxes", type=int, nargs="+", default=[128, 64, 256])
    parser.add_argument("--blocks", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices of the ceilings")
    parser.add_argument("--refine-box", type=int, default=128)
    parser.add_argument("--refine-images", type=int, default=8000)
    parser.add_argument("--refine-cpu", type=int, default=1, help="0: not on the cores")
    parser.add_argument("--simulate", action="store_true")
    options = parser.parse_args()
    from mpipar.cryoem.device import accelerator as devices

    report = Report(options.out)
    if options.simulate:
        accelerator = devices.Accelerator(np, "numpy", 0)
    else:
        accelerator = devices.open_accelerator(0)
    report.add("device", lambda: accelerator.name)
    report.add("cores", lambda: options.cores)
    if "ceilings" in options.parts:
        report.add("ceilings", lambda: ceilings(accelerator, options.side))
    for box in options.boxes[:1]:
        measure_box(report, accelerator, box, options)
    if "refine" in options.parts:
        report.add("refine", partial(whole_runs, options))
    for box in options.boxes[1:]:
        measure_box(report, accelerator, box, options)
    print(table(report.found))


if __name__ == "__main__":
    main()
