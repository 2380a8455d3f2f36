"""An iteration of a refinement as files for other programs: maps, STAR, CSV, FSC as XML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import quoteattr

import numpy as np

from mpipar.errors import InputError
from mpipar.formats.mrc import write_volume
from mpipar.formats.reading import UNDECODED
from mpipar.formats.star import with_columns
from mpipar.formats.tables import write_tables
from mpipar.results.opening import open_run
from mpipar.results.refinement import Refinement
from mpipar.results.whole_output import whole_output
from mpipar.store.segments import seal_of

if TYPE_CHECKING:
    import pandas as pd

    from mpipar.results.iteration_results import IterationResults

__all__ = ["export_iteration"]

_NO_LIST: Final = (
    "particles.star is left out: this run was begun by a mpipar that did not record its list; the "
    "poses are in particles.csv, in the order of the list"
)


def export_iteration(folder: Path, number: int | None, to: Path | None) -> tuple[Path, list[str]]:
    """Write the files of an iteration into a new folder, whole or not at all.

    number    of the iteration; None: the latest
    to        the new folder; None: such as refine_01_iteration_004, in the current folder
    returns   the folder, and notes on what could not be written
    raises    InputError if the run is no refinement, or has no such iteration; OutputError if the
              folder is there already; DiskFullError
    """
    run = open_run(folder)
    if not isinstance(run, Refinement):
        raise InputError(f"{folder}: was made by `mpipar {run.kind}`, and holds no maps to export")
    iteration = run.latest if number is None else run[number]
    if iteration is None:
        raise InputError(f"{folder}: has finished no iteration yet")
    if not np.isfinite(run.voxel_size):
        raise InputError(
            f"{folder}: was begun by a mpipar that did not record the pixel size, and has no "
            "map.mrc that tells it: put one back"
        )
    name = f"{folder.absolute().name}_iteration_{iteration.number:03d}"
    final = (to or Path(name)).absolute()
    with whole_output(final) as temporary:
        temporary.mkdir()
        _write_maps(temporary, iteration)
        notes = _write_particles(temporary, run, iteration)
        _write_curves(temporary, iteration)
        _write_table(temporary / "iterations.csv", run.history[: iteration.number])
        _write_provenance(temporary, run, iteration)
    return final, notes


def _write_maps(folder: Path, iteration: IterationResults) -> None:
    first, second = iteration.half_maps
    volumes = {"map.mrc": iteration.map, "half1.mrc": first, "half2.mrc": second}
    for name, volume in volumes.items():
        write_volume(folder / name, volume, volume.voxel_size, iteration.label)
    mask = iteration.mask
    write_volume(folder / "mask.mrc", mask, mask.voxel_size)


def _write_particles(folder: Path, run: Refinement, iteration: IterationResults) -> list[str]:
    poses, quality = iteration.poses, iteration.quality
    columns = {label: table[label] for table in (poses, quality) for label in table.columns}
    _write_table(folder / "particles.csv", type(poses)(columns))
    listed = run.particles
    if listed.empty:
        return [_NO_LIST]
    found = {label: values.to_numpy() for label, values in columns.items()}
    del found["rlnImageName"]
    tables = {"optics": run.optics, "particles": with_columns(listed, found)}
    write_tables(folder / "particles.star", tables)
    return []


def _write_curves(folder: Path, iteration: IterationResults) -> None:
    fsc, mark = iteration.fsc, iteration.mark
    _write_table(folder / "fsc.csv", fsc, mark)
    title = f"FSC of the half maps inside the mask, corrected{': ' if mark else ''}{mark}"
    points = zip(fsc["frequency"].tolist(), fsc["corrected"].tolist(), strict=True)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<fsc title={quoteattr(title)} xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">',
        *(f"  <coordinate><x>{x:.6f}</x><y>{y:.6f}</y></coordinate>" for x, y in points),
        "</fsc>",
    ]
    (folder / "fsc.xml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_table(path: Path, table: pd.DataFrame, mark: str = "") -> None:
    """Write a CSV; a mark stands in a comment before it."""
    with path.open("w", encoding="utf-8", errors=UNDECODED, newline="") as file:
        if mark:
            file.write(f"# {mark}\n")
        table.to_csv(file, index=False, lineterminator="\n")


def _write_provenance(folder: Path, run: Refinement, iteration: IterationResults) -> None:
    """Write provenance.json: where the files come from, what they claim, and their checksums."""
    files = {path.name: seal_of(path).sha256 for path in sorted(folder.iterdir())}
    said = {
        "run": str(run.path.absolute()),
        "iteration": iteration.number,
        "iterations": len(run.history),
        "kind_of_iteration": iteration.kind,
        "resolution": iteration.resolution,
        "mark": iteration.mark,
        "state": run.state,
        "sha256": files,
    }
    text = json.dumps(run.provenance | said, indent=1)
    (folder / "provenance.json").write_text(text + "\n", encoding="utf-8", errors=UNDECODED)
