"""How fast and how well a refinement goes on this machine, on simulated particles.

    python jobs/scaling/refine.py                                  1,000 particles of 64 pixels
    python jobs/scaling/refine.py --box 128 --particles 500 --sym d2 --ranks 1 2 3
    python jobs/scaling/refine.py --relion --relion-minutes 60     RELION beside it

The set is made here, by `simulated_set.py`; nothing is downloaded. For each number of ranks it
prints processor and wall seconds by phase and rank, particles per processor second, peak memory,
the rate of the search's products against the machine's own, and the accuracy against the truth.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

from jobs.scaling.simulated_set import START, SetOptions, write_set
from mpipar.cryoem import rotations, symmetry
from mpipar.cryoem.resolution import fourier_shell_correlation, resolution_of
from mpipar.formats.mrc import read_volume
from mpipar.formats.tables import numbers, read_tables
from mpipar.launch.launch_environment import LaunchEnvironment
from mpipar.launch.launchers import find_launcher
from mpipar.launch.mpirun import launch_command, launch_environment
from mpipar.launch.parallel import Parallel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.cryoem.alignment import Poses

WRONG = 10.0  # degrees
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
MEGABYTE = 1e6
RELION = (
    "--i particles.star --ref init.mrc --o relion/run --auto_refine --split_random_halves "
    "--firstiter_cc --ctf --flatten_solvent --zero_mask --oversampling 1 --healpix_order 2 "
    "--auto_local_healpix_order 4 --offset_range 5 --offset_step 2 --norm --scale --pad 2 "
    "--low_resol_join_halves 40 --dont_check_norm --j 1"
)
"""An auto-refine without a GPU, as RELION's users start it."""
MPI = ("OMPI", "PMIX", "PRTE")  # how names of variables begin that an MPI reads
RESULTS = ("map.mrc", "half1.mrc", "half2.mrc", "particles.star")


def matrix_product_rate(seconds: float = 1.0) -> float:
    """Return the operations per second of a float32 matrix product, on one core."""
    random = np.random.default_rng(0)
    first = random.standard_normal((2048, 1024), np.float32)
    second = random.standard_normal((1024, 1024), np.float32)
    first @ second
    begin, count = time.process_time(), 0
    while time.process_time() - begin < seconds:
        first @ second
        count += 1
    return count * 2.0 * 2048 * 1024 * 1024 / (time.process_time() - begin)


def refine(folder: Path, ranks: int, group: str, words: Sequence[str]) -> list[dict[str, Any]]:
    """Refine the set in the folder into ranks-N; return what each rank has noted."""
    notes = folder / f"notes-{ranks}"
    notes.mkdir()
    own = [str(Path(__file__).with_name("measured_rank.py")), str(notes)]
    arguments = [
        "refine", "--input", str(folder / "particles.star"), "--model", str(folder / "init.mrc"),
        "--sym", group, "--path", str(folder / f"ranks-{ranks}"), *words,
    ]  # fmt: skip
    environment = dict(os.environ)
    if ranks == 1:
        command = [sys.executable, *own, *arguments, "--parallel=serial"]
    else:
        around = LaunchEnvironment.read()
        launcher = find_launcher(around)
        command = launch_command(launcher, Parallel("mpi", ranks), arguments, around)
        place = command.index(sys.executable) + 1
        command[place : place + 2] = own  # in place of -m mpipar
        environment = launch_environment(launcher, environment)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return [json.loads(path.read_text()) for path in sorted(notes.glob("rank-*.json"))]


