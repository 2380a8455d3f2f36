"""RELION's particle STAR files, 3.0 and 3.1 or later, read into and written from a ParticleSet."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from mpipar.errors import InputError, counted
from mpipar.formats.optics import (
    MOVED_COLUMNS,
    fill_image_size,
    ignored_columns,
    read_ctf,
    read_optics,
)
from mpipar.formats.particles import ParticleSet, duplicates, image_file, locate_images
from mpipar.formats.tables import (
    format_numbers,
    numbers,
    other_capitals,
    read_tables,
    row_list,
    write_tables,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

POSE_COLUMNS: Final = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGIN_COLUMNS: Final = ("rlnOriginXAngst", "rlnOriginYAngst")
PIXEL_ORIGIN_COLUMNS: Final = ("rlnOriginX", "rlnOriginY")
FOREIGN_FILES: Final = {
    ".cs": "convert the cryoSPARC file with csparc2star.py (pyem) or cs2star",
    ".lst": "convert the EMAN2 list with e2refinetorelion3.py or e2convertrelion.py",
    ".mrcs": "images alone do not say their defocus: give the STAR file that lists them",
    ".mrc": "images alone do not say their defocus: give the STAR file that lists them",
    ".hdf": "export the EMAN2 set to a STAR file",
}
TOMOGRAPHY: Final = "rlnTomo"  # how labels of subtomogram lists begin
OTHER_LISTS: Final = (
    "rlnMicrographName",
    "rlnReferenceImage",
    "rlnMicrographMovieName",
    "rlnCoordinateX",
    "rlnJobType",
    "image",  # of Xmipp
)


def read_particles(path: Path, pixel_size: float | None = None) -> ParticleSet:
    """Read and check a particle STAR file; of the images at most one header is read.

    pixel_size   A; overrides the file's own where given
    raises       InputError or MissingInputError saying what is wrong or missing and in which row
    """
    path = Path(path)
    if path.suffix.lower() in FOREIGN_FILES:
        raise InputError(f"{path} is not a STAR file; {FOREIGN_FILES[path.suffix.lower()]}")
    warnings: list[str] = []
    table, groups = _choose_tables(path, read_tables(path, warnings), warnings)
    table = _enabled(path, table, warnings)
    found = locate_images(path, table["rlnImageName"].tolist())
    warnings += _copies_note(duplicates(found.stack, found.image))
    optics = read_optics(path, table, groups, pixel_size, warnings)
    first = [found.stacks[found.stack[row]] for row in optics.first_rows()]
    fill_image_size(optics.table, first, path, found.marked)
    ctf = read_ctf(path, table, warnings)
    warnings += ignored_columns(table, optics.table)
    origins = _read_origins(path, table, optics.pixel_size, warnings)
    return ParticleSet(
        path=path.absolute(),
        count=len(table),
        stacks=found.stacks,
        stack=found.stack,
        slice=found.image,
        marked=found.marked,
        unnumbered=found.unnumbered,
        voltage=optics.voltage,
        spherical_aberration=optics.spherical_aberration,
        amplitude_contrast=optics.amplitude_contrast,
        **ctf,
        pixel_size=optics.pixel_size,
        optics_group=optics.group,
        half=_read_half(path, table, warnings),
        angles=_read_columns(path, table, POSE_COLUMNS),
        origins=origins,
        table=table,
        optics=optics.table,
        warnings=tuple(warnings),
    )


def _copies_note(again: NDArray[np.int64]) -> list[str]:
    """Return a note if rows, `again`, name an image that an earlier row has named."""
    if not again.size:
        return []
    note = (
        f"{again.size} particles name an image that stands in the list already (rows "
        f"{row_list(again)}): it counts twice; all copies of an image are put into one half set"
    )
    return [note]


def _choose_tables(
    path: Path, tables: Mapping[str, pd.DataFrame], warnings: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return the table of particles, and the optics table; None for a 3.0 file."""
    _refuse_tomography(path, tables)
    listing = {name: table for name, table in tables.items() if "rlnImageName" in table.columns}
    if len(listing) > 1 and "particles" in listing:
        others = ", ".join(f"data_{name}" for name in listing if name != "particles")
        warnings.append(f"images are listed in {others} too: only data_particles is read")
        listing = {"particles": listing["particles"]}
    found = _contents(tables)
    if not listing:
        raise InputError(
            f"{path} has no rlnImageName, so it lists no particles{_likely_kind(tables)}; found "
            f"{found}"
        )
    if len(listing) > 1:
        raise InputError(f"{path} has more than one table of particles; found {found}")
    table = next(iter(listing.values()))
    if table.empty:
        raise InputError(f"{path} lists no particles: its table has column labels but no rows")
    return table, _optics_table(tables)


