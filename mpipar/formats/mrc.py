"""MRC files: volumes whole, image stacks a few images at a time.

The header is read with mrcfile's own record layout; pixels are read by offset, so that a stack of a
hundred gigabytes costs no more memory than the images asked for.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import mrcfile
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from mpipar.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PIXEL_TYPES: Final = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
HEADER_BYTES: Final = 1024
STACK_SUFFIXES: Final = frozenset({".mrcs", ".st", ".ali"})
LARGEST_READ: Final = 64 * 2**20  # one pread; Linux itself stops at 2 GiB
ORDERS: Final[tuple[Literal["<", ">"], ...]] = ("<", ">")
STAMP_BYTE: Final = 212
BIG_ENDIAN_STAMP: Final = 0x11
LARGEST_MODE: Final = 101
LARGEST_SIDE: Final = 2**17  # more pixels than this along x is a wrong byte order, not an image


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an MRC file as plain values."""

    path: Path
    shape: tuple[int, int, int]  # sections, rows, columns as stored
    mode: int
    pixel_type: np.dtype[Any]
    offset: int  # of the first pixel, in bytes
    pixel_size: float  # A along x; 0 where the header does not say
    anisotropic: bool  # the header gives y or z another pixel size
    axes: tuple[int, int, int]  # MAPC, MAPR, MAPS
    is_volume: bool  # marked as one volume, not as a stack of images

    @property
    def image_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.pixel_type.itemsize

    def require_all_bytes(self) -> None:
        """Raise InputError if the file is shorter than its header promises."""
        found = self.path.stat().st_size
        expected = self.offset + self.shape[0] * self.image_bytes
        if found < expected:
            whole = max(0, found - self.offset) // self.image_bytes
            raise InputError(
                f"{self.path} is truncated: its header promises {self.shape[0]} sections of "
                f"{self.shape[2]} x {self.shape[1]} pixels, {expected} bytes in all, but the file "
                f"has {found} bytes: {whole} whole sections; copy or extract it again"
            )


@dataclass(frozen=True, slots=True)
class Volume:
    """A cube of density."""

    data: NDArray[np.float32]  # (n, n, n), axes z y x
    pixel_size: float  # A; 0 where the header does not say
    path: Path


def read_header(path: Path) -> Header:
    """Read the header of an MRC file.

    raises   InputError if it is not one, MissingInputError if it cannot be read
    """
    raw = _header_bytes(path)
    for order in ORDERS if raw[STAMP_BYTE] != BIG_ENDIAN_STAMP else ORDERS[::-1]:
        record = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        # Stamps are often wrong or missing; sizes and mode tell the order beyond doubt.
        sizes = [int(record[name]) for name in ("nx", "ny", "nz")]
        if min(sizes) > 0 and sizes[0] < LARGEST_SIDE and 0 <= record["mode"] <= LARGEST_MODE:
            return _interpret(path, record, order)
    raise InputError(f"{path} is not an MRC file: its header holds no sensible size and mode")


def _header_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist") from None
    except OSError as error:
        raise MissingInputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(raw) < HEADER_BYTES:
        raise InputError(
            f"{path} is not an MRC file: it has {len(raw)} bytes, a header alone {HEADER_BYTES}"
        )
    return raw


def _interpret(path: Path, record: Any, order: Literal["<", ">"]) -> Header:
    mode = int(record["mode"])
    if mode not in PIXEL_TYPES:
        known = ", ".join(f"{m} ({np.dtype(t).name})" for m, t in PIXEL_TYPES.items())
        raise InputError(f"{path} has MRC mode {mode}; the modes that can be read are {known}")
    columns, rows, sections = (int(record[name]) for name in ("nx", "ny", "nz"))
    sizes = {"x": columns, "y": rows, "z": sections}
    steps = [_step(record, axis, size) for axis, size in sizes.items()]
    axes = (int(record["mapc"]), int(record["mapr"]), int(record["maps"]))
    group = int(record["ispg"])
    return Header(
        path=path,
        shape=(sections, rows, columns),
        mode=mode,
        pixel_type=np.dtype(PIXEL_TYPES[mode]).newbyteorder(order),
        offset=HEADER_BYTES + max(0, int(record["nsymbt"])),
        pixel_size=steps[0],
        anisotropic=any(step > 0 and abs(step - steps[0]) > 0.01 * steps[0] for step in steps),
        axes=(1, 2, 3) if axes == (0, 0, 0) else axes,
        is_volume=group >= 1 and int(record["mz"]) == sections and columns == rows == sections,
    )


