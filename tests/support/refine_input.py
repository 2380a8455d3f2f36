"""A small input for refinements, cut from the data set of jobs/demo, in a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.support.blocks import write_mrc
from tests.support.jobs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DEMO: Final = ROOT / "jobs" / "demo" / "data"
PARTICLES, BOX, PIXEL_SIZE, ITERATIONS = 160, 32, 11.2, 2


@dataclass(frozen=True)
class Input:
    """A particle list and a model, in a folder with nothing else but the stack."""

    folder: Path
    star: Path
    model: Path
    stack: Path

    def moved(self, folder: Path) -> Input:
        """The same files in another folder."""
        return Input(folder, *(folder / path.name for path in (self.star, self.model, self.stack)))

    def words(self, *more: object, iterations: int = ITERATIONS) -> list[str]:
        """Words of a refinement of this input, after `python -m`."""
        files = ["--input", self.star, "--model", self.model]
        return [str(w) for w in ("mpipar", "refine", *files, "--iter", iterations, *more)]


def smaller(arrays: NDArray[np.floating[Any]], box: int, dimensions: int) -> NDArray[np.float32]:
    """Squares or cubes cut to `box` in Fourier space; white noise keeps its deviation."""
    axes = tuple(range(-dimensions, 0))
    old = arrays.shape[-1]
    centred = np.fft.ifftshift(arrays, axes=axes)
    transform = np.fft.fftshift(np.fft.fftn(centred, axes=axes), axes=axes)
    inner: tuple[Any, ...] = (..., *[slice(old // 2 - box // 2, old // 2 + box // 2)] * len(axes))
    kept = np.fft.ifftshift(transform[inner], axes=axes)
    small = np.fft.fftshift(np.fft.ifftn(kept, axes=axes).real, axes=axes)
    return np.asarray(small * (box / old) ** (len(axes) / 2), np.float32)


def demo_images(count: int = PARTICLES, box: int = BOX) -> NDArray[np.float32]:
    """The demo's first particles at a smaller box."""
    from mpipar.formats.mrc import Stack

    stack = Stack(DEMO / "particles.mrcs")
    images = stack.read(np.arange(count))
    stack.close()
    return smaller(images, box, 2)


def not_read_first(count: int) -> int:
    """A particle that is not among those which are read before anything is computed."""
    from mpipar.programs.images import SAMPLE_SIZE

    read = np.linspace(0, count - 1, SAMPLE_SIZE).astype(int)
    return int(np.setdiff1d(np.arange(count), read)[0])


def make_input(folder: Path, count: int = PARTICLES, box: int = BOX) -> Input:
    """Write a small particle stack, its STAR file, and the model."""
    from mpipar.formats.mrc import read_volume

    folder.mkdir(parents=True, exist_ok=True)
    stack = write_mrc(folder / "particles.mrcs", demo_images(count, box), pixel_size=PIXEL_SIZE)
    model = smaller(read_volume(DEMO / "init.mrc").data, box, 3)
    write_mrc(folder / "init.mrc", model, pixel_size=PIXEL_SIZE, volume=True)
    lines = (DEMO / "particles.star").read_text().splitlines()
    rows = [line for line in lines if "@" in line]
    head = "\n".join(line for line in lines if "@" not in line).rstrip()
    head = head.replace("5.600000 64 2", f"{PIXEL_SIZE:.6f} {box} 2")
    star = folder / "particles.star"
    star.write_text("\n".join([head, *rows[:count], ""]))
    return Input(folder, star, folder / "init.mrc", stack)
