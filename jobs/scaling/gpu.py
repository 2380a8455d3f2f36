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
import re
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from jobs.scaling import gpu_measures
from jobs.scaling.gpu_problem import LOCAL, SEARCH, SOFT, Problem, make_problem, part_of
from jobs.scaling.simulated_set import SetOptions, write_set
from mpipar.cryoem import alignment, rotations
from mpipar.cryoem.alignment import Poses
from mpipar.cryoem.resolution import fourier_shell_correlation
from mpipar.formats.mrc import read_volume
from mpipar.runtime.stage import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.cryoem.device.accelerator import Accelerator

SAME_ANGLE, SAME_SHIFT = 0.05, 0.02  # degrees, pixels
WRONG = 5.0  # degrees from the truth
POSE_NAMES = ("rotations", "shifts", "score")
LARGE_BOX = 256


# The processors: every process makes the problem for itself, and takes a part of the images.


def align_on_core(box: int, count: int, kind: str, which: slice) -> tuple[float, Poses]:
    """Return the seconds of a worker for some of the images, and their poses."""
    problem = make_problem(box, count, exhaustive=kind != LOCAL)
    rows = part_of(problem.near if kind == LOCAL else problem.rows, which)
    task, block = Task(0, 0, rows), {"images": problem.images[which]}
    stage: Any = problem.soft if kind == SOFT else problem.stage
    state = stage.start(problem.soft_shared if kind == SOFT else problem.shared)
    stage.run(task, block, state)  # the first makes the grid's slices
    GATE.wait()
    begin = time.perf_counter()
    found = stage.run(task, block, state)
    seconds = time.perf_counter() - begin
    return seconds, found.found.poses if kind == SOFT else found.poses


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


def on_cores(box: int, count: int, kind: str, *, cores: int, each: int) -> tuple[float, Poses]:
    """Return images per second of some cores at once, and the poses of the first images."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores)
    parts = [slice(n * each, (n + 1) * each) for n in range(cores)]
    with context.Pool(cores, enter, (barrier,)) as pool:
        jobs = [(box, count, kind, part) for part in parts]
        results = pool.starmap(align_on_core, jobs, chunksize=1)
    slowest = max(seconds for seconds, _ in results)
    return cores * each / slowest, alignment.joined(*(poses for _, poses in results))


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
    for kind in options.kinds:
        problem = make_problem(box, count, exhaustive=kind != LOCAL)
        some = partial(on_cores, box, count, kind)
        if "cores" in parts:
            cpu = report.add(
                f"{box} {kind} {cores} cores",
                partial(_plain, partial(some, cores=cores, each=count // cores)),
            )
            if "failed" not in cpu:
                poses = Poses(*(np.array(cpu.pop(name)) for name in POSE_NAMES))
                compare = partial(_compare, accelerator, problem, poses, kind)
                report.add(f"{box} {kind} right", compare)
        if "bits" in parts:
            repeat = partial(gpu_measures.bits_of, accelerator, problem, max(1, count // 4), kind)
            report.add(f"{box} {kind} bits", partial(_both_ways, repeat))
        if "kernels" in parts and kind == SEARCH:
            report.add(f"{box} kernels", partial(gpu_measures.kernels, accelerator, problem))
        if "kernels" in parts and kind == SOFT:
            steps = partial(gpu_measures.soft_steps, accelerator, problem)
            report.add(f"{box} soft kernels", steps)
        for size in options.blocks if "align" in parts else ():
            rate = partial(gpu_measures.align_rate, accelerator, problem, min(size, count))
            report.add(
                f"{box} {kind} gpu blocks of {min(size, count)}",
                partial(rate, kind=kind, seconds=2.0),
            )
        if "core" in parts and kind != LOCAL:
            report.add(
                f"{box} {kind} one core",
                partial(_plain, partial(some, cores=1, each=min(16, count))),
            )


def refine(folder: Path, name: str, *options: str) -> dict[str, float]:
    """Run `mpipar refine` on the set in the folder; return its seconds, in all and by phase."""
    command = [
        sys.executable, "-m", "mpipar", "refine", "--input", str(folder / "particles.star"),
        "--model", str(folder / "init.mrc"), "--path", str(folder / name), *options,
    ]  # fmt: skip
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    print(done.stdout[-2600:], done.stderr[-2000:], sep="\n", flush=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    phases = re.findall(r"^  (\w.*?) +([\d.]+) s +\d+%$", done.stdout, re.MULTILINE)
    return {"all": seconds, **{phase: float(spent) for phase, spent in phases}}


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
        if options.refine_again:
            found["gpu_again_seconds"] = refine(folder, "again", *two)
            digests = [
                hashlib.sha256((folder / run / "map.mrc").read_bytes()).hexdigest()[:16]
                for run in ("gpu", "again")
            ]
            found["gpu_map"], found["gpu_same_bits"] = digests[0], digests[0] == digests[1]
        if options.refine_cpu:
            found["cpu_seconds"] = refine(folder, "cpu", f"--parallel=thread:{cores}")
        truth = read_volume(folder / "truth.mrc").data
        maps = {
            run: read_volume(folder / run / "map.mrc").data
            for run in ("gpu", "cpu")
            if (folder / run / "map.mrc").exists()
        }
        pairs = {f"{run} to truth": (volume, truth) for run, volume in maps.items()}
        if len(maps) > 1:
            pairs["gpu to cpu"] = maps["gpu"], maps["cpu"]
        for label, pair in pairs.items():
            curve = fourier_shell_correlation(*pair)
            found[f"fsc {label}"] = {s: float(curve[s]) for s in range(8, len(curve), 8)}
        return found


def _both_ways(repeat: Callable[..., str]) -> list[str]:
    return [repeat(backwards=False), repeat(backwards=True)]


def _plain(measure: Callable[[], tuple[float, Poses]]) -> dict[str, Any]:
    rate, poses = measure()
    return {"images_per_s": rate, **{name: getattr(poses, name).tolist() for name in POSE_NAMES}}


def _compare(accelerator: Accelerator, problem: Problem, cpu: Poses, kind: str) -> dict[str, float]:
    which = slice(0, len(cpu.score))
    rows = part_of(problem.near if kind == LOCAL else problem.rows, which)
    found = gpu_measures.worker_of(accelerator, problem, kind)(rows, problem.images[which])[0]
    poses = found.poses if kind == SOFT else found
    true = Poses(problem.true.rotations[which], problem.true.shifts[which], cpu.score)
    return differences(cpu, poses, true)


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
    kinds = [SEARCH, LOCAL, SOFT]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices of the ceilings")
    parser.add_argument("--refine-box", type=int, default=128)
    parser.add_argument("--refine-images", type=int, default=8000)
    parser.add_argument("--refine-again", type=int, default=1, help="0: on the GPU only once")
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
        report.add("ceilings", lambda: gpu_measures.ceilings(accelerator, options.side))
    for box in options.boxes[:1]:
        measure_box(report, accelerator, box, options)
    if "refine" in options.parts:
        report.add("refine", partial(whole_runs, options))
    for box in options.boxes[1:]:
        measure_box(report, accelerator, box, options)
    print(table(report.found))


if __name__ == "__main__":
    main()
