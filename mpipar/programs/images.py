"""The particle images of a run, read on rank 0 and checked on the way."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mpipar.cryoem.outliers import without_fill, without_hot_pixels
from mpipar.errors import InputError, MpiparError, counted
from mpipar.formats.mrc import Stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet

MOST_OPEN_FILES: Final = 64
SQUARED: Final = (1e-19, 1e19)  # numbers whose squares single precision holds
SAMPLE_SIZE: Final = 50  # particles that are read before anything is computed


def open_stacks(particles: ParticleSet) -> tuple[Stack, ...]:
    """Open every stack of a particle set, and check header, size on disk, box, number of images.

    raises   InputError or MissingInputError naming the first particle whose stack is wrong
    """
    first_of = np.unique(particles.stack, return_index=True)[1]
    stacks: list[Stack] = []
    for path, row in zip(particles.stacks, first_of.tolist(), strict=True):
        try:
            stacks.append(Stack(path, marked=path in particles.marked))
        except MpiparError as error:  # noqa: PERF203 - a try costs nothing beside opening a file
            raise type(error)(f"particle {row + 1} of {particles.path}: {error}") from error
    boxes = np.array([stack.box for stack in stacks])
    if (boxes != boxes[0]).any():
        other = int(np.flatnonzero(boxes != boxes[0])[0])
        raise InputError(
            f"image stacks differ in box size: {stacks[0].path} has {boxes[0]} pixels (particle "
            f"{first_of[0] + 1}), {stacks[other].path} has {boxes[other]} (particle "
            f"{first_of[other] + 1}); extract the particles again at one size"
        )
    counts = np.array([stack.count for stack in stacks])[particles.stack]
    _require_numbers(particles, counts)
    beyond = np.flatnonzero(particles.slice >= counts)
    if beyond.size:
        row = int(beyond[0])
        raise InputError(
            f"particle {row + 1} of {particles.path} is image {particles.slice[row] + 1} of "
            f"{particles.stacks[particles.stack[row]]}, which has only "
            f"{counted(counts[row], 'image')} ({beyond.size} such particles); is it the stack that "
            "belongs to this STAR file?"
        )
    return tuple(stacks)


def _require_numbers(particles: ParticleSet, counts: NDArray[np.int64]) -> None:
    """Raise InputError if a name without a number stands for one image of several."""
    unclear = np.flatnonzero(particles.unnumbered & (counts > 1))
    if unclear.size:
        row = int(unclear[0])
        stack = particles.stacks[particles.stack[row]]
        raise InputError(
            f"particle {row + 1} of {particles.path} names {stack} without saying which of its "
            f"{counts[row]} images ({unclear.size} such particles); rlnImageName must read like "
            f"000001@{stack.name}"
        )


class StackSource:
    """Blocks of particle images, read by rank 0's I/O thread; the runtime's BlockSource.

    Images of an odd box lose their last row and column, so that the box becomes even; the centre at
    n // 2 stays where it is.
    """

    def __init__(
        self,
        particles: ParticleSet,
        stacks: Sequence[Stack],
        blocks: Sequence[NDArray[np.int64]] = (),
    ) -> None:
        self.particles = particles
        self.stacks = tuple(stacks)
        self.blocks = tuple(blocks)
        self.box = self.stacks[0].box // 2 * 2
        self.hot_pixels: dict[int, int] = {}  # particle: how many of its pixels were replaced
        self.filled_rims: set[int] = set()  # particles whose rim had a foreign value
        self._open: OrderedDict[int, Stack] = OrderedDict()
        self._lock = threading.Lock()

    def divided(self, blocks: Sequence[NDArray[np.int64]]) -> StackSource:
        """Return a source of the same images, cut into blocks of particle indices."""
        return StackSource(self.particles, self.stacks, blocks)

    def read(self, block: int) -> dict[str, NDArray[np.float32]]:
        """Read the images of a block, in the order of its particle indices.

        returns   {"images": (k, n, n) float32}
        raises    InputError naming the first particle whose image is unusable
        """
        particles = self.blocks[block]
        images, filled = without_fill(self.images(particles))
        self.filled_rims.update(particles[filled].tolist())
        return {"images": images}

    def images(self, particles: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Read images of particles by index, (k, n, n) float32; checked, and without hot pixels."""
        indices = np.asarray(particles, dtype=np.int64)
        images = np.empty((indices.size, self.box, self.box), np.float32)
        with self._lock:
            for number in np.unique(self.particles.stack[indices]).tolist():
                places = np.flatnonzero(self.particles.stack[indices] == number)
                pixels = self._use(number).read(self.particles.slice[indices[places]])
                images[places] = pixels[:, : self.box, : self.box]
        self._check(indices, images)
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused next
            images, counts = without_hot_pixels(images)
        self._require_grey_scale(indices, images)
        for place in np.flatnonzero(counts):
            self.hot_pixels[int(indices[place])] = int(counts[place])
        return images

    def check_sample(self) -> None:
        """Read some particles from all over the set, so that bad data show before any compute."""
        count = self.particles.count
        self.images(np.unique(np.linspace(0, count - 1, min(count, SAMPLE_SIZE)).astype(np.int64)))

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _use(self, number: int) -> Stack:
        """Return a stack to read from; the least recently used is closed if too many are open."""
        stack = self._open.pop(number, self.stacks[number])
        self._open[number] = stack
        if len(self._open) > MOST_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return stack

    def _check(self, indices: NDArray[np.int64], images: NDArray[np.float32]) -> None:
        """Raise InputError for NaN, infinite or constant images."""
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        finite = np.isfinite(low) & np.isfinite(high)  # a NaN anywhere becomes both
        self._refuse(indices, ~finite, "has pixels that are NaN or infinite")
        self._refuse(indices, finite & (low == high), "has the same value in all pixels")

    def _require_grey_scale(self, indices: NDArray[np.int64], images: NDArray[np.float32]) -> None:
        """Raise InputError for images whose Fourier components have squares beyond float32."""
        largest = np.abs(images).max(axis=(1, 2)).astype(np.float64)
        # a component is between the largest pixel times the box (noise) and times its square (sum)
        beyond = ~((largest * self.box >= SQUARED[0]) & (largest * self.box**2 <= SQUARED[1]))
        if beyond.any():
            value = float(largest[np.flatnonzero(beyond)[0]])
            self._refuse(
                indices,
                beyond,
                f"has grey values up to {value:g}, which single precision cannot square (is the "
                "byte order or the mode wrong, or is a factor of scale missing?)",
            )

    def _refuse(self, indices: NDArray[np.int64], unusable: NDArray[np.bool_], what: str) -> None:
        """Raise InputError naming the first unusable image, if there is one."""
        if not unusable.any():
            return
        count = int(unusable.sum())
        row = int(indices[np.flatnonzero(unusable)[0]])
        more = f" ({count - 1} more like it were read with it)" * bool(count > 1)
        raise InputError(
            f"particle {row + 1} of {self.particles.path} {what}: image "
            f"{self.particles.slice[row] + 1} of "
            f"{self.particles.stacks[self.particles.stack[row]]}{more}; remove it from the "
            "STAR file or extract it again"
        )