def by_phase(noted: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return processor and wall seconds of each phase of one rank."""
    spent: dict[str, tuple[float, float]] = {}
    for (phase, processor, wall), (_, processor_end, wall_end) in pairwise(noted["marks"]):
        before = spent.get(phase, (0.0, 0.0))
        spent[phase] = before[0] + processor_end - processor, before[1] + wall_end - wall
    return spent


def accuracy(run: Path, folder: Path, options: SetOptions, true: Poses) -> dict[str, float]:
    """Return how right poses and map of a run are.

    The turn by which map and truth differ as a whole, a fraction of a degree, is taken off the
    angles, not off the map: its FSC to the truth is rather too low.
    """
    table = read_tables(run / "particles.star")["particles"]
    angles = np.stack([numbers(table, name, run, "row") for name in ANGLES], axis=1)
    found, operators = rotations.from_euler(angles), symmetry.operators(options.group)
    nearest = nearest_mates(found, true.rotations, operators)
    close = rotations.angle_between(nearest, true.rotations) < WRONG
    if close.any():
        turn = np.einsum("pij,pkj->ik", true.rotations[close], nearest[close])
        left, _, right = np.linalg.svd(turn)
        nearest = nearest_mates(left @ right @ found, true.rotations, operators)
    errors = rotations.angle_between(nearest, true.rotations)
    mask, truth = (read_volume(path).data for path in (run / "mask.mrc", folder / "truth.mrc"))
    curve = fourier_shell_correlation(read_volume(run / "map.mrc").data * mask, truth * mask)
    return {
        "median angle": float(np.median(errors)),
        "over 10 degrees": float((errors > WRONG).mean()),
        "FSC 0.5 to truth": resolution_of(curve, 0.5, options.box, options.pixel_size),
    }


def nearest_mates(
    found: NDArray[np.float64], true: NDArray[np.float64], operators: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return of the symmetry mates of each orientation the one nearest to the true one."""
    mates = operators[:, None] @ found[None]
    best = rotations.angle_between(mates, true[None]).argmin(axis=0)
    return np.asarray(mates[best, np.arange(len(found))])


def summary(ranks: list[dict[str, Any]], count: int, machine: float) -> dict[str, Any]:
    """Return what a run took, from what its ranks have noted; times in seconds, memory in bytes."""
    phases = [by_phase(noted) for noted in ranks]
    names = list(dict.fromkeys(name for phase in phases for name in phase))
    processor = {name: [phase.get(name, (0.0, 0.0))[0] for phase in phases] for name in names}
    wall = {name: max(phase.get(name, (0.0, 0.0))[1] for phase in phases) for name in names}
    times = {
        name: sum(mark[0] == name for mark in ranks[0]["marks"]) // (2 if len(ranks) == 1 else 1)
        for name in names
    }
    operations, seconds = (sum(noted["product"][place] for noted in ranks) for place in (0, 1))
    return {
        "processor": processor,
        "wall": wall,
        "times": times,
        "processor in all": sum(map(sum, processor.values())),
        "wall in all": sum(wall.values()),
        "per second": {
            name: count * times[name] / max(sum(processor[name]), 1e-9)
            for name in ("soft", "search", "local")
            if name in times
        },
        "peak": [noted["peak"] for noted in ranks],
        "search GFLOP/s": operations / seconds / 1e9 if seconds else 0.0,
        "machine GFLOP/s": machine / 1e9,
    }


def show(ranks: int, found: dict[str, Any]) -> None:
    """Print one run."""
    print(f"\n{ranks} rank{'s' * (ranks > 1)}: {found['processor in all']:.1f} processor seconds, "
          f"{found['wall in all']:.1f} wall")  # fmt: skip
    heads = "".join(f"  {f'rank {rank}':>8}" for rank in range(ranks))
    print(f"  {'phase':<12} {'times':>5} {'wall':>8}{heads}")
    for name, processor in found["processor"].items():
        each = "".join(f"  {seconds:8.2f}" for seconds in processor)
        print(f"  {name:<12} {found['times'][name]:5d} {found['wall'][name]:8.2f}{each}")
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in found["per second"].items())
    print(f"  particles per second and core: {rates}")
    print(f"  peak memory, MB: {', '.join(f'{peak / MEGABYTE:.0f}' for peak in found['peak'])}")
    print(f"  search: {found['search GFLOP/s']:.0f} GFLOP/s with all it does about its products; "
          f"this machine's products alone: {found['machine GFLOP/s']:.0f}")  # fmt: skip
    print(f"  over 10 degrees {found['over 10 degrees']:.1%}, median {found['median angle']:.2f} "
          f"degrees, FSC 0.5 to the truth at {found['FSC 0.5 to truth']:.2f} A")  # fmt: skip


