"""A block of particle images that travels as it lies in the stacks; the worker makes it float32.

    stacks --rank 0: bytes, no copy--> StoredImages --MPI--> worker --first look at ["images"]-->
        float32, cropped to an even box, checked, hot pixels and foreign rims replaced

So rank 0 neither converts nor looks at a pixel, and float16 costs half the bandwidth of float32.
What a worker makes depends on the bytes of each image alone, so all workers make the same bits.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mpipar.cryoem.bad_pixels import without_fill, without_hot_pixels
from mpipar.errors import InputError
from mpipar.runtime.stage import StoredBlock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

IMAGES: Final = "images"
SQUARED: Final = (1e-19, 1e19)  # numbers whose squares single precision holds
NOT_FINITE, CONSTANT, BEYOND = 1, 2, 3  # what can be wrong with an image
HALVES: Final = np.dtype("f2")


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How a run of images lies in memory: the kind of pixels, and whether rows are columns."""

    pixel_type: str  # as numpy writes it, with the byte order
    turned: bool
    count: int


@dataclass(frozen=True)
class ImageFindings:
    """What was found wrong with images; arrays have one entry per image.

    particles   (b,) their indices
    fault       (b,) NOT_FINITE, CONSTANT or BEYOND, for which there is no use; 0
    largest     (b,) largest absolute pixel
    hot         (b,) pixels far beyond all others, which were replaced
    filled      (b,) whether the rim had a foreign value, which was replaced
    """

    particles: NDArray[np.int64]
    fault: NDArray[np.int8]
    largest: NDArray[np.float32]
    hot: NDArray[np.int64]
    filled: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[ImageFindings]) -> ImageFindings:
        """Return the findings of all parts, by particle."""
        names = [field.name for field in fields(cls)]
        whole = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
        order = np.argsort(whole[0], kind="stable")
        return cls(*(array[order] for array in whole))

    def first_fault(self) -> tuple[int, str, int] | None:
        """Return the first unusable image's particle and fault, and how many more have the same.

        Kinds of faults count in the order of their numbers, so that the worst is told first.
        """
        for fault in (NOT_FINITE, CONSTANT, BEYOND):
            places = np.flatnonzero(self.fault == fault)
            if places.size:
                what = _words(fault, float(self.largest[places[0]]))
                return int(self.particles[places[0]]), what, places.size - 1
        return None


def _words(fault: int, largest: float) -> str:
    """Return what is wrong with an image, as the end of a sentence about it."""
    if fault == NOT_FINITE:
        return "has pixels that are NaN or infinite"
    if fault == CONSTANT:
        return "has the same value in all pixels"
    return (
        f"has grey values up to {largest:g}, which single precision cannot square (is the byte "
        "order or the mode wrong, or is a factor of scale missing?)"
    )


