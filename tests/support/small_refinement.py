"""A refinement of noise that is prepared in this process, up to its first iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.blocks import (
    optics_columns,
    particle_columns,
    write_particle_input,
    write_star,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mpipar.programs.dataset import Dataset
    from mpipar.programs.inputs import RefineInputs
    from mpipar.programs.iteration import RefineState
    from mpipar.settings import RefineSettings


@dataclass(frozen=True)
class Small:
    """A refinement of noise before its first iteration, in this process; no worker, no project."""

    settings: RefineSettings
    inputs: RefineInputs
    data: Dataset
    state: RefineState


def small(folder: Path, count: int = 40, box: int = 16, **columns: Any) -> Small:
    """Prepare a refinement of `count` images of noise; `columns` are added to the STAR file."""
    from mpipar.cryoem import symmetry
    from mpipar.programs import dataset, iteration
    from mpipar.programs.inputs import read_inputs
    from mpipar.programs.stages import MeasureStage
    from mpipar.settings import RefineSettings

    folder.mkdir(exist_ok=True)
    star = write_particle_input(folder, count, box)
    if columns:
        write_star(
            star, {"optics": optics_columns(), "particles": particle_columns(count, **columns)}
        )
    settings = RefineSettings(input=star, model=folder / "init.mrc")
    inputs = read_inputs(settings)
    geometry = dataset.geometry_of(inputs, settings, inputs.model)
    half = dataset.half_sets(inputs.particles, settings.seed)
    blocks = dataset.blocks_of(half)
    source, stage = inputs.stacks.divided(blocks), MeasureStage(geometry)
    tasks = dataset.measure_tasks(blocks)
    looks = [stage.run(task, source.read(task.id), None) for task in tasks]
    source.close()
    constants, spectra = dataset.measure(box, half, blocks, looks)
    operators = symmetry.operators("c1")
    start = dataset.Start(inputs.model, 12.0, geometry)
    data = dataset.make_dataset(inputs, settings, start, operators, constants)
    state = iteration.first_state(inputs, data, spectra, start)
    return Small(settings, inputs, data, state)
