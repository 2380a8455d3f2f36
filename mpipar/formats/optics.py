"""The microscope in a particle STAR file: optics groups, pixel size and CTF columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from mpipar.errors import InputError
from mpipar.formats.mrc import Stack
from mpipar.formats.tables import format_numbers, integers, numbers, other_capitals, row_list

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MICROSCOPE_COLUMNS: Final = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PIXEL_COLUMNS: Final = ("rlnImagePixelSize", "rlnPixelSize")
# Columns of 3.0 tables that 3.1 keeps in the optics table.
MOVED_COLUMNS: Final = (
    *MICROSCOPE_COLUMNS,
    *PIXEL_COLUMNS,
    "rlnDetectorPixelSize",
    "rlnMagnification",
    "rlnImageSize",
    "rlnImageDimensionality",
)
USUAL_AMPLITUDE_CONTRAST: Final = 0.1
PIXEL_SIZES: Final = (0.05, 200.0)  # A; beyond these it is another unit, or not set
PIXEL_TOLERANCE: Final = 1e-3  # relative; what rounding in STAR files amounts to
REFUSED_FLAGS: Final = {
    "rlnCtfDataAreCtfPremultiplied": "images multiplied by their CTF",
    "rlnCtfDataArePhaseFlipped": "images with flipped phases",
}
UNIT_MATRIX: Final = {
    "rlnMagMat00": 1.0,
    "rlnMagMat01": 0.0,
    "rlnMagMat10": 0.0,
    "rlnMagMat11": 1.0,
}
IGNORED_IF_NOT_ZERO: Final = {
    "rlnBeamTiltX": "beam tilt",
    "rlnBeamTiltY": "beam tilt",
    "rlnOddZernike": "odd aberrations",
    "rlnEvenZernike": "even aberrations",
}
IGNORED: Final = ("rlnHelical", "rlnCtfImage")
ROUNDING: Final = 1e-6  # of matrices in STAR files
FLAT: Final = 2  # rlnImageDimensionality of images


@dataclass(frozen=True)
class Optics:
    """The microscope of each particle, and the optics table as RELION 3.1 has it."""

    table: pd.DataFrame
    group: NDArray[np.int32]  # (p,)
    voltage: NDArray[np.float64]  # (p,) kV
    spherical_aberration: NDArray[np.float64]  # (p,) mm
    amplitude_contrast: NDArray[np.float64]  # (p,)
    pixel_size: float  # A

    def first_rows(self) -> list[int]:
        """Return the first particle of each group, in the order of the table."""
        numbers_used, rows = np.unique(self.group, return_index=True)
        first = dict(zip(numbers_used.tolist(), rows.tolist(), strict=True))
        return [first[int(number)] for number in self.table["rlnOpticsGroup"].astype(float)]


def read_optics(
    path: Path,
    table: pd.DataFrame,
    groups: pd.DataFrame | None,
    pixel_size: float | None,
    warnings: list[str],
) -> Optics:
    """Read the microscope from an optics table, or from the columns of a 3.0 file.

    path         the STAR file, for messages
    table        of particles
    groups       the optics table; None: a 3.0 file
    pixel_size   A; overrides the file's own where given
    warnings     gets what was assumed
    raises       InputError
    """
    if groups is None:
        group, groups = _groups_of_old_file(path, table, pixel_size, warnings)
    else:
        group = _group_of_particles(path, table, groups, warnings)
        # Selections leave groups without particles behind; those do not matter.
        used = groups[np.isin(_group_numbers(path, groups), group)].reset_index(drop=True)
        groups = _complete_groups(path, used, table, pixel_size, warnings)
    _refuse_other_data(path, groups, table)
    size = _common_pixel_size(path, groups, warnings, pixel_size)
    groups["rlnImagePixelSize"] = format_numbers(np.full(len(groups), size))
    row_of = dict(zip(_group_numbers(path, groups).tolist(), range(len(groups)), strict=True))
    rows = np.array([row_of[number] for number in group.tolist()])
    microscope = [_in_bounds(path, groups, label)[rows] for label in MICROSCOPE_COLUMNS]
    warnings += _disagreements(table, dict(zip(MICROSCOPE_COLUMNS, microscope, strict=True)))
    voltage, aberration, contrast = microscope
    return Optics(groups, group, voltage, aberration, contrast, size)


def _disagreements(table: pd.DataFrame, used: dict[str, NDArray[np.float64]]) -> list[str]:
    """Return a note for each column of the particles that says other than their optics groups."""
    notes = []
    for label, values in used.items():
        if label not in table.columns:
            continue
        own = pd.to_numeric(table[label], errors="coerce").to_numpy(np.float64)
        other = np.flatnonzero(~(np.abs(own - values) <= ROUNDING))
        if other.size:
            notes.append(
                f"{label} is {table[label].iloc[other[0]]} in the table of particles (rows "
                f"{row_list(other)}), but {values[other[0]]:g} in data_optics, which is used"
            )
    return notes


def _group_numbers(path: Path, groups: pd.DataFrame) -> NDArray[np.int64]:
    if "rlnOpticsGroup" not in groups.columns:
        groups["rlnOpticsGroup"] = [str(row + 1) for row in range(len(groups))]
    values = integers(groups, "rlnOpticsGroup", path, "optics group")
    if np.unique(values).size < values.size:
        raise InputError(
            f"{path}: data_optics lists the same rlnOpticsGroup twice: {values.tolist()}"
        )
    return values


def _group_of_particles(
    path: Path, table: pd.DataFrame, groups: pd.DataFrame, warnings: list[str]
) -> NDArray[np.int32]:
    """Return the group number of each particle, checked to be in the optics table."""
    if groups.empty:
        raise InputError(f"{path}: data_optics is empty; it must have one row per optics group")
    known = _group_numbers(path, groups)
    if "rlnOpticsGroup" not in table.columns:
        if len(groups) > 1:
            raise InputError(
                f"{path}: the particles have no rlnOpticsGroup, but data_optics lists "
                f"{len(groups)} groups"
            )
        warnings.append("the particles have no rlnOpticsGroup: all belong to the only one listed")
        return np.full(len(table), known[0], np.int32)
    group = integers(table, "rlnOpticsGroup", path, "particle").astype(np.int32)
    unknown = np.flatnonzero(~np.isin(group, known))
    if unknown.size:
        raise InputError(
            f"{path}: particle {unknown[0] + 1} is of optics group {group[unknown[0]]}, but "
            f"data_optics lists only {known.tolist()} ({unknown.size} such particles)"
        )
    return group


def _complete_groups(
    path: Path,
    groups: pd.DataFrame,
    table: pd.DataFrame,
    pixel_size: float | None,
    warnings: list[str],
) -> pd.DataFrame:
    """Fill what other programs leave out of the optics table, or raise InputError."""
    for label in (*MICROSCOPE_COLUMNS, *PIXEL_COLUMNS):
        # Some converters leave a quantity with the particles.
        if label not in groups.columns and label in table.columns and table[label].nunique() == 1:
            groups[label] = table[label].iloc[0]
    _require_microscope(path, groups, "data_optics", pixel_size)
    _assume_contrast(groups, warnings)
    if "rlnOpticsGroupName" not in groups.columns:
        groups["rlnOpticsGroupName"] = [f"opticsGroup{row + 1}" for row in range(len(groups))]
    return groups


def _groups_of_old_file(
    path: Path, table: pd.DataFrame, pixel_size: float | None, warnings: list[str]
) -> tuple[NDArray[np.int32], pd.DataFrame]:
    """Make optics groups of a 3.0 file: particles alike in voltage, Cs, contrast, pixel size."""
    _require_microscope(path, table, "the table of particles", pixel_size)
    columns = {
        label: numbers(table, label, path, "particle")
        for label in MICROSCOPE_COLUMNS
        if label in table.columns
    }
    try:
        columns["rlnImagePixelSize"] = _old_pixel_size(path, table, pixel_size)
    except InputError:
        if pixel_size is None:
            raise
        warnings.append(
            f"the pixel size {pixel_size:g} A of --apix is used; that of the file cannot be read"
        )
        columns["rlnImagePixelSize"] = np.full(len(table), pixel_size)
    alike = pd.DataFrame(columns).round(6).groupby(list(columns), sort=False)
    group = alike.ngroup().to_numpy(np.int32) + np.int32(1)
    first = np.unique(group, return_index=True)[1]
    groups = pd.DataFrame(
        {
            "rlnOpticsGroupName": [f"opticsGroup{row + 1}" for row in range(first.size)],
            "rlnOpticsGroup": [str(row + 1) for row in range(first.size)],
            **{label: format_numbers(values[first]) for label, values in columns.items()},
        },
        dtype=object,
    )
    _assume_contrast(groups, warnings)
    return group, groups


def _require_microscope(
    path: Path, table: pd.DataFrame, where: str, pixel_size: float | None
) -> None:
    """Raise InputError that lists all columns that are missing and those that were found."""
    have = set(table.columns)
    missing = [label for label in MICROSCOPE_COLUMNS[:2] if label not in have]
    sized = have & set(PIXEL_COLUMNS) or {"rlnDetectorPixelSize", "rlnMagnification"} <= have
    if not sized and pixel_size is None:
        missing.append(
            "rlnImagePixelSize (or rlnPixelSize, or rlnDetectorPixelSize with rlnMagnification, "
            "or --apix)"
        )
    if missing:
        raise InputError(
            f"{path}: {where} lacks {', '.join(missing)}{other_capitals(table, missing)}; found "
            f"{', '.join(table.columns)}"
        )


def _assume_contrast(groups: pd.DataFrame, warnings: list[str]) -> None:
    if "rlnAmplitudeContrast" not in groups.columns:
        groups["rlnAmplitudeContrast"] = f"{USUAL_AMPLITUDE_CONTRAST:.6f}"
        warnings.append(
            f"rlnAmplitudeContrast is not in the file: {USUAL_AMPLITUDE_CONTRAST:g} is assumed"
        )


def _old_pixel_size(
    path: Path, table: pd.DataFrame, pixel_size: float | None
) -> NDArray[np.float64]:
    """Return the pixel size of each particle of a 3.0 file; detector pixels are in micrometres."""
    for label in PIXEL_COLUMNS:
        if label in table.columns:
            return numbers(table, label, path, "particle")
    if not {"rlnDetectorPixelSize", "rlnMagnification"} <= set(table.columns):
        return np.full(len(table), pixel_size, np.float64)
    detector = numbers(table, "rlnDetectorPixelSize", path, "particle")
    magnification = numbers(table, "rlnMagnification", path, "particle")
    bad = np.flatnonzero(magnification <= 0)
    if bad.size:
        raise InputError(
            f"{path}: particle {bad[0] + 1} has rlnMagnification = {magnification[bad[0]]:g}; "
            "correct it, or give the pixel size with --apix"
        )
    return detector * 1e4 / magnification


def _common_pixel_size(
    path: Path, groups: pd.DataFrame, warnings: list[str], pixel_size: float | None
) -> float:
    """Return the pixel size of all groups; the user's own wins, with a warning if it differs."""
    label = next((label for label in PIXEL_COLUMNS if label in groups.columns), None)
    if label is None:
        assert pixel_size is not None  # _require_microscope made sure of one of the two
        return pixel_size
    if pixel_size is not None:
        found = pd.to_numeric(groups[label], errors="coerce").to_numpy(np.float64)
        if not np.abs(found - pixel_size).max() <= PIXEL_TOLERANCE * pixel_size:
            said = f"{found[0]:g}" if np.isfinite(found[0]) else str(groups[label].iloc[0])
            warnings.append(
                f"the pixel size {pixel_size:g} A of --apix is used; the file says {said} A"
            )
        return pixel_size
    sizes = numbers(groups, label, path, "optics group")
    lowest, highest = PIXEL_SIZES
    wrong = np.flatnonzero((sizes < lowest) | (sizes > highest))
    if wrong.size:
        raise InputError(
            f"{path}: optics group {group_names(groups)[wrong[0]]} has {label} = "
            f"{sizes[wrong[0]]:g}; give the pixel size with --apix, or correct it: it must lie "
            f"between {lowest:g} and {highest:g} A"
        )
    if np.ptp(sizes) > PIXEL_TOLERANCE * sizes[0]:
        each = ", ".join(
            f"{name} {size:g} A" for name, size in zip(group_names(groups), sizes, strict=True)
        )
        raise InputError(
            f"{path}: optics groups differ in pixel size ({each}); extract the particles "
            "again at one pixel size, or refine the groups apart"
        )
    return float(sizes[0])


