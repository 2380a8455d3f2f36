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

from mpipar.errors import InputError
from mpipar.formats.reading import compression_of, opened, reading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

PIXEL_TYPES: Final = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
HEADER_BYTES: Final = 1024
STACK_MARK: Final = ":mrcs"  # RELION's way to say that a file is a stack whatever its suffix
STACK_SUFFIXES: Final = frozenset({".mrcs", ".st", ".ali"})
LARGEST_READ: Final = 64 * 2**20  # one pread; Linux itself stops at 2 GiB
ORDERS: Final[tuple[Literal["<", ">"], ...]] = ("<", ">")
STAMP_BYTE: Final = 212
BIG_ENDIAN_STAMP: Final = 0x11
LARGEST_MODE: Final = 101
LARGEST_SIDE: Final = 2**17  # more pixels than this along x is a wrong byte order, not an image
UNSIGNED: Final = {0: "u1", 1: "u2"}  # of modes that the standard calls signed
LARGEST_SIGNED: Final = {0: 127, 1: 32767}
IMOD_FIELDS: Final = 152  # stamp and flags, four bytes each
IMOD_STAMP: Final = 1146047817
IMOD_SIGNED: Final = 1  # a bit of IMOD's flags: the bytes of mode 0 are signed
USUAL_AXES: Final = (1, 2, 3)
OTHER_FORMATS: Final = {
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"II+\0": "a BigTIFF or EER file",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a PNG file",
    b"SIMPLE": "a FITS file",
}


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
    notes: tuple[str, ...]  # what is unusual, and how it is read

    @property
    def image_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.pixel_type.itemsize

    @property
    def all_bytes(self) -> int:
        """How long the file must be."""
        return self.offset + self.shape[0] * self.image_bytes

    def require_all_bytes(self, found: int) -> None:
        """Raise InputError if the file, of `found` bytes, is shorter than its header promises."""
        if found < self.all_bytes:
            whole = max(0, found - self.offset) // self.image_bytes
            raise InputError(
                f"{self.path} is truncated: its header promises {self.shape[0]} sections of "
                f"{self.shape[2]} x {self.shape[1]} pixels, {self.all_bytes} bytes in all, but the "
                f"file has {found} bytes: {whole} whole sections; copy or extract it again"
            )


@dataclass(frozen=True, slots=True)
class Volume:
    """A cube of density."""

    data: NDArray[np.float32]  # (n, n, n), axes z y x
    pixel_size: float  # A; 0 where the header does not say
    path: Path
    notes: tuple[str, ...] = ()  # what is unusual in the header, and how it is read


def read_header(path: Path) -> Header:
    """Read the header of an MRC file that is not compressed.

    raises   InputError if it is not one, MissingInputError if it cannot be read
    """
    with reading(path), path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    return _header_of(path, raw)


def _header_of(path: Path, raw: bytes) -> Header:
    """Return what the first bytes of a file say."""
    if found := compression_of(raw):
        raise InputError(
            f"{path} is compressed with {found[0]}, and images are read one by one from any place "
            f"of their file: decompress it first ({found[1]}), and correct rlnImageName"
        )
    if len(raw) < HEADER_BYTES:
        raise InputError(
            f"{path} is not an MRC file: it has {len(raw)} bytes, a header alone {HEADER_BYTES}"
        )
    records: list[tuple[Literal["<", ">"], Any]] = []
    for order in ORDERS if raw[STAMP_BYTE] != BIG_ENDIAN_STAMP else ORDERS[::-1]:
        record = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        # Stamps are often wrong or missing; sizes, mode and axes tell the order beyond doubt.
        sizes = [int(record[name]) for name in ("nx", "ny", "nz")]
        if min(sizes) > 0 and sizes[0] < LARGEST_SIDE and 0 <= record["mode"] <= LARGEST_MODE:
            records.append((order, record))
    records.sort(key=lambda pair: sorted(_axes(pair[1])) != [1, 2, 3])
    if records:
        order, record = records[0]
        return _interpret(path, raw, record, order)
    kind = next((kind for magic, kind in OTHER_FORMATS.items() if raw.startswith(magic)), None)
    what = f"it is {kind}; convert it" if kind else "its header holds no sensible size and mode"
    raise InputError(f"{path} is not an MRC file: {what}")


def _axes(record: Any) -> tuple[int, int, int]:
    """Return MAPC, MAPR, MAPS; the usual order where the header leaves them empty."""
    axes = (int(record["mapc"]), int(record["mapr"]), int(record["maps"]))
    return USUAL_AXES if axes == (0, 0, 0) else axes


