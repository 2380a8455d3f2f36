"""Volume work of an iteration, piece by piece: processor seconds and peak memory of rank 0.

    python -m tests.bench.volumes [--box 64 128 256] [--sym c1] [--slices 200]

Fills the sums of both half sets with noisy slices of a made-up molecule, then does with them what
rank 0 does at the end of an iteration and before the next one, at full radius and with masks made
from the maps. Each box is measured in a process of its own, twice; the second time counts, when
libraries are loaded and caches are filled. A piece's peak is all that the process holds at that
moment, the libraries (about 0.2 GB) and what earlier pieces have left to later ones included. The
sums come from a file, as they come from workers in a run; to fill and to read them is not counted.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from mpipar.cryoem import alignment, masks, reconstruction, resolution, symmetry
from mpipar.cryoem.fourier import components, filter_shells, largest_radius, lowpass_gain
from mpipar.cryoem.search_plan import Sampling
from mpipar.programs import fold_sums, folds, iteration
from mpipar.programs.block_rows import MASK_EDGE, ImageGeometry
from mpipar.programs.dataset import Dataset
from mpipar.runtime.machines.reduction import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

PIXEL_SIZE = 1.5  # A
NOISE = 1.0  # standard deviation, of that of a slice's components
LARGEST = 20.0  # standard deviations of the components: bound for the sums
SLICES_AT_ONCE = 16


@dataclass
class Piece:
    """Processor seconds of a piece, and the most bytes that the process had meanwhile."""

    name: str
    user: float
    system: float
    peak: int


def molecule(box: int) -> NDArray[np.float32]:
    """Return a density (n, n, n) without symmetry, in half of the box, with fine detail."""
    random = np.random.default_rng(0)
    places = random.normal(size=(8 * box, 3))
    places *= (0.25 * box * random.uniform(size=len(places)) ** (1 / 3))[:, None]
    places /= np.sqrt((places**2).sum(axis=1))[:, None]
    z, y, x = np.rint(places * (1.0, 0.7, 0.6)).astype(int).T + box // 2
    volume = np.zeros((box,) * 3, np.float32)
    np.add.at(volume, (z, y, x), 1.0)
    fall = np.exp(-((np.arange(box // 2 + 1) / (0.3 * box)) ** 2))
    return filter_shells(volume, fall * lowpass_gain(box, 0.42 * box, 0.1 * box))


def filled_sums(
    box: int, count: int
) -> tuple[dict[str, NDArray[np.int64]], reconstruction.FixedPoint]:
    """Return the sums of both half sets, of `count` noisy slices each, and their scales."""
    radius = largest_radius(box)
    wanted = components(box, radius)
    reference = alignment.make_reference(molecule(box), radius)
    random = np.random.default_rng(1)
    sums = {name: reconstruction.empty_sums(radius) for name in ("half1", "half2")}
    one = np.ones(len(wanted.shell), np.float32)
    bound, scales = 0.0, reconstruction.FixedPoint(1.0, 1.0)
    for name in sorted(sums):
        for first in range(0, count, SLICES_AT_ONCE):
            turns = Rotation.random(min(SLICES_AT_ONCE, count - first), random).as_matrix()
            flat = alignment.slices_of(reference, turns, wanted.frequencies)
            if not bound:
                deviation = float(flat.std())
                bound = max(LARGEST * deviation, 2.0 * float(np.abs(flat).max()))
                scales = reconstruction.fixed_point(bound, 1.0, count)
            flat += random.normal(scale=NOISE * deviation, size=flat.shape).astype(np.float32)
            images = flat.view(np.complex64)
            values = alignment.weigh(images, np.ones(images.shape, np.float32), one)
            values[:, 0] *= 0.5  # zero frequency is its own Friedel mate
            reconstruction.insert(sums[name], values, turns, wanted, scales)
    return sums, scales


def dataset_of(box: int, group: str) -> Dataset:
    """Return a data set that has all that volumes depend on."""
    radius, operators = 0.34 * box, symmetry.operators(group)
    two = np.array([1, 2], np.int8)
    return Dataset(
        geometry=ImageGeometry(box, PIXEL_SIZE, radius),
        sampling=Sampling(box, 2 * radius, largest_radius(box), len(operators)),
        symmetry=operators,
        sphere=masks.soft_sphere(box, radius, MASK_EDGE),
        mask=None,
        half=two,
        fold=np.zeros(2, np.int8),
        offset=np.zeros(2),
        gain=np.ones(2),
        largest=np.ones(largest_radius(box) + 1),
        largest_ctf=1.0,
        blocks=(np.array([0]), np.array([1])),
        seed=1,
        start_shell=max(2, box // 20),
    )


class Meter:
    """Measures pieces of work in this process."""

    def __init__(self) -> None:
        self.pieces: dict[str, Piece] = {}

    def measure(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `work` returns for these arguments, and add what it took to a piece."""
        if name not in self.pieces:
            self.pieces[name] = Piece(name, 0.0, 0.0, 0)
            _forget_peak()
        before = _processor_seconds()
        result = work(*arguments)
        after, piece = _processor_seconds(), self.pieces[name]
        piece.user += after[0] - before[0]
        piece.system += after[1] - before[1]
        piece.peak = max(piece.peak, _peak())
        return result


