"""How fast rank 0 reads and serves image stacks, beside the bandwidth of MPI in the same run.

    python -m tests.bench.file_server                       default: 3 workers, 10,000 images
    python -m tests.bench.file_server --box 64 --images 40000 --types float16 int16 --stacks 1 400

Makes stacks of noise in a temporary folder, and starts mpirun for each kind of pixels and number of
files. There rank 0 first sends messages as large as a block to all workers in turn, which receive
each into memory that they have used before: MPI alone. Then it serves all blocks, as a refinement
of the set cuts them, to workers that keep none; their tasks do not look at the images, or do. In
another job both is done with workers that keep all, so that everything comes into new memory, as in
the first pass over a set. Rates count bytes of the files, which are in the page cache; the best of
three.
"""

from __future__ import annotations

import argparse
import json
import shutil
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

    from numpy.typing import NDArray

    from mpipar.programs.images import StackSource
    from mpipar.runtime.pool import Pool

REPEATS = 3
MESSAGES = 48  # of each measurement of MPI alone
PIXELS: Mapping[str, str] = {"float32": "f4", "float16": "f2", "int16": "i2", "int8": "i1"}
ALL = 8 << 30  # bytes of a cache that keeps all blocks


class Takes(Stage):
    """Gets blocks, and looks at their images if `looks`."""

    def __init__(self, *, looks: bool) -> None:
        self.looks = looks

    def run(self, task: Task, block: Any, state: Any) -> None:
        if self.looks:
            assert np.isfinite(block["images"][-1, -1, -1])


# The sets


def make_set(folder: Path, kind: str, images: int, box: int, stacks: int) -> Path:
    """Write particles.star and its stacks."""
    from tests.support.blocks import optics_columns, particle_columns, write_mrc, write_star

    folder.mkdir()
    random = np.random.default_rng(1)
    field = random.normal(size=(images, box, box)).astype(np.float32)
    field *= 20.0 if kind[0] == "i" else 1.0
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


def send_alone(size: int, *, kept: bool) -> float:
    """Return the bytes per second of messages of `size` from rank 0 to all others in turn.

    kept   they are received into new memory, as blocks are that a worker keeps
    """
    world = MPI.COMM_WORLD
    messages = np.ones((MESSAGES if world.rank == 0 else 0, size), np.uint8)
    best = float("inf")
    for _ in range(1 if kept else REPEATS):
        received: list[NDArray[np.uint8]] = []
        world.Barrier()
        start = time.perf_counter()
        for number in range(MESSAGES):
            other = 1 + number % (world.size - 1)
            if world.rank == 0:
                world.Send(messages[number], other)
            elif world.rank == other:
                received = [*received * kept, np.empty(size, np.uint8)]
                world.Recv(received[-1], 0)
        world.Barrier()
        best = min(best, time.perf_counter() - start)
    return MESSAGES * size / best


def serve_all(pool: Pool, source: StackSource, stage: Takes, repeats: int) -> dict[str, float]:
    """Serve all blocks so many times; return what the fastest took: seconds, blocks sent."""
    tasks = [Task(number, number, None) for number in range(len(source.blocks))]
    best: dict[str, float] = {"wall": float("inf")}
    for _ in range(repeats):
        pool.serve(source)
        start, used = time.perf_counter(), time.process_time()
        done = pool.run(stage, {}, tasks)
        wall, cpu = time.perf_counter() - start, time.process_time() - used
        if wall < best["wall"]:
            sent = done.statistics.blocks_served / len(tasks)
            best = {"wall": wall, "cpu": cpu, "sent": sent}
    return best


def peak_bytes() -> int:
    """Return the most memory that this process had since the last call."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) << 10


def measure(star: Path, *, keep: bool) -> dict[str, float]:
    """Run on rank 0; the others serve. Bytes per second, seconds per byte, bytes."""
    source = source_of(star)
    image = source.stacks[0].image_bytes
    size, block = image * source.particles.count, image * max(map(len, source.blocks))
    alone = send_alone(MPI.COMM_WORLD.bcast(block), kept=keep)
    peak_bytes()
    before = peak_bytes()
    with mpi_cluster.open_pool(cache_bytes=ALL if keep else 0) as pool:
        served = serve_all(pool, source, Takes(looks=False), 1 if keep else REPEATS)
        peak = peak_bytes()
        looked = serve_all(pool, source, Takes(looks=True), REPEATS)
    return {
        "alone": alone,
        "served": size / served["wall"],
        "looked": size / looked["wall"],
        "cpu": served["cpu"] / size,
        "sent": served["sent"],
        "memory": peak - before,
    }


def rank_main(star: Path, *, keep: bool) -> int:
    """One rank of the job."""
    if mpi_cluster.world().rank:
        send_alone(MPI.COMM_WORLD.bcast(None), kept=keep)
        return mpi_cluster.serve()
    print(json.dumps(measure(star, keep=keep)), flush=True)
    mpi_cluster.finish(0)
    return 0


# The caller's part


def job(ranks: int, star: Path, *, keep: bool) -> dict[str, float]:
    """Measure in a job of its own; the best of several if everything is done once in it."""
    if keep:
        rows = [_job(ranks, star, "--keep") for _ in range(REPEATS)]
        return {name: max(row[name] for row in rows) for name in rows[0]}
    return _job(ranks, star)


def _job(ranks: int, star: Path, *words: str) -> dict[str, float]:
    from tests.support import jobs
    from tests.support.installed import mpirun

    program = [sys.executable, "-m", "tests.bench.file_server", "--measure", str(star)]
    line = [*mpirun(), "-n", str(ranks), *program, *words]
    with jobs.Job([], line=line) as started:
        done = started.finish(300.0)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


HEAD = """
| pixels, stacks | MPI alone | served | looked at | rank 0 | + memory | sent | MPI, kept | served |
|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


def table(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Measure each set; print a line for each."""
    workers = options.ranks - 1
    print(f"{options.images} images of {options.box} pixels; rank 0 and {workers} workers\n{HEAD}")
    rows = []
    for kind in options.types:
        for stacks in options.stacks:
            pixels = PIXELS[kind]
            star = make_set(folder / pixels, pixels, options.images, options.box, stacks)
            pair = [job(options.ranks, star, keep=keep) for keep in (False, True)]
            print(line_of(f"{kind}, {stacks}", *pair), flush=True)
            rows += pair
            shutil.rmtree(star.parent)
    return rows


def line_of(name: str, row: Mapping[str, float], kept: Mapping[str, float]) -> str:
    """One line of the table."""

    def served(row: Mapping[str, float]) -> str:
        alone, rate = row["alone"], row["served"]
        return f"{alone / 1e9:.1f} GB/s | {rate / 1e9:.1f} GB/s, {rate / alone:.0%}"

    return (
        f"| {name} | {served(row)} | {row['looked'] / 1e9:.1f} GB/s | {row['cpu'] * 1e9:.2f} s/GB "
        f"| {row['memory'] / 1e6:.0f} MB | {row['sent']:.2f} | {served(kept)} |"
    )


def main(words: Sequence[str]) -> int:
    """A rank's part, or the caller's."""
    if words[:1] == ["--measure"]:
        return rank_main(Path(words[1]), keep="--keep" in words)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--stacks", type=int, nargs="+", default=[1, 5000])
    parser.add_argument("--types", nargs="+", default=list(PIXELS), choices=list(PIXELS))
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="mpipar-bench.") as folder:
        table(options, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