def _unsigned(
    raw: bytes, record: Any, order: Literal["<", ">"], mode: int
) -> tuple[bool, tuple[str, ...]]:
    """Whether the integers of a file have no sign, and a note if only its statistics say so.

    The rule is IMOD's: its own stamp and flags, else the smallest and largest value. No signed
    integer has such a largest value.
    """
    if mode not in UNSIGNED:
        return False, ()
    stamp, flags = np.frombuffer(raw, f"{order}i4", 2, offset=IMOD_FIELDS).tolist()
    if stamp == IMOD_STAMP and mode == 0:
        return not flags & IMOD_SIGNED, ()
    low, high, most = float(record["dmin"]), float(record["dmax"]), LARGEST_SIGNED[mode]
    if not most < high <= 2 * most + 1 or (low < 0 and -low > high - (most + 1)):
        return False, ()  # statistics beyond both ranges are those of other pixels
    return True, (f"its integers are read as unsigned ones: its header has values above {most}",)


def _interpret(path: Path, raw: bytes, record: Any, order: Literal["<", ">"]) -> Header:
    mode = int(record["mode"])
    if mode not in PIXEL_TYPES:
        known = ", ".join(f"{m} ({np.dtype(t).name})" for m, t in PIXEL_TYPES.items())
        raise InputError(f"{path} has MRC mode {mode}; the modes that can be read are {known}")
    columns, rows, sections = (int(record[name]) for name in ("nx", "ny", "nz"))
    sizes = {"x": columns, "y": rows, "z": sections}
    steps = [_step(record, axis, size) for axis, size in sizes.items()]
    group = int(record["ispg"])
    unsigned, notes = _unsigned(raw, record, order, mode)
    kind = UNSIGNED[mode] if unsigned else PIXEL_TYPES[mode]
    return Header(
        path=path,
        shape=(sections, rows, columns),
        mode=mode,
        pixel_type=np.dtype(kind).newbyteorder(order),
        offset=HEADER_BYTES + max(0, int(record["nsymbt"])),
        pixel_size=steps[0],
        anisotropic=any(step > 0 and abs(step - steps[0]) > 0.01 * steps[0] for step in steps),
        axes=_axes(record),
        is_volume=group >= 1 and int(record["mz"]) == sections and columns == rows == sections,
        notes=notes,
    )


def _step(record: Any, axis: str, size: int) -> float:
    """Return the pixel size along one axis in A, or 0 where the header has no sensible one."""
    intervals = int(record["m" + axis]) or size
    length = float(record["cella"][axis])
    sensible = np.isfinite(length) and length > 0 and intervals > 0
    return round(length / intervals, 5) if sensible else 0.0  # the header has single precision


def read_volume(path: Path) -> Volume:
    """Read a cube whole, as float32 with axes z y x, whatever axis order the file uses.

    The file may be compressed with gzip, bzip2 or xz, as databases give it.

    raises   InputError if the file is no MRC file, truncated, not a cube, or not of cubic voxels
    """
    with opened(path) as file:
        header = _header_of(path, file.read(HEADER_BYTES))
        _require_cube(header)
        if file.seekable():
            file.seek(header.offset)
        else:
            _read_all(file, header.offset - HEADER_BYTES)
        data = _read_all(file, header.shape[0] * header.image_bytes)
    header.require_all_bytes(header.offset + len(data))
    pixels = np.frombuffer(data, header.pixel_type).reshape(header.shape)
    stored = pixels.astype(np.float32)
    # Stored axes are (MAPS, MAPR, MAPC), numbered x=1, y=2, z=3; wanted are z y x.
    place = header.axes[::-1]
    ordered = stored.transpose([place.index(axis) for axis in (3, 2, 1)])
    notes = tuple(f"{path}: {note}" for note in header.notes)
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
        raise InputError(f"{path} has voxels that are not cubes; resample it first")
    if sorted(header.axes) != [1, 2, 3]:
        raise InputError(f"{path} has the impossible axis order MAPC, MAPR, MAPS = {header.axes}")


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
            header.require_all_bytes(path.stat().st_size)
        self.path = path
        self.count = sections
        self.box = columns
        self.pixel_size = header.pixel_size
        self.notes = header.notes + turn_notes
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
        images = pixels.reshape(count, self.box, self.box)
        return images.transpose(0, 2, 1) if self.turned else images


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
        for note in stack.notes:
            named.setdefault(note, []).append(stack.path)
    return [
        f"{paths[0]}{f' and {len(paths) - 1} more stacks' if len(paths) > 1 else ''}: {note}"
        for note, paths in named.items()
    ]
