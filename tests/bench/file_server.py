"""How fast rank 0 reads and serves image stacks, beside the bandwidth of MPI in the same run.

    python -m tests.bench.file_server                       default: 3 workers, 10,000 images
    python -m tests.bench.file_server --box 128 --images 4000 --stacks 1 400 --types f4 f2

Makes stacks of noise in a temporary folder, and for each kind of pixels and number of files starts
mpirun. There rank 0 first sends messages as large as a block, one after the other, to all workers:
the bandwidth of MPI. Then it serves all blocks of a half set after the other, of which the workers
keep none, twice: to a stage that does not look at the images, and to one that does. Rates count
bytes of the files; the files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpipar.runtime.process.mpi_settings import prepare_mpi
from mpipar.runtime.stage import Stage, Task

prepare_mpi()  # before mpi4py is loaded, as mpipar.launch does it

from mpi4py import MPI  # noqa: E402

from mpipar.runtime.clusters import mpi_cluster  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mpipar.programs.images import StackSource
    from mpipar.runtime.pool import Pool

MEBIBYTE = 1 << 20
REPEATS = 3
MESSAGES = 48  # of each measurement of MPI alone
LARGEST_SETS = "f4", "f2", "i2", "u1"


class Takes(Stage):
    """Gets blocks; looks at their images if `looks`. The result is the worker's processor time."""

    def __init__(self, *, looks: bool) -> None:
        self.looks = looks

    def run(self, task: Task, block: Any, state: Any) -> float:
        if self.looks:
            assert np.isfinite(block["images"][-1, -1, -1])
        return time.process_time()


# The sets


def make_set(folder: Path, kind: str, images: int, box: int, stacks: int) -> Path:
    """Write particles.star and its stacks; the images are cut from one field of noise."""
    from tests.support.blocks import optics_columns, particle_columns, write_mrc, write_star

    folder.mkdir()
    random = np.random.default_rng(1)
    field = random.normal(size=(images + 64, box, box)).astype(np.float32)
    scale = 20.0 if kind in {"i2", "u1"} else 1.0
    field = field * scale + (128.0 if kind == "u1" else 0.0)
    names: list[str] = []
    for number, rows in enumerate(np.array_split(np.arange(images), stacks)):
        write_mrc(folder / f"{number:05d}.mrcs", field[rows].astype(kind))
        names += [f"{place:06d}@{number:05d}.mrcs" for place in range(1, len(rows) + 1)]
    columns = particle_columns(images, rlnImageName=names)
    tables = {"optics": optics_columns(), "particles": columns}
    return write_star(folder / "particles.star", tables)


def source_of(star: Path) -> StackSource:
    """The images, cut into blocks as a refinement without folds cuts them."""
    from mpipar.formats.star import read_particles
    from mpipar.programs import dataset
    from mpipar.programs.images import StackSource, open_stacks

    particles = read_particles(star)
    source = StackSource(particles, open_stacks(particles))
    return source.divided(dataset.blocks_of(dataset.half_sets(particles, 1)))


# A rank's part


def send_alone(size: int) -> float:
    """Return the bytes per second of messages of `size` from rank 0 to all others in turn.

    Each is in memory of its own, and is received into new memory, as blocks are.
    """
    world = MPI.COMM_WORLD
    messages = np.ones((MESSAGES if world.rank == 0 else 0, size), np.uint8)
    best = float("inf")
    for _ in range(REPEATS):
        world.Barrier()
        start = time.perf_counter()
        for number in range(MESSAGES):
            other = 1 + number % (world.size - 1)
            if world.rank == 0:
                world.Send(messages[number], other)
            elif world.rank == other:
                world.Recv(np.empty(size, np.uint8), 0)
        world.Barrier()
        best = min(best, time.perf_counter() - start)
    return MESSAGES * size / best