def _optics_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Return the table of optics groups, whatever other tables its block has."""
    of_block = [table for name, table in tables.items() if name.split(" (")[0] == "optics"]
    with_groups = [table for table in of_block if "rlnOpticsGroup" in table.columns]
    return next(iter([*with_groups, *of_block]), None)


def _likely_kind(tables: Mapping[str, pd.DataFrame]) -> str:
    """Return what a list without images may be, in brackets; '' if that is unknown."""
    columns = {str(label) for table in tables.values() for label in table.columns}
    if any(label.startswith("atom_site") for label in columns):
        return " (it is an atomic model)"
    for table in tables.values():
        if capitals := other_capitals(table, ["rlnImageName"]):
            return capitals
    kind = next((label for label in OTHER_LISTS if label in columns), None)
    return f" (it looks like a list of another kind: it has {kind})" if kind else ""


def _contents(tables: Mapping[str, pd.DataFrame], most: int = 3, most_columns: int = 30) -> str:
    """Return what tables a file has, for messages: the first ones, and how many more."""
    parts = []
    for name, table in itertools.islice(tables.items(), most):
        labels = [str(label) for label in table.columns]
        more = f" and {len(labels) - most_columns} more" * (len(labels) > most_columns)
        shown = ", ".join(labels[:most_columns]) or "(none)"
        parts.append(f"data_{name} with {counted(len(table), 'row')} and the columns {shown}{more}")
    more = f"; and {len(tables) - most} more tables" * (len(tables) > most)
    return "; ".join(parts) + more


def _refuse_tomography(path: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise InputError for a list of subtomograms, whose images are tilt series or volumes."""
    labels = (str(label) for table in tables.values() for label in table.columns)
    found = next((label for label in labels if label.startswith(TOMOGRAPHY)), None)
    if found is not None:
        raise InputError(
            f"{path} is a list of tomography: it has {found}; mpipar refines images of single "
            "particles, one projection each"
        )