def _step(record: Any, axis: str, size: int) -> float:
    """Return the pixel size along one axis in A, or 0 where the header has no sensible one."""
    intervals = int(record["m" + axis]) or size
    length = float(record["cella"][axis])
    sensible = np.isfinite(length) and length > 0 and intervals > 0
    return round(length / intervals, 5) if sensible else 0.0  # the header has single precision


def read_volume(path: Path) -> Volume:
    """Read a cube whole, as float32 with axes z y x, whatever axis order the file uses.

    raises   InputError if the file is no MRC file, truncated, not a cube, or not of cubic voxels
    """
    header = read_header(path)
    sections, rows, columns = header.shape
    if not sections == rows == columns:
        raise InputError(
            f"{path} is {columns} x {rows} x {sections} (x, y, z); a volume must be a cube: "
            "cut or pad it to one box size"
        )
    if header.anisotropic:
        raise InputError(f"{path} has voxels that are not cubes; resample it first")
    if sorted(header.axes) != [1, 2, 3]:
        raise InputError(f"{path} has the impossible axis order MAPC, MAPR, MAPS = {header.axes}")
    header.require_all_bytes()
    data = np.fromfile(path, header.pixel_type, columns**3, offset=header.offset)
    stored = data.astype(np.float32).reshape(header.shape)
    # Stored axes are (MAPS, MAPR, MAPC), numbered x=1, y=2, z=3; wanted are z y x.
    place = header.axes[::-1]
    ordered = stored.transpose([place.index(axis) for axis in (3, 2, 1)])
    return Volume(np.ascontiguousarray(ordered), header.pixel_size, path)


def write_volume(path: Path, data: NDArray[np.floating[Any]], pixel_size: float) -> None:
    """Write a volume as MRC2014 float32; the same input always gives the same bytes.

    data         (n, n, n), axes z y x
    pixel_size   A
    """
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(data, dtype="<f4"))
        file.set_volume()
        file.voxel_size = pixel_size
        file.header.label = b""  # mrcfile's label carries the date
        file.header.nlabl = 0


class Stack:
    """A file of square images that are read by number.

    The first read opens the file; `close` may be called between reads. `read` and `close` may be
    called from different threads.
    """

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        sections, rows, columns = header.shape
        if rows != columns:
            raise InputError(f"{path} holds images of {columns} x {rows} pixels, not square ones")
        if header.is_volume and path.suffix.lower() not in STACK_SUFFIXES:
            raise InputError(
                f"{path} holds one volume of {columns} x {rows} x {sections}, not a stack of "
                "images; if it is a stack, give it the suffix .mrcs"
            )
        header.require_all_bytes()
        self.path = path
        self.count = sections
        self.box = columns
        self.pixel_size = header.pixel_size
        self._header = header
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def read(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Read images by zero-based number, in the order given.

        indices   (k,), may repeat; consecutive ones are fetched in one read
        returns   (k, n, n) float32
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.count):
            beyond = int(wanted.max() if wanted.max() >= self.count else wanted.min())
            raise InputError(f"{self.path} has {self.count} images; there is no image {beyond + 1}")
        images = np.empty((wanted.size, self.box, self.box), np.float32)
        with self._lock:
            for places in self._runs(wanted):
                first = int(wanted[places[0]])
                count = int(wanted[places[-1]]) - first + 1
                images[places] = self._read_run(first, count)[wanted[places] - first]
        return images

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _runs(self, wanted: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Group places in `wanted` into runs of neighbouring images, each of a bounded size."""
        if wanted.size == 0:
            return []
        order = np.argsort(wanted, kind="stable")
        longest = max(1, LARGEST_READ // self._header.image_bytes)
        starts = [0]
        for i in range(1, order.size):
            image, previous = wanted[order[i]], wanted[order[i - 1]]
            if image - previous > 1 or image - wanted[order[starts[-1]]] >= longest:
                starts.append(i)
        return np.split(order, starts[1:])

    def _read_run(self, first: int, count: int) -> NDArray[Any]:
        """Read `count` neighbouring images as stored; network disks may need several reads."""
        wanted = count * self._header.image_bytes
        offset = self._header.offset + first * self._header.image_bytes
        pieces: list[bytes] = []
        while wanted > 0:
            try:
                if self._descriptor is None:
                    self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                piece = os.pread(self._descriptor, wanted, offset)
            except OSError as error:
                raise InputError(f"{self.path} can no longer be read: {error.strerror}") from error
            if not piece:
                raise InputError(
                    f"{self.path} became shorter while it was read: byte {offset} is gone"
                )
            pieces.append(piece)
            wanted -= len(piece)
            offset += len(piece)
        pixels = np.frombuffer(b"".join(pieces), self._header.pixel_type)
        return pixels.reshape(count, self.box, self.box)
