"""Makers of small particle inputs: MRC files field by field, STAR files of both generations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MODES = {"i1": 0, "i2": 1, "f4": 2, "u2": 6, "f2": 12}


def write_mrc(
    path: Path,
    data: NDArray[Any],
    *,
    pixel_size: float = 2.0,
    volume: bool = False,
    order: Any = "<",
    extended: int = 0,
    **fields: Any,
) -> Path:
    """Write (sections, rows, columns) pixels; `fields` overwrite what the header says."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    sections, rows, columns = data.shape
    header["nx"], header["ny"], header["nz"] = columns, rows, sections
    header["mx"], header["my"], header["mz"] = columns, rows, sections if volume else 1
    header["cella"] = tuple(pixel_size * int(header[m]) for m in ("mx", "my", "mz"))
    header["mode"] = MODES[data.dtype.str[1:]]
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"] = int(volume)
    header["nsymbt"] = extended
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    for name, value in fields.items():
        header[name] = value
    pixels = data.astype(data.dtype.newbyteorder(order))
    path.write_bytes(header.tobytes() + b"\x07" * extended + pixels.tobytes())
    return path


def noise_images(count: int, box: int, seed: int = 0) -> NDArray[np.float32]:
    """(count, box, box) white noise; image i has mean i, so that mixing them up shows."""
    images = np.random.default_rng(seed).normal(size=(count, box, box))
    return (images + np.arange(count)[:, None, None]).astype(np.float32)


def blob(box: int, pixel_size: float, centre: Sequence[float], sigma: float) -> NDArray[np.float32]:
    """A Gaussian at `centre` (A from the box's centre, z y x) of width `sigma` in A."""
    axis = (np.arange(box) - box // 2) * pixel_size
    lines = [np.exp(-0.5 * ((axis - c) / sigma) ** 2) for c in centre]
    cube: NDArray[np.float32] = np.multiply.outer(np.multiply.outer(*lines[:2]), lines[2])
    return cube.astype(np.float32)


def write_star(path: Path, tables: Mapping[str, Mapping[str, Sequence[Any]]]) -> Path:
    """Write tables of columns, name by name; numbers as Python prints them."""
    lines: list[str] = []
    for name, columns in tables.items():
        lines += [f"data_{name}", "", "loop_"]
        lines += [f"_{label} #{number}" for number, label in enumerate(columns, start=1)]
        lines += [" ".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        lines += ["", ""]
    path.write_text("\n".join(lines))
    return path


def optics_columns(count: int = 1, **columns: Any) -> dict[str, Sequence[Any]]:
    """A 3.1 optics table; `columns` overwrite or add, and a column given as () is left out."""
    table: dict[str, Sequence[Any]] = {
        "rlnOpticsGroup": range(1, count + 1),
        "rlnOpticsGroupName": [f"opticsGroup{i}" for i in range(1, count + 1)],
        "rlnVoltage": [300.0] * count,
        "rlnSphericalAberration": [2.7] * count,
        "rlnAmplitudeContrast": [0.1] * count,
        "rlnImagePixelSize": [2.0] * count,
        **columns,
    }
    return {label: values for label, values in table.items() if len(values)}


def particle_columns(count: int, **columns: Any) -> dict[str, Sequence[Any]]:
    """A 3.1 particle table; `columns` overwrite or add, and a column given as () is left out."""
    table: dict[str, Sequence[Any]] = {
        "rlnImageName": [f"{i:06d}@particles.mrcs" for i in range(1, count + 1)],
        "rlnMicrographName": [f"mic{i // 2:04d}.mrc" for i in range(count)],
        "rlnOpticsGroup": [1] * count,
        "rlnDefocusU": [10000.0 + i for i in range(count)],
        "rlnDefocusV": [9000.0 + i for i in range(count)],
        "rlnDefocusAngle": [float(i) for i in range(count)],
        "rlnPhaseShift": [0.0] * count,
        "rlnCtfBfactor": [0.0] * count,
        "rlnCtfScalefactor": [1.0] * count,
        **columns,
    }
    return {label: values for label, values in table.items() if len(values)}


def old_columns(count: int, **columns: Any) -> dict[str, Sequence[Any]]:
    """The one table of a 3.0 file, 2 A per pixel."""
    microscope: dict[str, Sequence[Any]] = {
        "rlnVoltage": [300.0] * count,
        "rlnSphericalAberration": [2.7] * count,
        "rlnAmplitudeContrast": [0.1] * count,
        "rlnMagnification": [25000.0] * count,
        "rlnDetectorPixelSize": [5.0] * count,
    }
    return particle_columns(count, **{"rlnOpticsGroup": (), **microscope, **columns})


def write_particle_input(folder: Path, count: int = 8, box: int = 16) -> Path:
    """A sound 3.1 STAR file with particles.mrcs and a model init.mrc; the path of the STAR."""
    write_mrc(folder / "particles.mrcs", noise_images(count, box))
    write_mrc(folder / "init.mrc", blob(box, 2.0, (0, 0, 0), 5.0), volume=True)
    tables = {"optics": optics_columns(), "particles": particle_columns(count)}
    return write_star(folder / "particles.star", tables)