class StoredImages(StoredBlock):
    """Images of a block, (b, n, n) float32 under the name "images" for whoever looks at them.

    Images of an odd box lose their last row and column, so that the box becomes even; the centre at
    n // 2 stays where it is.
    """

    def __init__(
        self,
        particles: NDArray[np.int64],
        box: int,
        pixels: NDArray[np.uint8],
        layouts: Sequence[PixelLayout],
        places: NDArray[np.int64] | None = None,
    ) -> None:
        """Images of `particles`, whose bytes lie in `pixels`, one run after the other.

        box       of the images as stored
        places    (b,) place in the block of each stored image; None: they lie in order
        """
        self.particles = particles
        self.box = box
        self._stored: tuple[Any, ...] | None = (pixels, tuple(layouts), places)
        self._made: tuple[NDArray[np.float32], ImageFindings] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            return _again, (self.particles, self.box, self._stored, self._made)

    # As the runtime sees it

    @property
    def nbytes(self) -> int:
        return int(4 * len(self.particles) * (self.box // 2 * 2) ** 2)

    @property
    def stored_bytes(self) -> int:
        stored, made = self._stored, self._made
        if stored is not None:
            return int(stored[0].nbytes)
        return made[0].nbytes if made is not None else 0

    def __iter__(self) -> Iterator[str]:
        return iter((IMAGES,))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return the images. Raises InputError naming the first particle with an unusable one."""
        if name != IMAGES:
            raise KeyError(name)
        images, findings = self._images()
        if fault := findings.first_fault():
            raise InputError(
                f"the image of particle {fault[0] + 1} {fault[1]}; it was sound when all images "
                "were looked at: has its stack changed?"
            )
        return images

    @property
    def findings(self) -> ImageFindings:
        """What was found wrong with the images."""
        return self._images()[1]

    def _images(self) -> tuple[NDArray[np.float32], ImageFindings]:
        with self._lock:
            if self._made is None:
                assert self._stored is not None
                images = _converted(self.box, *self._stored)
                self._made = _mended(self.particles, images)
                self._made[0].flags.writeable = False
                self._stored = None
            return self._made


def _again(particles: Any, box: int, stored: Any, made: Any) -> StoredImages:
    """Return images that have arrived from another rank."""
    images = StoredImages(particles, box, *(stored or (np.empty(0, np.uint8), ())))
    images._stored, images._made = stored, made
    return images


def _converted(
    box: int,
    pixels: NDArray[np.uint8],
    layouts: Sequence[PixelLayout],
    places: NDArray[np.int64] | None,
) -> NDArray[np.float32]:
    """Return stored images as float32, cropped to an even box: the same memory, if it can be."""
    even = box // 2 * 2
    runs: list[NDArray[Any]] = []
    start = 0
    for layout in layouts:
        kind = np.dtype(layout.pixel_type)
        end = start + layout.count * box * box * kind.itemsize
        run = pixels[start:end].view(kind).reshape(layout.count, box, box)
        run = run.transpose(0, 2, 1) if layout.turned else run
        runs.append(run[:, :even, :even])
        start = end
    if len(runs) == 1 and runs[0].dtype == np.float32 and runs[0].flags.c_contiguous:
        return runs[0]
    images = np.empty((sum(map(len, runs)), even, even), np.float32)
    start = 0
    for run in runs:
        _convert(run, images[start : start + len(run)])
        start += len(run)
    if places is None:
        return images
    ordered = np.empty_like(images)
    ordered[places] = images
    return ordered


def _convert(stored: NDArray[Any], images: NDArray[np.float32]) -> None:
    """Set images to stored ones, which any kind of pixels may have."""
    if stored.dtype == HALVES:
        np.take(_float_of_half(), stored.view(np.uint16), out=images, mode="clip")
    else:
        images[:] = stored


_halves: list[NDArray[np.float32]] = []


def _float_of_half() -> NDArray[np.float32]:
    """Return every float16 as float32, by its bits: twice as fast as numpy's conversion."""
    if not _halves:
        _halves.append(np.arange(1 << 16, dtype=np.uint16).view(HALVES).astype(np.float32))
    return _halves[0]


def _mended(
    particles: NDArray[np.int64], images: NDArray[np.float32]
) -> tuple[NDArray[np.float32], ImageFindings]:
    """Return images without what no specimen can have made, and what was found."""
    flat = images.reshape(len(images), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    finite = np.isfinite(low) & np.isfinite(high)  # a NaN anywhere becomes both
    fault = np.where(finite, np.where(low == high, CONSTANT, 0), NOT_FINITE).astype(np.int8)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused next
        images, hot = without_hot_pixels(images)
    if hot.any():
        flat = images.reshape(len(images), -1)
        low, high = flat.min(axis=1), flat.max(axis=1)
    largest = np.maximum(np.abs(low), np.abs(high))
    box = images.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        # a component is between the largest pixel times the box (noise) and its square (sum)
        size = largest.astype(np.float64)
        squared = (size * box >= SQUARED[0]) & (size * box**2 <= SQUARED[1])
    fault[(fault == 0) & ~squared] = BEYOND
    filled = np.zeros(len(images), np.bool_)
    if not fault.any():
        images, filled = without_fill(images)
    return images, ImageFindings(particles, fault, largest, hot, filled)