def serve_all(pool: Pool, source: StackSource, stage: Takes) -> dict[str, float]:
    """Serve all blocks; return the best wall seconds, and processor seconds of that run."""
    tasks = [Task(number, number, None) for number in range(len(source.blocks))]
    best: dict[str, float] = {"wall": float("inf")}
    for _ in range(REPEATS):
        pool.serve(source)
        start, used = time.perf_counter(), time.process_time()
        pool.run(stage, {}, tasks)
        wall = time.perf_counter() - start
        if wall < best["wall"]:
            best = {"wall": wall, "cpu": time.process_time() - used}
    return best


def measure(star: Path) -> dict[str, float]:
    """Run on rank 0; the others serve."""
    source = source_of(star)
    image = source.stacks[0].box ** 2 * np.dtype(PIXELS[star.parent.name.split("-")[0]]).itemsize
    size = image * source.particles.count
    block = image * max(map(len, source.blocks))
    MPI.COMM_WORLD.bcast(block)
    mpi = send_alone(block)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with mpi_cluster.open_pool(cache_bytes=0) as pool:
        served = serve_all(pool, source, Takes(looks=False))
        looked = serve_all(pool, source, Takes(looks=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "mpi": mpi,
        "served": size / served["wall"],
        "cpu": served["cpu"] / size,
        "looked": size / looked["wall"],
        "before": before * 1024,
        "peak": peak * 1024,
    }


def rank_main(star: Path) -> int:
    """One rank of the job."""
    if mpi_cluster.world().rank:
        send_alone(MPI.COMM_WORLD.bcast(None))
        return mpi_cluster.serve()
    print(json.dumps(measure(star)), flush=True)
    mpi_cluster.finish(0)
    return 0


# The caller's part


def job(ranks: int, star: Path) -> dict[str, float]:
    """Measure in a job of its own."""
    from tests.support import jobs
    from tests.support.installed import mpirun

    program = [sys.executable, "-m", "tests.bench.file_server", "--measure", str(star)]
    line = [*mpirun(), "-n", str(ranks), *program]
    with jobs.Job([], line=line) as started:
        done = started.finish(300.0)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


PIXELS: Mapping[str, str] = {"float32": "f4", "float16": "f2", "int16": "i2", "int8": "i1"}
HEAD = "pixels   stacks   MPI alone   served            seen              rank 0       peak"


def table(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Measure each set; print one line for each."""
    print(
        f"{options.images} images of {options.box} pixels; rank 0 and {options.ranks - 1} workers"
    )
    print(HEAD)
    rows = []
    for kind in options.types:
        for stacks in options.stacks:
            name = f"{kind}-{stacks}"
            star = make_set(folder / name, PIXELS[kind], options.images, options.box, stacks)
            row = job(options.ranks, star)
            print(line_of(kind, stacks, row), flush=True)
            rows.append(row)
            for file in star.parent.iterdir():
                file.unlink()
    return rows


def line_of(kind: str, stacks: int, row: Mapping[str, float]) -> str:
    """One line of the table."""
    rate, ratio = {}, {}
    for name in ("mpi", "served", "looked"):
        rate[name], ratio[name] = row[name] / 1e6, row[name] / row["mpi"]
    return (
        f"{kind:8} {stacks:6} {rate['mpi']:6.0f} MB/s"
        f"   {rate['served']:5.0f} MB/s {ratio['served']:4.0%}"
        f"   {rate['looked']:5.0f} MB/s {ratio['looked']:4.0%}"
        f"   {row['cpu'] * 1e9:5.2f} s/GB   {row['before'] / 1e6:4.0f} + "
        f"{(row['peak'] - row['before']) / 1e6:.0f} MB"
    )


def main(words: Sequence[str]) -> int:
    """A rank's part, or the caller's."""
    if words[:1] == ["--measure"]:
        return rank_main(Path(words[1]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--box", type=int, default=96)
    parser.add_argument("--stacks", type=int, nargs="+", default=[1, 5000])
    parser.add_argument("--types", nargs="+", default=list(PIXELS), choices=list(PIXELS))
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="mpipar-bench.") as folder:
        table(options, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