def relion(folder: Path, options: SetOptions, minutes: float) -> dict[str, Any] | None:
    """Run RELION's auto-refine on the same files; None where it is not installed."""
    program = shutil.which("relion_refine_mpi")
    if program is None:
        print("\nRELION: relion_refine_mpi is not installed here (Debian: apt install relion)")
        return None
    (folder / "relion").mkdir()
    diameter = f"{0.8 * options.box * options.pixel_size:.0f}"
    command = [
        str(Path(program).with_name("mpirun")), "--oversubscribe", "-n", "3", program,
        *RELION.split(),
        "--ini_high", f"{START:g}", "--sym", options.group, "--particle_diameter", diameter,
    ]  # fmt: skip
    # what is set for our MPI is not for the one that RELION was built with
    environment = {name: value for name, value in os.environ.items() if name[:4] not in MPI}
    environment |= {f"OMPI_ALLOW_RUN_AS_ROOT{end}": "1" for end in ("", "_CONFIRM")}
    before, begin = children_seconds(), time.time()
    with (folder / "relion.log").open("w") as log:
        job = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            code, finished = job.wait(minutes * 60), True
            spent = children_seconds() - before
        except subprocess.TimeoutExpired:
            spent, finished = session_seconds(job.pid), False
            job.terminate()
            code = job.wait()
    if finished and code:
        print(f"\nRELION ended with {code}:\n{(folder / 'relion.log').read_text()[-1500:]}")
        return None
    return {
        "processor in all": spent,
        "wall in all": time.time() - begin,
        "finished": finished,
        "iterations": len(list((folder / "relion").glob("run_it*_half1_class001.mrc"))) - 1,
    }


def children_seconds() -> float:
    """Return user and system time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def session_seconds(session: int) -> float:
    """Return user and system time of the processes of a session, and of their ended children."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()  # from the third on
            ticks += sum(map(int, fields[11:15])) if int(fields[3]) == session else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def parsed() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--box", type=int, default=64, help="pixels (64)")
    parser.add_argument("--particles", type=int, default=1000, help="number (1000)")
    parser.add_argument("--sym", default="c1", help="point group (c1)")
    parser.add_argument("--snr", type=float, default=0.05, help="signal over noise, power (0.05)")
    parser.add_argument("--seed", type=int, default=1, help="of the set (1)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[3], help="numbers of ranks (3)")
    parser.add_argument("--options", default="", help='more for mpipar refine, "--iter 5"')
    parser.add_argument("--relion", action="store_true", help="run RELION, too")
    parser.add_argument("--relion-minutes", type=float, default=30.0, help="at most (30)")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make the set, refine it on all numbers of ranks, and print what was found."""
    made = SetOptions(options.box, options.particles, options.sym, options.snr, options.seed)
    true = write_set(folder, made, min(os.cpu_count() or 1, 4))
    machine = matrix_product_rate()
    print(f"{made.count} particles of {made.box} pixels of {made.pixel_size:g} A, {made.group}, "
          f"SNR {made.signal_to_noise:g}; {processor_name()}")  # fmt: skip
    runs: dict[int, dict[str, Any]] = {}
    refine(folder, 1, made.group, ["--check"])  # compiles kernels, reads the files
    shutil.rmtree(folder / "notes-1")
    for ranks in options.ranks:
        noted = refine(folder, ranks, made.group, options.options.split())
        run = folder / f"ranks-{ranks}"
        runs[ranks] = summary(noted, made.count, machine) | accuracy(run, folder, made, true)
        show(ranks, runs[ranks])
        digest = hashlib.sha256(b"".join((run / name).read_bytes() for name in RESULTS))
        runs[ranks]["bits"] = digest.hexdigest()[:12]
    if len({run["bits"] for run in runs.values()}) > 1:
        raise SystemExit("the results of different numbers of ranks differ")
    other = relion(folder, made, options.relion_minutes) if options.relion else None
    if other:
        ours = min(run["processor in all"] for run in runs.values())
        cut = f", cut off after iteration {other['iterations']}; at least"
        more = ":" if other["finished"] else cut
        print(f"\nRELION: {other['processor in all']:.0f} processor seconds{more} "
              f"{other['processor in all'] / ours:.1f} times as many")  # fmt: skip
    return {"set": vars(made), "processor": processor_name(), "runs": runs, "relion": other}


def processor_name() -> str:
    """Return the processor's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    chosen = parsed()
    with tempfile.TemporaryDirectory(prefix="mpipar-bench-") as name:
        result = measure(Path(name), chosen)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
