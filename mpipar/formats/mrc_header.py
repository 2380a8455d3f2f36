"""The header of an MRC file: sizes, kind of pixels, axes, byte order, and what is odd about it.

The header is read with mrcfile's own record layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from mpipar.errors import InputError
from mpipar.formats.kinds import kind_of, text_of_kind
from mpipar.formats.reading import compression_of, reading
from mpipar.formats.signs import UNSIGNED, unsigned_by_header, unsigned_by_values

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PIXEL_TYPES: Final = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
OTHER_MODES: Final = {
    3: "complex integers, which are a Fourier transform",
    4: "complex numbers, which are a Fourier transform",
    16: "colours",
    101: "two pixels of 4 bits in a byte",
}
HEADER_BYTES: Final = 1024
MRC_SUFFIXES: Final = frozenset({".mrc", ".mrcs", ".map", ".st", ".ali"})
ORDERS: Final[tuple[Literal["<", ">"], ...]] = ("<", ">")
MAP, MAP_PLACE = b"MAP", 208
STAMP_BYTE: Final = 212
BIG_ENDIAN_STAMP: Final = 0x11
LARGEST_MODE: Final = 101
LARGEST_SIDE: Final = 2**17  # more pixels than this along x is a wrong byte order, not an image
USUAL_AXES: Final = (1, 2, 3)
RIGHT_ANGLE: Final = 90.0
SKEWED: Final = 0.5  # degrees


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
    sign_told: bool  # whether the header says if its integers have a sign
    raw: bytes
    notes: tuple[str, ...]  # what is unusual, and how it is read
    sign_doubt: str = ""  # said if neither header nor pixels tell whether integers have a sign

    @property
    def image_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.pixel_type.itemsize

    @property
    def all_bytes(self) -> int:
        """How long the file must be."""
        return self.offset + self.shape[0] * self.image_bytes

    def require_all_bytes(self, found: int) -> None:
        """Raise InputError if the file, of `found` bytes, is shorter than its header promises."""
        if found < self.offset > HEADER_BYTES:
            raise InputError(
                f"{self.path} is truncated, or its header is damaged: its extended header alone "
                f"has {self.offset - HEADER_BYTES} bytes, but the file has {found}"
            )
        if found < self.all_bytes:
            whole = max(0, found - self.offset) // self.image_bytes
            raise InputError(
                f"{self.path} is truncated: its header promises {self.shape[0]} sections of "
                f"{self.shape[2]} x {self.shape[1]} pixels, {self.all_bytes} bytes in all, but the "
                f"file has {found} bytes: {whole} whole sections; copy or extract it again"
            )

    def with_sign(self, values: NDArray[Any]) -> Header:
        """Return the header with the sign of integers that some of the pixels, `values`, tell."""
        if self.sign_told:
            return self
        kind = np.dtype(UNSIGNED[self.mode])
        unsigned, note = unsigned_by_values(values.astype(kind.newbyteorder("=")))
        if unsigned is None:
            return replace(self, sign_told=True, sign_doubt=note)
        pixel_type = kind.newbyteorder(self.pixel_type.byteorder) if unsigned else self.pixel_type
        usual = self.mode == 1 and not unsigned  # nobody reads those in another way
        notes = (*self.notes, note) if note and not usual else self.notes
        return replace(self, pixel_type=pixel_type, sign_told=True, notes=notes)


def read_header(path: Path) -> Header:
    """Read the header of an MRC file that is not compressed.

    raises   InputError if it is not one, MissingInputError if it cannot be read
    """
    with reading(path), path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if found := compression_of(raw):
        raise InputError(
            f"{path} is compressed with {found[0]}, and images are read one by one from any place "
            f"of their file: decompress it first ({found[1]}), and correct rlnImageName"
        )
    return header_of(path, raw)


def header_of(path: Path, raw: bytes) -> Header:
    """Return what the first bytes of a file say."""
    if len(raw) < HEADER_BYTES:
        whole = raw[MAP_PLACE:].startswith(MAP)
        kind = "it is cut off" if whole else kind_of(raw, "") or text_of_kind(raw)
        raise InputError(
            f"{path} is not an MRC file: it has {len(raw)} bytes, a header alone {HEADER_BYTES}"
            + (f"; {kind}" if kind else "")
        )
    records: list[tuple[Literal["<", ">"], Any]] = []
    for order in ORDERS if raw[STAMP_BYTE] != BIG_ENDIAN_STAMP else ORDERS[::-1]:
        record = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        # Stamps are often wrong or missing; sizes, mode and axes tell the order beyond doubt.
        sizes = [int(record[name]) for name in ("nx", "ny", "nz")]
        if min(sizes) > 0 and sizes[0] < LARGEST_SIDE and 0 <= record["mode"] <= LARGEST_MODE:
            records.append((order, record))
    records.sort(key=lambda pair: sorted(axes_of(pair[1])) != [1, 2, 3])
    if records:
        order, record = records[0]
        return _interpret(path, raw, record, order)
    raise InputError(f"{path} is not an MRC file: {_what_else(path, raw)}")


def _what_else(path: Path, raw: bytes) -> str:
    """Return what a file is whose first bytes are no MRC header, as a clause."""
    if raw[MAP_PLACE:].startswith(MAP):
        order = ">" if raw[STAMP_BYTE] == BIG_ENDIAN_STAMP else "<"
        columns, rows, sections, mode = np.frombuffer(raw, f"{order}i4", 4).tolist()
        return (
            f"its header holds no sensible size and mode: {columns} x {rows} x {sections} pixels "
            f"of mode {mode}"
        )
    suffix = "" if path.suffix.lower() in MRC_SUFFIXES else path.suffix
    return kind_of(raw, suffix) or text_of_kind(raw) or "its header holds no sensible size and mode"


def axes_of(record: Any) -> tuple[int, int, int]:
    """Return MAPC, MAPR, MAPS; the usual order where the header leaves them empty."""
    axes = (int(record["mapc"]), int(record["mapr"]), int(record["maps"]))
    return USUAL_AXES if axes == (0, 0, 0) else axes


def _interpret(path: Path, raw: bytes, record: Any, order: Literal["<", ">"]) -> Header:
    mode = int(record["mode"])
    _require_mode(path, mode)
    columns, rows, sections = (int(record[name]) for name in ("nx", "ny", "nz"))
    sizes = {"x": columns, "y": rows, "z": sections}
    steps = [_step(record, axis, size) for axis, size in sizes.items()]
    uneven = any(step > 0 and abs(step - steps[0]) > 0.01 * steps[0] for step in steps)
    group, extended = int(record["ispg"]), int(record["nsymbt"])
    unsigned, notes = unsigned_by_header(raw, record, order, mode)
    if extended < 0:
        notes = (*notes, f"its extended header has the impossible size {extended}: 0 is taken")
    kind = UNSIGNED[mode] if unsigned and mode in UNSIGNED else PIXEL_TYPES[mode]
    return Header(
        path=path,
        shape=(sections, rows, columns),
        mode=mode,
        pixel_type=np.dtype(kind).newbyteorder(order),
        offset=HEADER_BYTES + max(0, extended),
        pixel_size=steps[0],
        anisotropic=uneven or _is_skewed(record),
        axes=axes_of(record),
        is_volume=group >= 1 and int(record["mz"]) == sections and columns == rows == sections,
        sign_told=unsigned is not None,
        raw=raw,
        notes=notes,
    )


def _require_mode(path: Path, mode: int) -> None:
    if mode in PIXEL_TYPES:
        return
    known = ", ".join(f"{m} ({np.dtype(t).name})" for m, t in PIXEL_TYPES.items())
    meant = f"; mode {mode} holds {OTHER_MODES[mode]}" if mode in OTHER_MODES else ""
    raise InputError(
        f"{path} has MRC mode {mode}; the modes that can be read are {known}{meant}: convert it to "
        "mode 2"
    )


def _is_skewed(record: Any) -> bool:
    """Whether the cell has angles that are not right; many programs leave them 0."""
    angles = [float(record["cellb"][axis]) for axis in ("alpha", "beta", "gamma")]
    return all(0 < angle < 2 * RIGHT_ANGLE for angle in angles) and any(
        abs(angle - RIGHT_ANGLE) > SKEWED for angle in angles
    )


def _step(record: Any, axis: str, size: int) -> float:
    """Return the pixel size along one axis in A, or 0 where the header has no sensible one."""
    intervals = int(record["m" + axis]) or size
    length = float(record["cella"][axis])
    sensible = np.isfinite(length) and length > 0 and intervals > 0
    return round(length / intervals, 5) if sensible else 0.0  # the header has single precision