def _processor_seconds() -> tuple[float, float]:
    """Return the user and the system time of all threads of this process."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_stime


def _forget_peak() -> None:
    """Let the kernel's note of the largest resident set begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Return the largest resident set since then, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM in status")


def added_up(meter: Meter, data: Dataset, count: int) -> fold_sums.FoldSums:
    """Return what rank 0 makes of sums that come to it in pieces, here from a file."""
    sums, scales = filled_sums(data.geometry.box, count)
    shapes = {name: array.shape for name, array in sums.items()}
    with tempfile.TemporaryFile() as file:
        for name in sorted(shapes):
            sums.pop(name).tofile(file)
        file.seek(0)
        totals = meter.measure("sums", fold_sums.FoldTotals, shapes, scales)
        for name in sorted(shapes):
            size = math.prod(shapes[name])
            for start in range(0, size, CHUNK):
                piece = np.fromfile(file, np.int64, min(CHUNK, size - start))
                meter.measure("sums", totals.take, name, start, piece)
    found: fold_sums.FoldSums = meter.measure(
        "sums", totals.finished, data.symmetry, data.geometry.box
    )
    return found


def iterate(data: Dataset, count: int) -> list[Piece]:
    """Do the volume work of one iteration; return its pieces."""
    box, meter = data.geometry.box, Meter()
    radius = largest_radius(box)
    added = added_up(meter, data, count)
    maps = meter.measure("maps", iteration.maps_of, data, added.halves, radius, 1)
    resolved = resolution.last_resolved_shell(maps.corrected, resolution.GOLD_STANDARD)
    found = box * PIXEL_SIZE / resolved
    shells = radius, resolved
    references = meter.measure(
        "references", folds.references_of, data, added, maps.corrected, shells, found
    )
    del added
    meter.measure("transforms", folds.transforms, references, radius)
    return list(meter.pieces.values())


def measure(box: int, group: str, count: int) -> list[Piece]:
    """Measure one box in this process; the second time counts."""
    data = dataset_of(box, group)
    iterate(data, count)
    time.sleep(0.1)
    return iterate(data, count)


def table(box: int, pieces: list[Piece]) -> None:
    """Print what each piece of one box took, and all of them."""
    user, system = sum(one.user for one in pieces), sum(one.system for one in pieces)
    whole = Piece("all", user, system, max(one.peak for one in pieces))
    for one in (*pieces, whole):
        print(
            f"{box:4d}  {one.name:<12}{one.user + one.system:8.2f}{one.system:10.2f}"
            f"{one.peak / 1e9:9.2f}",
            flush=True,
        )


def main() -> int:
    """Measure the boxes that are asked for, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--box", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--sym", default="c1")
    parser.add_argument("--slices", type=int, default=200, help="in each half set")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        table(asked.box[0], measure(asked.box[0], asked.sym, asked.slices))
        return 0
    print(f"{'box':>4}  {'piece':<12}{'CPU s':>8}{'system s':>10}{'peak GB':>9}", flush=True)
    program = [sys.executable, "-m", "tests.bench.volumes", "--here"]
    program += ["--sym", asked.sym, "--slices", str(asked.slices)]
    return max(subprocess.call([*program, "--box", str(box)]) for box in asked.box)


if __name__ == "__main__":
    sys.exit(main())
