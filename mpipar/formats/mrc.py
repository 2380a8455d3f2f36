"""MRC files: volumes whole, image stacks a few images at a time.

Pixels are read by offset, so that a stack of a hundred gigabytes costs no more memory than the
images asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import mrcfile
import numpy as np

from mpipar.errors import InputError, counted
from mpipar.formats.mrc_header import HEADER_BYTES, USUAL_AXES, Header, header_of, read_header
from mpipar.formats.read_runs import LARGEST_READ, plan_reads
from mpipar.formats.reading import opened, reading
from mpipar.formats.steady_file import SteadyFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

STACK_MARK: Final = ":mrcs"  # RELION's way to say that a file is a stack whatever its suffix
STACK_SUFFIXES: Final = frozenset({".mrcs", ".st", ".ali"})
SIGN_IMAGES: Final = 8  # that are looked at where a header does not say if integers have a sign
LONGER: Final = (
    "the file is longer than its header says, by one section or more; the header is believed: is "
    "its mode or number of sections wrong?"
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A cube of density."""

    data: NDArray[np.float32]  # (n, n, n), axes z y x
    pixel_size: float  # A; 0 where the header does not say
    path: Path
    notes: tuple[str, ...] = ()  # what is unusual in the header, and how it is read


def read_volume(path: Path) -> Volume:
    """Read a cube whole, as float32 with axes z y x, whatever axis order the file uses.

    The file may be compressed with gzip, bzip2 or xz, as databases give it.

    raises   InputError if the file is no MRC file, truncated, not a cube, or not of cubic voxels
    """
    with opened(path) as file:
        header = header_of(path, file.read(HEADER_BYTES))
        _require_cube(header)
        wanted = header.shape[0] * header.image_bytes
        if file.seekable():
            file.seek(header.offset)
        else:
            _read_all(file, header.offset - HEADER_BYTES)
        data = _read_all(file, wanted)
        found = header.offset + len(data)
        if len(data) < wanted and file.seekable():
            found = file.seek(0, os.SEEK_END)
        longer = (LONGER,) if len(_read_all(file, header.image_bytes)) == header.image_bytes else ()
    header.require_all_bytes(found)
    pixels = np.frombuffer(data, header.pixel_type).reshape(header.shape)
    header = header.with_sign(pixels)
    stored = pixels.view(header.pixel_type).astype(np.float32)
    # Stored axes are (MAPS, MAPR, MAPC), numbered x=1, y=2, z=3; wanted are z y x.
    place = header.axes[::-1]
    ordered = stored.transpose([place.index(axis) for axis in (3, 2, 1)])
    doubts = (header.sign_doubt,) if header.sign_doubt else ()
    notes = tuple(f"{path}: {note}" for note in header.notes + longer + doubts)
    return Volume(np.ascontiguousarray(ordered), header.pixel_size, path, notes)


def _read_all(file: BinaryIO, wanted: int) -> bytearray:
    """Return so many bytes, or all that there are; a false header costs no memory."""
    data = bytearray()
    while piece := file.read(min(wanted - len(data), LARGEST_READ)):
        data += piece
    return data


def _require_cube(header: Header) -> None:
    """Raise InputError unless the header is one of a cube of cubic voxels."""
    path = header.path
    sections, rows, columns = header.shape
    if not sections == rows == columns:
        raise InputError(
            f"{path} is {columns} x {rows} x {sections} (x, y, z); a volume must be a cube: "
            "cut or pad it to one box size"
        )
    if header.anisotropic:
        raise InputError(
            f"{path} has voxels that are not cubes, by the cell in its header; resample it first"
        )
    if sorted(header.axes) != [1, 2, 3]:
        raise InputError(f"{path} has the impossible axis order MAPC, MAPR, MAPS = {header.axes}")


def write_volume(
    path: Path, data: NDArray[np.floating[Any]], pixel_size: float, label: str = ""
) -> None:
    """Write a volume as MRC2014 float32; the same input always gives the same bytes.

    data         (n, n, n), axes z y x
    pixel_size   A
    label        of the header, at most 80 characters
    """
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(data, dtype="<f4"))
        file.set_volume()
        file.voxel_size = pixel_size
        file.header.label = b""  # mrcfile's label carries the date
        file.header.nlabl = 0
        if label:
            file.add_label(label)


def write_stack(path: Path, images: NDArray[np.floating[Any]], pixel_size: float) -> None:
    """Write images as an MRC2014 stack; the same input always gives the same bytes.

    images       (k, n, n) float16 (mode 12) or float32 (mode 2)
    pixel_size   A
    """
    with mrcfile.new(path, overwrite=True) as file:
        # without its values: sums of half floats overflow, so statistics are computed here
        file.set_data(np.zeros_like(images))
        file.set_image_stack()
        file.data[...] = images
        file.voxel_size = pixel_size
        header = file.header
        header.dmin, header.dmax = images.min(), images.max()
        header.dmean = images.mean(dtype=np.float64)
        header.rms = images.std(dtype=np.float64)
        header.label, header.nlabl = b"", 0  # mrcfile's label carries the date