def group_names(groups: pd.DataFrame) -> list[str]:
    """Return the name of each optics group for messages."""
    names = groups["rlnOpticsGroupName"].tolist()
    return [
        f"{number} ({name})" for number, name in zip(groups["rlnOpticsGroup"], names, strict=True)
    ]


def _in_bounds(path: Path, groups: pd.DataFrame, label: str) -> NDArray[np.float64]:
    """Return a microscope column of the optics table; InputError for impossible values."""
    lowest, highest, unit = {
        "rlnVoltage": (1.0, 5000.0, "kV"),
        "rlnSphericalAberration": (0.0, 100.0, "mm"),
        "rlnAmplitudeContrast": (-1.0, 1.0, "(a fraction)"),
    }[label]
    values = numbers(groups, label, path, "optics group")
    wrong = np.flatnonzero((values < lowest) | (values > highest))
    if wrong.size:
        raise InputError(
            f"{path}: optics group {group_names(groups)[wrong[0]]} has {label} = "
            f"{values[wrong[0]]:g} {unit}; it must lie between {lowest:g} and {highest:g}"
        )
    return values


def _refuse_other_data(path: Path, groups: pd.DataFrame, table: pd.DataFrame) -> None:
    for label, what in REFUSED_FLAGS.items():
        for place in (groups, table):
            if label in place.columns and numbers(place, label, path, "row").any():
                raise InputError(
                    f"{path}: {label} = 1: {what} cannot be refined here; extract them anew "
                    "without it"
                )
    if "rlnImageDimensionality" in groups.columns:
        dimensions = numbers(groups, "rlnImageDimensionality", path, "optics group")
        if (dimensions != FLAT).any():
            raise InputError(
                f"{path}: rlnImageDimensionality is not 2: only flat images can be refined"
            )


