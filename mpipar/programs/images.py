"""The particle images of a run, as rank 0 reads them; workers make them float32 and check them."""

from __future__ import annotations

import itertools
import resource
import threading
from collections import OrderedDict
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mpipar.errors import InputError, MpiparError, counted
from mpipar.formats.mrc import Stack
from mpipar.formats.steady_file import steadily
from mpipar.programs.read_buffers import ReadBuffers
from mpipar.programs.stored_images import IMAGES, ImageFindings, PixelLayout, StoredImages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.formats.particles import ParticleSet

MOST_OPEN_FILES: Final = 8192
SHARE_OF_FILES: Final = 4  # stacks take one in so many of the files that a process may have open
SAMPLE_SIZE: Final = 50  # particles that are read before anything is computed


def open_stacks(particles: ParticleSet) -> tuple[Stack, ...]:
    """Open every stack of a particle set, and check header, size on disk, box, number of images.

    raises   InputError or MissingInputError naming the first particle whose stack is wrong
    """
    first_of = np.unique(particles.stack, return_index=True)[1]
    stacks: list[Stack] = []
    for path, row in zip(particles.stacks, first_of.tolist(), strict=True):
        try:
            stacks.append(steadily(partial(Stack, path, marked=path in particles.marked)))
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
    """Blocks of particle images, read by rank 0's I/O thread; the runtime's BlockSource."""

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
        self.hot_pixels: dict[int, int] = {}  # particle: how many of its pixels are replaced
        self.filled_rims: set[int] = set()  # particles whose rim has a foreign value
        self._open: OrderedDict[int, Stack] = OrderedDict()
        self._most_open = most_open_files()
        self._buffers = ReadBuffers()
        self._lock = threading.Lock()

    def divided(self, blocks: Sequence[NDArray[np.int64]]) -> StackSource:
        """Return a source of the same images, cut into blocks of particle indices."""
        return StackSource(self.particles, self.stacks, blocks)

    def read(self, block: int) -> StoredImages:
        """Read the images of a block, in the order of its particle indices, as they are stored.

        raises    InputError or MissingInputError naming the file that cannot be read
        """
        return self._stored(self.blocks[block])

    def images(self, particles: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Read images of particles by index, (k, n, n) float32, as workers see them.

        raises   InputError naming the first particle whose image is unusable
        """
        stored = self._stored(np.asarray(particles, dtype=np.int64))
        self.note(stored.findings)
        return stored[IMAGES]

    def check_sample(self) -> None:
        """Read some particles from all over the set, so that bad data show before any compute."""
        count = self.particles.count
        self.images(np.unique(np.linspace(0, count - 1, min(count, SAMPLE_SIZE)).astype(np.int64)))

    def note(self, findings: ImageFindings) -> None:
        """Note what was replaced in images.

        raises   InputError naming the first particle whose image is unusable
        """
        if fault := findings.first_fault():
            row, what, others = fault
            more = f" ({counted(others, 'more particle')} like it)" if others else ""
            raise InputError(
                f"particle {row + 1} of {self.particles.path} {what}: image "
                f"{self.particles.slice[row] + 1} of "
                f"{self.particles.stacks[self.particles.stack[row]]}{more}; remove it from the "
                "STAR file or extract it again"
            )
        for place in np.flatnonzero(findings.hot).tolist():
            self.hot_pixels[int(findings.particles[place])] = int(findings.hot[place])
        self.filled_rims.update(findings.particles[findings.filled].tolist())

    def new_retries(self) -> list[tuple[Path, int]]:
        """Return which files could not be read at once since the last call, and how many times."""
        counts = ((stack.path, stack.file.take_retries()) for stack in self.stacks)
        return [(path, count) for path, count in counts if count]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _stored(self, particles: NDArray[np.int64]) -> StoredImages:
        """Read images as they are stored; those of one kind of pixels after each other."""
        of = self.particles.stack[particles]
        numbers = np.unique(of).tolist()
        kinds = {number: self.stacks[number].pixel_kind for number in numbers}
        stored, places = particles, None
        if len(set(kinds.values())) > 1:
            places = np.array(
                sorted(range(of.size), key=[kinds[n] for n in of.tolist()].__getitem__)
            )
            stored, of = particles[places], of[places]
        layouts = [
            PixelLayout(kind[0], kind[1], len(list(run)))
            for kind, run in itertools.groupby(kinds[number] for number in of.tolist())
        ]
        sizes = {number: self.stacks[number].image_bytes for number in numbers}
        ends = list(itertools.accumulate(sizes[number] for number in of.tolist()))
        pixels = self._buffers.take(ends[-1] if ends else 0)
        images = self.particles.slice[stored]
        order = np.lexsort((images, of))
        rows = zip(of[order].tolist(), images[order].tolist(), order.tolist(), strict=True)
        with self._lock:
            for number, group in itertools.groupby(rows, key=itemgetter(0)):
                wanted = [(image, ends[row] - sizes[number]) for _, image, row in group]
                self._use(number).read_stored(wanted, pixels)
        return StoredImages(particles, self.stacks[0].box, pixels, layouts, places)

    def _use(self, number: int) -> Stack:
        """Return a stack to read from; the least recently used is closed if too many are open."""
        stack = self._open.pop(number, self.stacks[number])
        self._open[number] = stack
        if len(self._open) > self._most_open:
            self._open.popitem(last=False)[1].close()
        return stack


def most_open_files() -> int:
    """Return how many stacks may be open at a time; the system often allows 1,024 files in all."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MOST_OPEN_FILES
    return max(1, min(MOST_OPEN_FILES, allowed // SHARE_OF_FILES))