class Stack:
    """A file of square images that are read by number.

    The first read opens the file; `close` may be called between reads. `read` and `close` may be
    called from different threads.
    """

    def __init__(self, path: Path, marked: bool = False) -> None:
        """`marked` says that a list calls the file a stack, whatever name and header say."""
        header = read_header(path)
        sections, rows, columns = header.shape
        if rows != columns:
            raise InputError(f"{path} holds images of {columns} x {rows} pixels, not square ones")
        if header.is_volume and not marked and path.suffix.lower() not in STACK_SUFFIXES:
            raise InputError(
                f"{path} holds one volume of {columns} x {rows} x {sections}, not a stack of "
                "images; if it is a stack, give it the suffix .mrcs, or name its images like "
                f"000001@{path.name}{STACK_MARK}"
            )
        self.turned, turn_notes = _turned(header)
        with reading(path):
            found = path.stat().st_size
        header.require_all_bytes(found)
        if not header.sign_told:
            header = header.with_sign(_some_images(header))
        longer = (LONGER,) if found >= header.all_bytes + header.image_bytes else ()
        self.path = path
        self.count = sections
        self.box = columns
        self.image_bytes = header.image_bytes
        self.pixel_size = header.pixel_size
        self.notes = header.notes + turn_notes + longer
        self.sign_doubt = header.sign_doubt
        self.pixel_kind = header.pixel_type.str, self.turned
        """Numpy's name of the stored pixels, and whether rows and columns must change places."""
        self._pixel_type = header.pixel_type
        self._offset = header.offset
        self.file = SteadyFile(path, header.raw)

    def read(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Read images by zero-based number, in the order given.

        indices   (k,), may repeat
        returns   (k, n, n) float32
        """
        numbers = np.asarray(indices, dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        places = order * self.image_bytes
        pixels = np.empty(numbers.size * self.image_bytes, np.uint8)
        self.read_stored(list(zip(numbers[order].tolist(), places.tolist(), strict=True)), pixels)
        images = pixels.view(self._pixel_type).reshape(-1, self.box, self.box)
        return (images.transpose(0, 2, 1) if self.turned else images).astype(np.float32, order="C")

    def read_stored(self, wanted: Sequence[tuple[int, int]], pixels: NDArray[np.uint8]) -> None:
        """Read images as they are stored, each to its place in memory.

        wanted   zero-based number of each image, ascending, and where in `pixels` (p,) it begins;
                 numbers may repeat, and near ones are fetched in one read
        raises   InputError or MissingInputError naming the file, and the byte
        """
        if wanted and (wanted[0][0] < 0 or wanted[-1][0] >= self.count):
            beyond = wanted[-1][0] if wanted[-1][0] >= self.count else wanted[0][0]
            raise InputError(
                f"{self.path} has {counted(self.count, 'image')}; there is no image {beyond + 1}"
            )
        size, memory = self.image_bytes, pixels.data
        runs, copies = plan_reads(wanted, size)
        for run in runs:
            self.file.fill(run.views(memory), self._offset + run.first * size)
        for start, other in copies:
            pixels[other : other + size] = pixels[start : start + size]

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self.file.close()


def _some_images(header: Header) -> NDArray[Any]:
    """Return pixels of some images from all over a stack, as stored."""
    numbers = np.linspace(0, header.shape[0] - 1, min(header.shape[0], SIGN_IMAGES)).astype(int)
    with reading(header.path), header.path.open("rb") as file:
        pieces = []
        for number in numbers.tolist():
            file.seek(header.offset + number * header.image_bytes)
            pieces.append(file.read(header.image_bytes))
    return np.frombuffer(b"".join(pieces), header.pixel_type).reshape(-1, header.shape[2])


def _turned(header: Header) -> tuple[bool, tuple[str, ...]]:
    """Whether rows and columns of a stack's images must change places, and notes on its axes.

    raises   InputError if the header says that the images are not sections
    """
    axes = header.axes
    if axes == USUAL_AXES:
        return False, ()
    said = f"MAPC, MAPR, MAPS = {', '.join(map(str, axes))}"
    if axes == (2, 1, 3):
        return True, (f"its images are turned, because its axes are {said}; RELION does not do so",)
    if sorted(axes) == [1, 2, 3]:
        raise InputError(
            f"{header.path} has the axes {said}: its sections are not images; write it anew with "
            "the axes 1, 2, 3"
        )
    return False, (f"its impossible axis order {said} is taken for 1, 2, 3",)


def stack_notes(stacks: Sequence[Stack]) -> list[str]:
    """Return what is unusual in the headers of stacks; what many share is said once."""
    named: dict[str, list[Path]] = {}
    for stack in stacks:
        for note in (*stack.notes, *([stack.sign_doubt] if stack.sign_doubt else [])):
            named.setdefault(note, []).append(stack.path)
    return [
        f"{paths[0]}{f' and {len(paths) - 1} more stacks' if len(paths) > 1 else ''}: {note}"
        for note, paths in named.items()
    ]