def _enabled(path: Path, table: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """Return the rows that are not switched off by rlnEnabled, as Xmipp and Scipion do it."""
    if "rlnEnabled" not in table.columns:
        return table
    off = numbers(table, "rlnEnabled", path, "particle") <= 0
    if off.all():
        raise InputError(
            f"{path} switches all {off.size} particles off: rlnEnabled is never above 0; set it "
            "to 1, or remove the column"
        )
    if off.any():
        warnings.append(
            f"left out: {counted(int(off.sum()), 'particle')}, whose rlnEnabled is 0 or less (rows "
            f"{row_list(np.flatnonzero(off))}); other messages count rows without them"
        )
    enabled: pd.DataFrame = table[~off].reset_index(drop=True)
    return enabled


def _read_columns(
    path: Path, table: pd.DataFrame, labels: Sequence[str]
) -> NDArray[np.float64] | None:
    """Return columns side by side, (p, k); None unless all are there."""
    if not set(labels) <= set(table.columns):
        return None
    return np.stack([numbers(table, label, path, "particle") for label in labels], axis=1)


def _read_origins(
    path: Path, table: pd.DataFrame, pixel_size: float, warnings: list[str]
) -> NDArray[np.float64] | None:
    """Return origins in A, from the columns of 3.1 or of 3.0 files."""
    for pair in (ORIGIN_COLUMNS, PIXEL_ORIGIN_COLUMNS):
        found = [label for label in pair if label in table.columns]
        if len(found) == 1:
            warnings.append(f"{found[0]} is ignored, because {' and '.join(pair)} belong together")
    origins = _read_columns(path, table, ORIGIN_COLUMNS)
    if origins is None:
        pixels = _read_columns(path, table, PIXEL_ORIGIN_COLUMNS)
        origins = None if pixels is None else pixels * pixel_size
    return origins


def _read_half(path: Path, table: pd.DataFrame, warnings: list[str]) -> NDArray[np.int8]:
    """Return half sets 1 and 2; all 0 where the file does not divide the particles."""
    if "rlnRandomSubset" not in table.columns:
        return np.zeros(len(table), np.int8)
    values = numbers(table, "rlnRandomSubset", path, "particle")
    wrong = np.flatnonzero((values != 1) & (values != 2))  # noqa: PLR2004 - the half sets
    if wrong.size:
        raise InputError(
            f"{path}: particle {wrong[0] + 1} has rlnRandomSubset = {values[wrong[0]]:g}; only 1 "
            f"and 2 are half sets ({wrong.size} such rows); remove the column to have them drawn"
        )
    if (values == values[0]).all():
        warnings.append(
            f"rlnRandomSubset is {values[0]:g} for all particles, which makes no half sets: it is "
            "ignored and half sets are drawn anew"
        )
        return np.zeros(len(table), np.int8)
    return values.astype(np.int8)


def write_particles(
    path: Path,
    particles: ParticleSet,
    *,
    angles: NDArray[np.float64],
    origins: NDArray[np.float64],
    half: NDArray[np.integer[Any]],
    extra: Mapping[str, Sequence[str] | NDArray[Any]] | None = None,
) -> None:
    """Write particles with new poses as a RELION 3.1 STAR file, always with the same bytes.

    angles    (p, 3) degrees: rot tilt psi
    origins   (p, 2) A
    half      (p,) 1 or 2
    extra     further columns by label, (p,) each; they replace the file's own
    """
    poses = pose_columns(angles, origins, half)
    table = with_columns(listed_particles(particles), {**poses, **(extra or {})})
    write_tables(path, {"optics": particles.optics, "particles": table})


def listed_particles(particles: ParticleSet) -> pd.DataFrame:
    """Return the list as text, with absolute image names, without what is not written back."""
    dropped = {*PIXEL_ORIGIN_COLUMNS, *MOVED_COLUMNS} & {*particles.table.columns}
    stacks = [image_file(stack) for stack in particles.stacks]
    pairs = zip(particles.slice.tolist(), particles.stack.tolist(), strict=True)
    names = [f"{image + 1:06d}@{stacks[stack]}" for image, stack in pairs]
    return with_columns(
        particles.table.drop(columns=list(dropped)),
        {"rlnImageName": names, "rlnOpticsGroup": particles.optics_group},
    )


def pose_columns(
    angles: NDArray[np.float64], origins: NDArray[np.float64], half: NDArray[np.integer[Any]]
) -> dict[str, NDArray[Any]]:
    """Return RELION's columns of poses by label, (p,) each; arguments as of `write_particles`."""
    return {
        **dict(zip(POSE_COLUMNS, angles.T, strict=True)),
        **dict(zip(ORIGIN_COLUMNS, origins.T, strict=True)),
        "rlnRandomSubset": half,
    }


def with_columns(
    table: pd.DataFrame, columns: Mapping[str, Sequence[Any] | NDArray[Any]]
) -> pd.DataFrame:
    """Return a table of text with columns, (p,) each, added or in the place of its own."""
    texts = {
        # as objects: pandas' own texts must be UTF-8, which names of files need not be
        label: pd.Series(_texts(values, len(table), label), dtype=object)
        for label, values in columns.items()
    }
    assigned: pd.DataFrame = table.assign(**texts)
    return assigned


def _texts(values: Sequence[Any] | NDArray[Any], count: int, label: str) -> list[str]:
    """Return a column as text: fixed decimals for floats, plain digits for integers."""
    if len(values) != count:
        raise ValueError(f"{label} has {len(values)} values for {count} particles")
    array = np.asarray(values)
    if array.dtype.kind == "f":
        return format_numbers(array)
    return [str(value) for value in array.tolist()]