def fill_image_size(
    groups: pd.DataFrame, stacks: Sequence[Path], path: Path, marked: frozenset[Path]
) -> None:
    """Add the image size that RELION needs to each optics group, if it is missing.

    stacks   one stack of each group, whose header tells the size
    marked   stacks that the list calls stacks, whatever their headers say
    raises   InputError if groups differ in image size
    """
    if "rlnImageSize" not in groups.columns:
        box_of = {stack: Stack(stack, marked=stack in marked).box for stack in set(stacks)}
        groups["rlnImageSize"] = [str(box_of[stack]) for stack in stacks]
    sizes = integers(groups, "rlnImageSize", path, "optics group")
    if np.ptp(sizes) > 0:
        each = ", ".join(
            f"{name} {size:g}" for name, size in zip(group_names(groups), sizes, strict=True)
        )
        raise InputError(
            f"{path}: optics groups differ in image size in pixels ({each}); extract them "
            "again at one size"
        )
    if "rlnImageDimensionality" not in groups.columns:
        groups["rlnImageDimensionality"] = "2"


def read_ctf(
    path: Path, table: pd.DataFrame, warnings: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Read the CTF columns by ParticleSet's names; a missing column gets its usual value."""
    if "rlnDefocusU" not in table.columns:
        raise InputError(
            f"{path}: the particles have no CTF: rlnDefocusU is missing; estimate it "
            f"(CtfFind, Gctf) before extraction{other_capitals(table, ['rlnDefocusU'])}; found "
            f"{', '.join(table.columns)}"
        )
    defocus = numbers(table, "rlnDefocusU", path, "particle")
    columns: dict[str, tuple[str, float | NDArray[np.float64], str]] = {
        "defocus_v": ("rlnDefocusV", defocus, "rlnDefocusU"),
        "defocus_angle": ("rlnDefocusAngle", 0.0, "0 degrees"),
        "phase_shift": ("rlnPhaseShift", 0.0, "0 degrees"),
        "b_factor": ("rlnCtfBfactor", 0.0, "0 A^2"),
        "ctf_scale": ("rlnCtfScalefactor", 1.0, "1"),
    }
    values = {"defocus_u": defocus}
    absent = []
    for name, (label, usual, text) in columns.items():
        if label in table.columns:
            values[name] = numbers(table, label, path, "particle")
        else:
            values[name] = np.zeros(len(table)) + usual
            absent.append(f"{label} = {text}")
    if absent:
        warnings.append(f"not in the file and taken as usual: {', '.join(absent)}")
    return values


def ignored_columns(table: pd.DataFrame, groups: pd.DataFrame) -> list[str]:
    """Return a warning about columns that refinement here does not use, if there are any."""
    found = []
    for label, what in IGNORED_IF_NOT_ZERO.items():
        columns = [place[label] for place in (groups, table) if label in place.columns]
        if any(_has_nonzero(cell) for column in columns for cell in column.unique()):
            found.append(f"{what} ({label})")
    for label, unit in UNIT_MATRIX.items():
        if label in groups.columns:
            values = pd.to_numeric(groups[label], errors="coerce").to_numpy(np.float64)
            if (np.abs(values - unit) > ROUNDING).any():
                found.append(f"anisotropic magnification ({label})")
    found += [label for label in table.columns if str(label).startswith(IGNORED)]
    return [f"ignored: {', '.join(found)}"] if found else []


def _has_nonzero(cell: object) -> bool:
    """Whether a number, or a vector written [a,b,c], is not zero."""
    parts = str(cell).strip("[]").split(",")
    return bool(
        (pd.to_numeric(pd.Series(parts, dtype=object), errors="coerce").fillna(0.0) != 0).any()
    )
