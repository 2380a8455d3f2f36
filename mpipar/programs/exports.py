"""The results of a refinement as files that other programs read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mpipar.cryoem.resolution import GOLD_STANDARD, limited_by_pixels, resolution_of
from mpipar.cryoem.rotations import to_euler
from mpipar.formats.mrc import write_volume
from mpipar.formats.star import write_particles
from mpipar.programs.orientation_export import draw_orientations
from mpipar.programs.quality import draw_quality, quality_columns

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.programs.alarms import Findings
    from mpipar.programs.dataset import Dataset
    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.iteration import Maps, RefineState
    from mpipar.settings import RefineSettings
    from mpipar.store.project import Project

NAMES = (
    "map.mrc",
    "half1.mrc",
    "half2.mrc",
    "mask.mrc",
    "particles.star",
    "orientations.png",
    "fsc.txt",
    "fsc.png",
    "particles.png",
    "settings.toml",
)


def resolutions(maps: Maps, box: int, pixel_size: float) -> tuple[float, float]:
    """Return the resolution in A inside the mask (corrected for the mask), and without a mask.

    Shells that no image has filled are not read: a mask mixes what lies before them into them.
    """
    last = _last_filled_shell(maps)

    def read(curve: NDArray[np.float64]) -> float:
        filled = np.where(np.arange(len(curve)) <= last, curve, 0.0)
        found = resolution_of(filled, GOLD_STANDARD, box, pixel_size)
        return max(found, box * pixel_size / max(last, 1))

    return read(maps.corrected), read(maps.unmasked)


def limit_of_pixels(maps: Maps, box: int, pixel_size: float) -> str:
    """Return what to say where the FSC does not fall before the images end, or nothing."""
    last = _last_filled_shell(maps)
    if not limited_by_pixels(maps.corrected, GOLD_STANDARD, last):
        return ""
    end = f"{box * pixel_size / max(last, 1):.2f} A"
    if last < box // 2:
        return f"at least; the FSC does not fall by {end}, where this run ended its maps"
    return (
        f"at least; the FSC does not fall before its last shell ({end}, two pixels), and only "
        "smaller pixels (images that are binned less) can show more"
    )


def _last_filled_shell(maps: Maps) -> int:
    filled = np.flatnonzero(maps.unmasked)
    return int(filled[-1]) if filled.size else len(maps.unmasked) - 1


def write_all(
    project: Project,
    inputs: RefineInputs,
    settings: RefineSettings,
    data: Dataset,
    state: RefineState,
    findings: Findings,
) -> None:
    """Write every file of `NAMES` into the project's folder, each whole or not at all."""
    maps, pixel_size = findings.maps, inputs.pixel_size
    write_maps(project, inputs, data, maps, heading=findings.heading())
    with project.export("mask.mrc") as path:
        write_volume(path, maps.mask, pixel_size, maps.mark)
    quality = findings.evidence.quality
    with project.export("particles.png") as path:
        draw_quality(path, quality)
    with project.export("particles.star") as path:
        write_particles(
            path,
            inputs.particles,
            angles=to_euler(state.poses.rotations),
            origins=-state.poses.shifts * pixel_size,
            half=data.half,
            extra=quality_columns(state, quality),
        )
    with project.export("orientations.png") as path:
        draw_orientations(path, findings, state, data)
    with project.export("settings.toml") as path:
        _write_settings(path, settings)
    write_picture(project, inputs, data, maps)


def write_maps(
    project: Project,
    inputs: RefineInputs,
    data: Dataset,
    maps: Maps,
    *,
    heading: str = "",
    unfinished: str = "",
) -> None:
    """Write the map, the half maps and fsc.txt.

    heading      comments for the head of fsc.txt
    unfinished   what to say of maps that others will follow; empty: these are the last
    """
    volumes = {
        "map.mrc": maps.combined * data.sphere,
        "half1.mrc": maps.halves[0],
        "half2.mrc": maps.halves[1],
    }
    for name, volume in volumes.items():
        with project.export(name) as path:
            write_volume(path, volume, inputs.pixel_size, _title(unfinished, maps.mark))
    with project.export("fsc.txt") as path:
        table = fsc_table(maps, inputs.box, inputs.pixel_size)
        state = f"# {unfinished}\n" if unfinished else ""
        path.write_text(heading + state + table, encoding="utf-8")


def write_picture(
    project: Project, inputs: RefineInputs, data: Dataset, maps: Maps, *, unfinished: str = ""
) -> None:
    """Write fsc.png; `unfinished` is as in `write_maps`."""
    with project.export("fsc.png") as path:
        _draw(path, maps, maps.combined * data.sphere, inputs, unfinished)


def _title(*parts: str) -> str:
    return ": ".join(part for part in parts if part)


def _write_settings(path: Path, settings: RefineSettings) -> None:
    # without the folder, which is taken: used again, they make another run
    again = replace(settings, path=None, resume=False)
    # names that are not UTF-8 are written as they are
    path.write_text(again.to_toml(), encoding="utf-8", errors="surrogateescape")


def fsc_table(maps: Maps, box: int, pixel_size: float) -> str:
    """Return the FSC curves as text, one row per shell."""
    inside, everywhere = resolutions(maps, box, pixel_size)
    limit = limit_of_pixels(maps, box, pixel_size)
    said = f"resolution at 0.143: {inside:.2f} A inside the mask, {everywhere:.2f} A without one"
    lines = [
        "# FSC of the half maps",
        f"# {maps.mark or said}",
        *([f"# {limit}"] if limit and not maps.mark else []),
        "# shell  1/A  A  unmasked  masked  corrected (phase-randomised, Chen et al. 2013)",
    ]
    for shell in range(1, len(maps.unmasked)):
        frequency = shell / (box * pixel_size)
        curves = (maps.unmasked[shell], maps.masked[shell], maps.corrected[shell])
        values = "  ".join(f"{value:9.6f}" for value in curves)
        lines.append(f"{shell:5d}  {frequency:.6f}  {1 / frequency:9.3f}  {values}")
    return "\n".join(lines) + "\n"


def _draw(
    path: Path,
    maps: Maps,
    volume: NDArray[np.float32],
    inputs: RefineInputs,
    unfinished: str,
) -> None:
    from mpipar.views.plots import picture

    curves = {"corrected": maps.corrected, "inside the mask": maps.masked, "no mask": maps.unmasked}
    resolution = 0.0 if maps.mark else resolutions(maps, inputs.box, inputs.pixel_size)[0]
    limited = limit_of_pixels(maps, inputs.box, inputs.pixel_size)
    note = "; at least this resolution, limited by the pixels" if limited else ""
    note = f"; {maps.mark}" if maps.mark else note
    picture(
        path,
        volume,
        inputs.pixel_size,
        curves,
        resolution,
        title=_title(unfinished, maps.mark or f"{inputs.particles.count} particles{note}"),
    )
